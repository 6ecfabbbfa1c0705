package topic

import (
	"errors"
	"fmt"
)

var (
	// ErrTooMany is returned when Limits.MaxTopics topics exist and another one is asked for.
	ErrTooMany = errors.New("topic limit reached (limits.max_topics)")

	// ErrTooLarge is returned for a message that is larger than Limits.MaxMessage, or than the broker takes for a
	// persistent topic.
	ErrTooLarge = errors.New("message is larger than limits.max_message")

	// ErrNotJSON is returned for a message of [FormatJSON] that is not JSON.
	ErrNotJSON = errors.New("message is not valid JSON")

	// ErrNotText is returned for a message of [FormatText] or [FormatJSON] that is not UTF-8.
	ErrNotText = errors.New("message is not valid UTF-8")

	// ErrKey is returned for an idempotency key that is longer than [MaxKey].
	ErrKey = fmt.Errorf("idempotency key is longer than %d bytes", MaxKey)

	// ErrOverloaded is returned when a loop has more than Limits.MaxBacklog bytes to look at. The message goes to
	// no connection.
	ErrOverloaded = errors.New("server overloaded: limits.max_backlog is reached")

	// ErrNoCluster is returned for a message that the broker cannot take now, because it is not connected. The message
	// goes to no connection.
	ErrNoCluster = errors.New("the cluster cannot be reached")

	// ErrUncertain means that the broker did not acknowledge the message in time, or not all of it. It may or may not
	// have been stored.
	ErrUncertain = errors.New("message not acknowledged by the cluster: it may or may not be stored")
)

// ErrStoreFull is returned for a message that the broker has no room for. The message goes to no connection. It is an
// [ErrNoCluster], too.
var ErrStoreFull error = storeFull{}

type storeFull struct{}

func (storeFull) Error() string        { return "the cluster store is full" }
func (storeFull) Is(target error) bool { return target == ErrNoCluster }

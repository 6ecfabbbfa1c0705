package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"carillon/codec"
	"carillon/server/topic"
)

// Errors of a [Backend], besides those of package topic. Any other error is answered as an internal error, and logged.
var (
	ErrNoTopic       = errors.New("topic not found")
	ErrNoConnection  = errors.New("connection not found")
	ErrNoEndpoint    = errors.New("no endpoint has this path")
	ErrNotDraining   = errors.New("the server is not draining")
	ErrDrainUnderWay = errors.New("the drain can no longer be cancelled: " +
		"the listening socket is closed, or the program is ending")
)

// Backend is the server as the interface sees it. Its methods may be called from any goroutine except those of event
// loops.
type Backend interface {
	// Token must come with every request except the probes'. Empty means that none is needed.
	Token() string

	// MaxMessage is the size of the largest message in bytes. Negative means no limit.
	MaxMessage() int64

	// Publish waits until the broker has the message, if there is one.
	Publish(ctx context.Context, p topic.Publication) (topic.Receipt, error)

	// PublishFunc does not wait: done is called once, from any goroutine and perhaps before PublishFunc returns.
	PublishFunc(p topic.Publication, done func(topic.Receipt, error))

	// HasEndpoint reports whether an endpoint has this path.
	HasEndpoint(path string) bool

	// Broadcast sends a message to all connections of an endpoint, or of all endpoints if path is empty, and returns
	// how many of this server's there are. It waits until the broker has the message, if there is one. It fails with
	// [ErrNoEndpoint].
	Broadcast(ctx context.Context, path string, f *codec.Frame) (connections int, err error)

	// Topics lists the first topics that match a pattern and come after a name. next is the last name of a list that is
	// not the last one.
	Topics(pattern, after string, limit int) (list []topic.Info, next string)

	// Topic describes a topic as all servers of the cluster know it. It fails with [ErrNoTopic].
	Topic(ctx context.Context, name string) (Topic, error)

	// History returns messages that a topic keeps as the JSON protocol has them: the first ones after since, or the
	// newest ones if it is nil.
	History(name string, since *topic.Position, limit int) (json.Marshaler, error)

	// Nodes lists the servers of the cluster, this one first. The caller may change the list.
	Nodes() []topic.NodeInfo

	// Connections lists this server's connections by their ids, those above after.
	Connections(after uint64, limit int) (list []Connection, more bool)

	// Connection describes a connection of any server of the cluster: the JSON of a [Connection], to which servers of
	// other versions may add. It fails with [ErrNoConnection].
	Connection(ctx context.Context, id uint64) (json.RawMessage, error)

	// CloseConnection closes a connection of any server of the cluster. It fails with [ErrNoConnection].
	CloseConnection(ctx context.Context, id uint64, code codec.CloseCode, reason string) error

	Drain() Drain

	// StartDrain does what SIGTERM does to the program.
	StartDrain()

	// CancelDrain fails with [ErrNotDraining] or [ErrDrainUnderWay].
	CancelDrain() error

	Maintenance() bool
	SetMaintenance(on bool)

	// Unready lists why the server should get no new connections now, and Stuck the loops that have been silent for too
	// long.
	Unready() []Condition
	Stuck() []Condition

	Memory() Memory

	// Build returns what the running program was made of.
	Build() Build

	// LogLevel reports false if the application does not expose its log level. Then SetLogLevel does nothing.
	LogLevel() (level slog.Level, ok bool)
	SetLogLevel(ctx context.Context, level slog.Level)

	// LogError logs a mistake that a client may be able to provoke, unless there have been many.
	LogError(what string, args ...any)
}

// Build is what the running program was made of.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Changed  bool   `json:"changed"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

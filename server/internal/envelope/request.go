package envelope

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"carillon/server/topic"
)

// RequestError describes a request that makes no sense.
type RequestError struct{ problem string }

func (e *RequestError) Error() string { return e.problem }

// BadRequest returns a *[RequestError].
func BadRequest(format string, args ...any) error {
	return &RequestError{fmt.Sprintf(format, args...)}
}

// Publish is a message to publish, in a request of the JSON protocol or a line of a batch.
type Publish struct {
	Topic    string          `json:"topic"`
	Data     json.RawMessage `json:"data"`
	Encoding string          `json:"encoding"`
	Key      string          `json:"key"`
}

// Message returns the message in Data, which it shares if that is JSON. The error is a *[RequestError].
func (p *Publish) Message() (topic.Format, []byte, error) {
	if len(p.Data) == 0 {
		return 0, nil, BadRequest("data is missing")
	}
	if p.Encoding == "" {
		return topic.FormatJSON, p.Data, nil
	}
	var text string
	if p.Encoding != "base64" && p.Encoding != "text" {
		return 0, nil, BadRequest("encoding is %.40q: expected text or base64, or none for JSON", p.Encoding)
	}
	if err := json.Unmarshal(p.Data, &text); err != nil {
		return 0, nil, BadRequest("data is not a string, which the encoding %s requires", p.Encoding)
	}
	if p.Encoding == "text" {
		return topic.FormatText, []byte(text), nil
	}
	payload, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return 0, nil, BadRequest("data is not base64: %v", err)
	}
	return topic.FormatBinary, payload, nil
}

// CheckKey refuses a key that JSON cannot tell from others: what is no UTF-8, and half of a UTF-16 pair, become the
// same character when it is decoded. The error is a *[RequestError].
func (p *Publish) CheckKey() error {
	if strings.ContainsRune(p.Key, utf8.RuneError) {
		return BadRequest("key is not Unicode text: it has an unpaired surrogate or the character U+FFFD")
	}
	return nil
}

// MaxLast bounds how many of the newest messages a client may start with.
const MaxLast = 10_000

// ParseStart reads since, epoch and last of a query.
func ParseStart(query url.Values) (from topic.Start, err error) {
	if text := query.Get("since"); text != "" {
		offset, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return from, fmt.Errorf("since=%.40q is not an offset: expected a whole number", text)
		}
		from.Since = &topic.Position{Offset: offset, Epoch: query.Get("epoch")}
		if from.Since.Epoch == "" {
			return from, fmt.Errorf("since without epoch: expected both, as they were received")
		}
	}
	if text := query.Get("last"); text != "" {
		if from.Last, err = strconv.Atoi(text); err != nil || from.Last < 0 || from.Last > MaxLast {
			return from, fmt.Errorf("last=%.40q is not a number of messages from 0 to %d", text, MaxLast)
		}
		if from.Since != nil {
			return from, fmt.Errorf("since and last are mutually exclusive")
		}
	}
	return from, nil
}

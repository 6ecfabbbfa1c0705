package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// subscription is one topic or pattern, and how far into it we are.
type subscription struct {
	topic    string
	last     int
	position *position // what comes after it is wanted; nil at the start, and for a pattern
}

// subscriptionReply is what the server says to a request.
type subscriptionReply struct {
	Offset    uint64  `json:"offset"`
	Epoch     string  `json:"epoch"`
	After     *uint64 `json:"after"` // nil from an older server
	Recovered *bool   `json:"recovered"`
}

func (s *subscription) request(id int) ([]byte, error) {
	type subscribe struct {
		Topic string    `json:"topic"`
		Since *position `json:"since,omitempty"`
		Last  int       `json:"last,omitempty"`
	}
	ask := subscribe{Topic: s.topic, Since: s.position}
	if s.position == nil {
		ask.Last = s.last
	}
	return json.Marshal(struct {
		ID        int       `json:"id"`
		Subscribe subscribe `json:"subscribe"`
	}{id, ask})
}

// historyRequest asks whether the topic has any of the last messages that are wanted. It is nil where none are, or
// where the reply to the subscription says what is missing.
func (s *subscription) historyRequest(id int) ([]byte, error) {
	if s.last == 0 || s.position != nil {
		return nil, nil
	}
	type history struct {
		Topic string `json:"topic"`
		Limit int    `json:"limit"`
	}
	return json.Marshal(struct {
		ID      int     `json:"id"`
		History history `json:"history"`
	}{id, history{s.topic, 1}})
}

// start returns the position before the first message that follows a reply.
func (s *subscription) start(r *subscriptionReply) *position {
	switch {
	case r.After != nil:
		return &position{*r.After, r.Epoch}
	case s.position == nil:
		return &position{r.Offset - min(r.Offset, uint64(s.last)), r.Epoch}
	case r.Recovered != nil && *r.Recovered:
		return &position{s.position.Offset, r.Epoch}
	}
	return &position{0, r.Epoch} // a gap that is reported twice is better than messages that are lost in silence
}

// confirmed takes the reply, and returns what a person should know about it, if anything.
func (s *subscription) confirmed(r *subscriptionReply, again bool) (note string) {
	name := harmlessLine(s.topic)
	if isPattern(s.topic) {
		if again {
			return name + ": reconnected; a pattern has no position to resume from, so messages may be missing"
		}
		return ""
	}
	before := s.position
	s.position = s.start(r)
	switch {
	case before == nil:
		return ""
	case r.Recovered != nil && *r.Recovered:
		if again {
			return fmt.Sprintf("%s: reconnected, resuming after offset %d", name, before.Offset)
		}
		return ""
	}
	if r.Epoch != before.Epoch {
		return fmt.Sprintf("%s: gap: messages after offset %d of epoch %s may be missing; the epoch is now %s",
			name, before.Offset, harmlessLine(before.Epoch), harmlessLine(r.Epoch))
	}
	return fmt.Sprintf("%s: gap: messages after offset %d may be missing", name, before.Offset)
}

// seen notes that a message was printed. A topic's current value can be older than the position.
func (s *subscription) seen(offset uint64) {
	if s.position != nil {
		s.position.Offset = max(s.position.Offset, offset)
	}
}

// topicMessage is a message as docs/protocol.md has it.
type topicMessage struct {
	Topic    string          `json:"topic"`
	Offset   uint64          `json:"offset"`
	Time     int64           `json:"time"` // in milliseconds since 1970
	Data     json.RawMessage `json:"data"`
	Encoding string          `json:"encoding"`
}

// printer returns what prints messages in a format.
func printer(out io.Writer, format string) func(*topicMessage, []byte) error {
	if format == "json" {
		return func(_ *topicMessage, raw []byte) error {
			_, err := fmt.Fprintf(out, "%s\n", compact(raw))
			return err
		}
	}
	return func(m *topicMessage, _ []byte) error {
		_, err := fmt.Fprintf(out, "%s %s %d %s\n",
			time.UnixMilli(m.Time).Format(clockLayout), harmlessLine(m.Topic), m.Offset, m.text())
		return err
	}
}

// text is the data as one line.
func (m *topicMessage) text() string {
	if m.Encoding == "base64" {
		var payload []byte // encoding/json reads base64 into it
		if json.Unmarshal(m.Data, &payload) == nil {
			return preview(payload)
		}
	}
	var text string
	if json.Unmarshal(m.Data, &text) == nil {
		return harmlessLine(text)
	}
	return harmlessLine(string(compact(m.Data)))
}

package protocol

import (
	"encoding/json"
	"strconv"

	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// The number of messages that a history request gets.
const (
	usualHistory = 100
	maxHistory   = 1000
)

// maxHistoryBytes bounds the messages in one reply, but for the first.
const maxHistoryBytes = 1 << 20

func (c *Client) checkHistory(r *historyRequest) error {
	if err := topic.Check(r.Topic); err != nil {
		return err
	}
	if err := c.checkRead(r.Topic); err != nil {
		return err
	}
	if limit := r.limit(); limit < 1 || limit > maxHistory {
		return envelope.BadRequest("limit is %d: expected 1 to %d", limit, maxHistory)
	}
	return nil
}

func (r *historyRequest) limit() int {
	if r.Limit != nil {
		return *r.Limit
	}
	return usualHistory
}

func (c *Client) doHistory(id json.RawMessage, r *historyRequest) error {
	if err := c.checkHistory(r); err != nil {
		return err
	}
	c.hub().TopicReady(c.core(), r.Topic, topic.Start{Since: r.Since}, true, func(err error) {
		var value any
		if err == nil {
			value, err = NewHistory(c.hub(), r.Topic, r.Since, r.limit())
		}
		c.answerWith(id, "history", value, err, c.sendReply)
	})
	return nil
}

// History is a part of a topic's history as the JSON protocol and the HTTP interface have it:
// {"topic","offset","epoch","recovered","messages"}.
type History struct {
	topic    string
	past     topic.HistoryPage // without its messages
	messages []*hub.Message
}

// NewHistory answers a request for at most limit messages of a topic: the first ones after a position, or the newest.
// It may be called from any goroutine.
func NewHistory(h *hub.Hub, name string, since *topic.Position, limit int) (*History, error) {
	from := topic.Start{Since: since}
	if since == nil {
		from.Last = limit
	}
	past, list, err := h.Past(name, from, limit)
	return &History{topic: name, past: past, messages: within(list, maxHistoryBytes, since == nil)}, err
}

// AppendTo appends the reply as JSON.
func (r *History) AppendTo(b []byte) []byte {
	b = append(envelope.AppendText(append(b, `{"topic":`...), r.topic), `,"offset":`...)
	b = append(strconv.AppendUint(b, r.past.Offset, 10), `,"epoch":`...)
	b = append(envelope.AppendText(b, r.past.Epoch), `,"recovered":`...)
	b = append(strconv.AppendBool(b, r.past.Recovered), `,"messages":[`...)
	for i, m := range r.messages {
		if i > 0 {
			b = append(b, ',')
		}
		b = m.AppendHistory(b)
	}
	return append(b, "]}"...)
}

// MarshalJSON is for the HTTP interface.
func (r *History) MarshalJSON() ([]byte, error) { return r.AppendTo(nil), nil }

// within returns as many of the oldest messages, or of the newest, as have at most so many bytes, and at
// least one.
func within(list []*hub.Message, bytes int, newest bool) []*hub.Message {
	for n := range list {
		i := n
		if newest {
			i = len(list) - 1 - n
		}
		if bytes -= list[i].Size(reactor.FramingEnvelope); bytes >= 0 || n == 0 {
			continue
		}
		if newest {
			return list[i+1:]
		}
		return list[:i]
	}
	return list
}

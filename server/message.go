package server

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"sync"
	"sync/atomic"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// message is what was published to a topic, encoded once for each framing in use.
type message struct {
	// Immutable.
	topic  *topicState
	offset uint64
	time   int64 // milliseconds since 1970
	born   int64 // milliseconds after the server was made, by which it grows old
	format topic.Format
	gap    bool   // it says that messages before it are missing, and that the topic is now at offset
	after  uint64 // of a gap: the offset before what follows
	raw    *codec.Frame
	epoch  *string // of the offset; nil for that of the topic itself

	mu    sync.Mutex
	other [reactor.NumFramings - 1]*codec.Frame // guarded by mu
}

// Frame returns the message as it is written to connections of a framing.
func (m *message) Frame(f reactor.Framing) *codec.Frame {
	if f == reactor.FramingRaw {
		return m.raw
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	to := &m.other[f-1]
	if *to == nil {
		*to = m.encode(f)
	}
	return *to
}

// envelopes are buffers for messages in JSON, which are copied behind the header of their frame: new memory for a large
// one costs more than to encode it.
var envelopes = sync.Pool{New: func() any { return new([]byte) }}

func (m *message) encode(f reactor.Framing) *codec.Frame {
	if f == reactor.FramingEnvelope {
		buf := envelopes.Get().(*[]byte)
		defer envelopes.Put(buf)
		*buf = m.appendEnvelope((*buf)[:0])
		return codec.NewFrame(codec.OpText, *buf)
	}
	if m.gap {
		return codec.Opaque(m.gapReply().AppendEvent(nil))
	}
	id := envelope.EventID(m.epochText(), m.offset)
	if f == reactor.FramingEventWrapped {
		return codec.Opaque(envelope.AppendEvent(nil, "", id, m.appendEnvelope(nil)))
	}
	return codec.Opaque(envelope.AppendMessageEvent(nil, id, m.format.Opcode(), m.raw.Payload()))
}

func (m *message) epochText() string {
	if m.epoch != nil {
		return *m.epoch
	}
	return m.topic.ownEpoch()
}

// gapReply begins the subscription anew, for those who have it.
func (m *message) gapReply() *envelope.Subscribed {
	return &envelope.Subscribed{Topic: m.topic.name, Offset: &m.offset, Epoch: m.epochText(), After: &m.after, Recovered: new(bool)}
}

// appendHistory appends the message as the JSON protocol has it. Unlike that of frame, the result is not kept for the
// next time: a history is large.
func (m *message) appendHistory(b []byte) []byte {
	m.mu.Lock()
	f := m.other[reactor.FramingEnvelope-1]
	m.mu.Unlock()
	if f != nil {
		return append(b, f.Payload()...)
	}
	return m.appendEnvelope(b)
}

// largestForm is about the size of the largest form of a text message: a string in JSON, or an event in which each line
// has a name. It may leave out to look where that is below a limit in any case.
func largestForm(format topic.Format, payload []byte, limit int64) int64 {
	const most = 6 // bytes that one becomes at most, beside itself
	n := int64(len(payload))
	if n*(1+most) <= limit {
		return n
	}
	lines := bytes.Count(payload, []byte("\n")) + bytes.Count(payload, []byte("\r"))
	event := n + int64(lines*len("data: "))
	if format == topic.FormatText {
		return max(event, int64(envelope.TextSize(payload)))
	}
	return event
}

// envelopeSize is at least as much as the message takes in the JSON protocol.
func (m *message) envelopeSize() int {
	const around = 128
	n := len(m.raw.Payload())
	switch m.format {
	case topic.FormatText:
		return envelope.TextSize(m.raw.Payload()) + len(m.topic.name) + around
	case topic.FormatBinary:
		n = base64.StdEncoding.EncodedLen(n)
	}
	return n + len(m.topic.name) + around
}

// appendEnvelope appends the message as the JSON protocol has it.
func (m *message) appendEnvelope(b []byte) []byte {
	if m.gap {
		return envelope.AppendReply(b, nil, "subscribed", m.gapReply())
	}
	b = append(b, `{"topic":`...)
	b = envelope.AppendText(b, m.topic.name)
	b = append(b, `,"offset":`...)
	b = strconv.AppendUint(b, m.offset, 10)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, m.time, 10)
	b = append(b, `,"data":`...)
	payload := m.raw.Payload()
	switch m.format {
	case topic.FormatJSON:
		b = append(b, payload...)
	case topic.FormatText:
		b = envelope.AppendText(b, payload)
	case topic.FormatBinary:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, payload)
		b = append(b, `","encoding":"base64"`...)
	}
	return append(b, '}')
}

// endpointSource is the source of a broadcast endpoint.
type endpointSource struct {
	source
	published atomic.Uint64
}

// issue hands a message to this server's connections. The caller holds mu.
func (src *endpointSource) issue(f *codec.Frame, at reactor.Stamp) (connections int) {
	src.published.Add(1)
	return src.post(reactor.CommandPublish, (*broadcast)(f), at)
}

// broadcast is a message for all connections of an endpoint, as its raw frame.
type broadcast codec.Frame

func (b *broadcast) raw() *codec.Frame { return (*codec.Frame)(b) }

func (b *broadcast) Frame(to reactor.Framing) *codec.Frame {
	f := b.raw()
	switch to {
	case reactor.FramingEnvelope:
		return codec.NewFrame(codec.OpText, envelope.AppendBroadcast(nil, f))
	case reactor.FramingEvent:
		return reactor.Event(f.Opcode(), f.Payload())
	case reactor.FramingEventWrapped:
		return codec.Opaque(envelope.AppendEvent(nil, "broadcast", "", envelope.AppendBroadcast(nil, f)))
	}
	return f
}

package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"sync"

	"carillon/codec"
)

// Format says what the payload of a message is.
type Format uint8

const (
	FormatText   Format = iota // any text, in UTF-8
	FormatJSON                 // a JSON value
	FormatBinary               // any bytes
)

// String is "text", "json" or "binary".
func (f Format) String() string { return [...]string{"text", "json", "binary"}[f] }

func (f Format) opcode() codec.Opcode {
	if f == FormatBinary {
		return Binary
	}
	return Text
}

// framing is how messages are written to a connection.
type framing uint8

const (
	framingRaw          framing = iota // the payload in a WebSocket message
	framingEnvelope                    // a JSON object in a WebSocket message
	framingEvent                       // the payload in a server-sent event
	framingEventWrapped                // a JSON object in a server-sent event
	numFramings
)

// payload is what is published to a source.
type payload interface {
	// frame returns it as it is written to connections of a framing.
	frame(to framing) *codec.Frame
}

// message is what was published to a topic, encoded once for each framing that somebody needs.
type message struct {
	// Immutable.
	topic  *topic
	offset uint64
	time   int64 // milliseconds since 1970
	born   int64 // milliseconds after the server was made, by which it grows old
	format Format
	gap    bool   // it says that messages before it are missing, and that the topic is now at offset
	after  uint64 // of a gap: the offset before what follows
	raw    *codec.Frame
	epoch  *string // of the offset; nil for that of the topic itself

	mu    sync.Mutex
	other [numFramings - 1]*codec.Frame // guarded by mu
}

// frame returns the message as it is written to connections of a framing.
func (m *message) frame(f framing) *codec.Frame {
	if f == framingRaw {
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

// envelopes are buffers for messages in JSON, which are copied behind the header of their frame: new memory for a large one
// costs more than to encode it.
var envelopes = sync.Pool{New: func() any { return new([]byte) }}

func (m *message) encode(f framing) *codec.Frame {
	if f == framingEnvelope {
		buf := envelopes.Get().(*[]byte)
		defer envelopes.Put(buf)
		*buf = m.appendEnvelope((*buf)[:0])
		return codec.NewFrame(codec.OpText, *buf)
	}
	if m.gap {
		return codec.Opaque(m.gapReply().appendEvent(nil))
	}
	id := eventID(m.epochText(), m.offset)
	if f == framingEventWrapped {
		return codec.Opaque(appendEvent(nil, "", id, m.appendEnvelope(nil)))
	}
	return codec.Opaque(appendMessageEvent(nil, id, m.format.opcode(), m.raw.Payload()))
}

func (m *message) epochText() string {
	if m.epoch != nil {
		return *m.epoch
	}
	return m.topic.ownEpoch()
}

// gapReply begins the subscription anew, for those who have it.
func (m *message) gapReply() *subscribedReply {
	return &subscribedReply{Topic: m.topic.name, Offset: &m.offset, Epoch: m.epochText(), After: &m.after, Recovered: new(bool)}
}

// appendKept appends the message as the JSON protocol has it. Unlike that of frame, the result is not kept for the next
// time: a history is large.
func (m *message) appendKept(b []byte) []byte {
	m.mu.Lock()
	f := m.other[framingEnvelope-1]
	m.mu.Unlock()
	if f != nil {
		return append(b, f.Payload()...)
	}
	return m.appendEnvelope(b)
}

// largestForm is about the size of the largest form of a text message: a string in JSON, or an event in which each line
// has a name. It may leave out to look where that is below a limit in any case.
func largestForm(format Format, payload []byte, limit int64) int64 {
	const most = 6 // bytes that one becomes at most, beside itself
	n := int64(len(payload))
	if n*(1+most) <= limit {
		return n
	}
	lines := bytes.Count(payload, []byte("\n")) + bytes.Count(payload, []byte("\r"))
	event := n + int64(lines*len("data: "))
	if format == FormatText {
		return max(event, int64(textSize(payload)))
	}
	return event
}

// envelopeSize is at least as much as the message takes in the JSON protocol.
func (m *message) envelopeSize() int {
	const around = 128
	n := len(m.raw.Payload())
	switch m.format {
	case FormatText:
		return textSize(m.raw.Payload()) + len(m.topic.name) + around
	case FormatBinary:
		n = base64.StdEncoding.EncodedLen(n)
	}
	return n + len(m.topic.name) + around
}

// appendEnvelope appends the message as the JSON protocol has it.
func (m *message) appendEnvelope(b []byte) []byte {
	if m.gap {
		return appendReply(b, nil, "subscribed", m.gapReply())
	}
	b = append(b, `{"topic":`...)
	b = appendText(b, m.topic.name)
	b = append(b, `,"offset":`...)
	b = strconv.AppendUint(b, m.offset, 10)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, m.time, 10)
	b = append(b, `,"data":`...)
	payload := m.raw.Payload()
	switch m.format {
	case FormatJSON:
		b = append(b, payload...)
	case FormatText:
		b = appendText(b, payload)
	case FormatBinary:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, payload)
		b = append(b, `","encoding":"base64"`...)
	}
	return append(b, '}')
}

// broadcast is a message for everybody at an endpoint, as its raw frame.
type broadcast codec.Frame

func (b *broadcast) raw() *codec.Frame { return (*codec.Frame)(b) }

func (b *broadcast) frame(to framing) *codec.Frame {
	f := b.raw()
	switch to {
	case framingEnvelope:
		return codec.NewFrame(codec.OpText, appendBroadcast(nil, f))
	case framingEvent:
		return event(f.Opcode(), f.Payload())
	case framingEventWrapped:
		return codec.Opaque(appendEvent(nil, "broadcast", "", appendBroadcast(nil, f)))
	}
	return f
}

// appendBroadcast appends the message as the JSON protocol has it.
func appendBroadcast(b []byte, f *codec.Frame) []byte {
	b = append(b, `{"broadcast":{"data":`...)
	if f.Opcode() == codec.OpBinary {
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, f.Payload())
		return append(b, `","encoding":"base64"}}`...)
	}
	return append(appendText(b, f.Payload()), "}}"...)
}

// appendJSON appends a value that is known to be JSON's.
func appendJSON(b []byte, v any) []byte {
	w := bytes.NewBuffer(b)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("server: encode JSON: " + err.Error())
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n"))
}

// appendMessageEvent appends a message as a server-sent event: text as it is, binary in base64.
func appendMessageEvent(b []byte, id string, op codec.Opcode, payload []byte) []byte {
	if op == codec.OpBinary {
		return appendEvent(b, "binary", id, base64.StdEncoding.AppendEncode(nil, payload))
	}
	return appendEvent(b, "", id, payload)
}

// appendEvent appends a server-sent event (HTML, section 9.2). What ends a line in the data, be it CR, LF
// or both, ends it on the other side as LF.
func appendEvent(b []byte, kind, id string, data []byte) []byte {
	if kind != "" {
		b = append(append(append(b, "event: "...), kind...), '\n')
	}
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	if len(data) >= largeText {
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r"))
		b = slices.Grow(b, len(data)+(lines+2)*len("data: "))
	}
	b = append(b, "data: "...)
	start := 0
	for i, c := range data {
		if c > '\r' || c != '\r' && c != '\n' {
			continue
		}
		if c == '\n' && i > 0 && data[i-1] == '\r' { // it has ended the line already
			start = i + 1
			continue
		}
		b = append(append(b, data[start:i]...), "\ndata: "...)
		start = i + 1
	}
	return append(append(b, data[start:]...), "\n\n"...)
}

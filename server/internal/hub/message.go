package hub

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// Message is what was published to a topic, encoded once for each framing in use.
type Message struct {
	// Immutable.
	Topic  *topicState
	Offset uint64
	Time   int64 // milliseconds since 1970
	born   int64 // milliseconds after the server was made, by which it grows old
	Format topic.Format
	Gap    bool    // it says that messages before it are missing, and that the topic is now at offset
	after  uint64  // of a gap: the offset before what follows
	Epoch  *string // of the offset; nil for that of the topic itself

	mu    sync.Mutex
	other [reactor.NumFramings - 1]*codec.Frame // guarded by mu
	json  int                                   // about how many bytes it has in JSON; 0 until that is known; guarded by mu
	raw   atomic.Pointer[codec.Frame]           // its payload never changes
	forms int                                   // bytes of its forms, when the topic last looked; guarded by the topic's mu
}

// work is how many bytes have to be encoded, and compressed for a window unless that is 0, before the message can be
// sent in a framing.
func (m *Message) work(kind reactor.Framing, window uint8) int {
	f := m.Raw()
	if kind != reactor.FramingRaw {
		m.mu.Lock()
		f = m.other[kind-1]
		m.mu.Unlock()
	}
	if f == nil || window > 0 && !f.IsDeflatedWithin(window) {
		return m.Size(kind)
	}
	return 0
}

// WithRaw sets the message as it was published.
func (m *Message) WithRaw(f *codec.Frame) *Message {
	m.raw.Store(f)
	return m
}

// Raw is the message as it was published.
func (m *Message) Raw() *codec.Frame { return m.raw.Load() }

// Frame returns the message as it is written to connections of a framing.
func (m *Message) Frame(f reactor.Framing) *codec.Frame {
	if f == reactor.FramingRaw {
		return m.Raw()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	to := &m.other[f-1]
	if *to == nil {
		*to = m.encode(f)
	}
	return *to
}

// formSize returns the bytes of memory that all encoded forms of the message take, except for the raw one.
func (m *Message) formSize() int {
	n := m.Raw().DeflatedSize()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.other {
		if f != nil {
			n += len(f.Plain()) + f.DeflatedSize()
		}
	}
	return n
}

// forgetForms lets go of all forms but the raw one. They are encoded again when they are needed; those in use stay
// valid.
func (m *Message) forgetForms() {
	m.raw.Store(m.Raw().Fresh())
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.other[:])
}

// envelopes are buffers for messages in JSON that are not large, which are copied into a frame of their size.
var envelopes = sync.Pool{New: func() any { return new([]byte) }}

// envelopeFrame makes the frame of a message in JSON. A large one is encoded in the memory of its frame.
func envelopeFrame(isLarge bool, appendEnvelope func(b []byte) []byte) *codec.Frame {
	if isLarge {
		return codec.NewFrameFunc(codec.OpText, appendEnvelope)
	}
	buf := envelopes.Get().(*[]byte)
	defer envelopes.Put(buf)
	*buf = appendEnvelope((*buf)[:0])
	return codec.NewFrame(codec.OpText, *buf)
}

func (m *Message) encode(f reactor.Framing) *codec.Frame {
	if f == reactor.FramingEnvelope {
		return envelopeFrame(isLarge(m.Raw()), m.appendEnvelope)
	}
	if m.Gap {
		return codec.Opaque(m.gapReply().AppendEvent(nil))
	}
	id := envelope.EventID(m.epochText(), m.Offset)
	if f == reactor.FramingEventWrapped {
		return codec.Opaque(envelope.AppendEvent(nil, "", id, m.envelope()))
	}
	return codec.Opaque(envelope.AppendMessageEvent(nil, id, m.Format.Opcode(), m.Raw().Payload()))
}

// envelope is the message in JSON. The caller holds mu.
func (m *Message) envelope() []byte {
	if f := m.other[reactor.FramingEnvelope-1]; f != nil {
		return f.Payload()
	}
	return m.appendEnvelope(nil)
}

func (m *Message) epochText() string {
	if m.Epoch != nil {
		return *m.Epoch
	}
	return m.Topic.ownEpoch()
}

// gapReply begins the subscription anew, for those who have it.
func (m *Message) gapReply() *envelope.Subscribed {
	return &envelope.Subscribed{Topic: m.Topic.Name, Offset: &m.Offset, Epoch: m.epochText(), After: &m.after, Recovered: new(bool)}
}

// AppendHistory appends the message as the JSON protocol has it. Unlike that of frame, the result is not kept for the
// next time: a history is large.
func (m *Message) AppendHistory(b []byte) []byte {
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
	const most = 6 // bytes that one becomes at most, besides itself
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

// isLarge reports whether a message is so large that taking memory for its form in JSON costs more than encoding it.
// That memory is taken once, in the size that is needed.
func isLarge(raw *codec.Frame) bool { return len(raw.Payload()) >= envelope.LargeText }

// around is about how many bytes a message has around its payload, or fewer.
const around = 128

// Size is about how many bytes the message takes in a framing.
func (m *Message) Size(f reactor.Framing) int {
	switch f {
	case reactor.FramingRaw:
		return len(m.Raw().Plain())
	case reactor.FramingEvent:
		return len(m.Raw().Plain()) + around
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.json == 0 {
		m.json = m.envelopeSize()
	}
	return m.json
}

// envelopeSize is what the message takes in the JSON protocol, or a little more.
func (m *Message) envelopeSize() int {
	n := len(m.Raw().Payload())
	switch m.Format {
	case topic.FormatText:
		return envelope.TextSize(m.Raw().Payload()) + len(m.Topic.Name) + around
	case topic.FormatBinary:
		n = base64.StdEncoding.EncodedLen(n)
	}
	return n + len(m.Topic.Name) + around
}

// appendEnvelope appends the message as the JSON protocol has it.
func (m *Message) appendEnvelope(b []byte) []byte {
	if m.Gap {
		return envelope.AppendReply(b, nil, "subscribed", m.gapReply())
	}
	if isLarge(m.Raw()) {
		b = slices.Grow(b, m.envelopeSize())
	}
	b = append(b, `{"topic":`...)
	b = envelope.AppendText(b, m.Topic.Name)
	b = append(b, `,"offset":`...)
	b = strconv.AppendUint(b, m.Offset, 10)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, m.Time, 10)
	b = append(b, `,"data":`...)
	payload := m.Raw().Payload()
	switch m.Format {
	case topic.FormatJSON:
		b = append(b, payload...)
	case topic.FormatText:
		b = envelope.AppendTextWithin(b, payload)
	case topic.FormatBinary:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, payload)
		b = append(b, `","encoding":"base64"`...)
	}
	return append(b, '}')
}

// EndpointSource is the source of a broadcast endpoint.
type EndpointSource struct {
	Source
	Published atomic.Uint64
}

// Issue hands a message to this server's connections. The caller holds mu.
func (src *EndpointSource) Issue(f *codec.Frame, at reactor.Stamp) (connections int) {
	src.Published.Add(1)
	connections, _ = src.post(reactor.CommandPublish, (*Broadcast)(f), at)
	return connections
}

// Broadcast is a message for all connections of an endpoint, as its raw frame.
type Broadcast codec.Frame

// Size is that of the raw form. The tables of an endpoint may have no members in another framing.
func (b *Broadcast) Size(f reactor.Framing) int {
	if f == reactor.FramingRaw {
		return len(b.raw().Plain())
	}
	return 0
}

func (b *Broadcast) raw() *codec.Frame { return (*codec.Frame)(b) }

func (b *Broadcast) Frame(to reactor.Framing) *codec.Frame {
	f := b.raw()
	switch to {
	case reactor.FramingEnvelope:
		return envelopeFrame(isLarge(f), func(b []byte) []byte { return envelope.AppendBroadcast(b, f) })
	case reactor.FramingEvent:
		return reactor.Event(f.Opcode(), f.Payload())
	case reactor.FramingEventWrapped:
		return codec.Opaque(envelope.AppendEvent(nil, "broadcast", "", envelope.AppendBroadcast(nil, f)))
	}
	return f
}

package server

import (
	"bytes"
	"strconv"
	"strings"

	"carillon/codec"
)

// Server-sent events (HTML, section 9.2) are the way in for clients that a proxy keeps from WebSockets. A
// connection that carries them is a Conn like any other: one loop, one outbox, the same limits. It only
// differs in its framing, and in that nothing is expected from the client.

// isEvents says whether the connection carries server-sent events.
func (c *Conn) isEvents() bool { return c.framing >= framingEvent }

// wantsEvents says whether a request asks for server-sent events.
func wantsEvents(r *codec.Request) bool {
	return string(r.Method) == "GET" && r.Header("Upgrade") == nil &&
		bytes.Contains(bytes.ToLower(r.Header("Accept")), []byte("text/event-stream"))
}

// appendEventsHead appends the answer that begins a stream of events. It has no length and no chunks, so
// it ends with the connection. No cache may keep it, and nginx must not collect it.
func appendEventsHead(b []byte, origin string, extra [][2]string) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"+
		"Connection: close\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"...)
	if origin != "" {
		b = append(append(append(b, "Access-Control-Allow-Origin: "...), origin...), "\r\nVary: Origin\r\n"...)
	}
	b = codec.AppendFields(b, extra)
	return append(b, "\r\n"...)
}

// parseEventID reads the position that an event had as its id.
func parseEventID(id string) (p Position, ok bool) {
	epoch, offset, ok := strings.Cut(id, ":")
	n, err := strconv.ParseUint(offset, 10, 64)
	return Position{Offset: n, Epoch: epoch}, ok && err == nil && epoch != ""
}

// event is a message as a server-sent event without an id.
func event(op codec.Opcode, payload []byte) *codec.Frame {
	return codec.Opaque(appendMessageEvent(nil, "", op, payload))
}

// eventComment keeps a quiet connection alive.
var eventComment = []byte(":\n\n")

// appendCloseEvent tells the client why the stream ends, as a close frame would.
func appendCloseEvent(b []byte, code codec.CloseCode, reason string) []byte {
	data := append([]byte(`{"code":`), strconv.Itoa(int(code))...)
	data = append(data, `,"reason":`...)
	data = append(appendJSON(data, reason), '}')
	return appendEvent(b, "close", "", data)
}

package server

import (
	"bytes"
	"strings"

	"carillon/codec"
)

// Server-sent events (HTML, section 9.2) are the way in for clients that a proxy keeps from WebSockets. A
// connection that carries them is a Conn like any other: one loop, one outbox, the same limits. It only
// differs in its framing, and in that nothing is expected from the client.

// wantsEvents reports whether a request asks for server-sent events.
func wantsEvents(r *codec.Request) bool {
	if string(r.Method) != "GET" || r.NamesWebSocket() {
		return false
	}
	for name, value := range r.Headers() {
		if bytes.EqualFold(name, []byte("Accept")) && bytes.Contains(bytes.ToLower(value), []byte("text/event-stream")) {
			return true
		}
	}
	return false
}

// appendEventsHead appends the answer that begins a stream of events. It has no length and no chunks, so
// it ends with the connection, which HTTP/1.0 understands too. No cache may keep it, nginx must not collect it, and no
// proxy may compress it (no-transform), which would collect it as well.
func appendEventsHead(b []byte, cors, extra [][2]string) []byte {
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\n"+
		"Connection: close\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"...)
	b = appendCORS(b, cors, extra)
	for i, field := range extra {
		if !ownedByEvents(field[0]) {
			b = codec.AppendFields(b, extra[i:i+1])
		}
	}
	return append(b, "\r\n"...)
}

// ownedByEvents reports whether a header of the answer is there once and is not for the application to set.
func ownedByEvents(name string) bool {
	for _, owned := range []string{"Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "X-Content-Type-Options"} {
		if strings.EqualFold(name, owned) {
			return true
		}
	}
	return false
}

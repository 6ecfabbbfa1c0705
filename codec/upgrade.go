package codec

import (
	"io"
	"sync"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws"
)

// Upgrader says what an endpoint speaks. It must not be changed once it is in use, and is then safe
// from any goroutine.
type Upgrader struct {
	// Subprotocols are the endpoint's, each a token (RFC 6455, section 1.9). The first of the
	// client's list that stands here is chosen.
	Subprotocols []string

	// Deflate accepts permessage-deflate (RFC 7692) when the client offers it, without context
	// takeover in either direction, and with any window that the client asks for.
	Deflate bool
}

// Handshake is what was negotiated.
type Handshake struct {
	Subprotocol int // index into Upgrader.Subprotocols, -1 for none
	Deflate     bool

	// Window is the base-two logarithm of the window, in bytes, that messages to the client may be compressed with: 8
	// to [MaxWindow]. 0 without Deflate.
	Window uint8
}

// Upgrade appends the 101 answer to a request that has passed Parse and CheckUpgrade (RFC 6455,
// section 4.2.2), with the extra headers, names and values, behind those of the handshake. Extra
// headers that the handshake itself owns, or whose names are no tokens, are left out; control
// characters in values become spaces.
//
// The error is a *[Rejection] when a list of subprotocols or extensions is malformed; dst then comes
// back as it was. Views of the request stay good.
func (u *Upgrader) Upgrade(dst []byte, r *Request, extra [][2]string) ([]byte, Handshake, error) {
	h := handshakes.Get().(*handshake)
	defer h.put()
	if err := h.negotiate(u, r); err != nil {
		return dst, Handshake{}, err
	}
	h.extra, h.out = extra, dst
	if _, err := h.upgrader.Upgrade(h); err != nil {
		return dst, Handshake{}, errNotUpgraded
	}
	return h.out, h.result, nil
}

// errNotUpgraded is for requests that have not passed CheckUpgrade.
var errNotUpgraded = badRequest("not a WebSocket handshake")

// handshake gives one request to gobwas/ws and takes the answer from it.
//
// gobwas is not shown the client's bytes: it reads an Upgrade header as one token, wants "upgrade" in
// every Connection header and cuts names in place. It gets a request that says the same in the plainest
// words, so that there is one opinion on what the client has sent, that of this package, and so that
// the size of a head does not matter to its buffers.
type handshake struct {
	upgrader ws.Upgrader
	result   Handshake
	protocol string
	answer   []httphead.Option
	extra    [][2]string
	in, out  []byte
	unread   []byte // of in
	scratch  []byte // a header line on its way out
}

var handshakes = sync.Pool{New: func() any {
	h := new(handshake)
	h.upgrader = ws.Upgrader{
		ReadBufferSize:  1 << 10,
		WriteBufferSize: 1 << 10,
		Header:          h,
		ProtocolCustom:  func([]byte) (string, bool) { return h.protocol, true },
		ExtensionCustom: func([]byte, []httphead.Option) ([]httphead.Option, bool) { return h.answer, true },
	}
	return h
}}

func (h *handshake) put() {
	*h = handshake{upgrader: h.upgrader, in: h.in[:0], scratch: h.scratch[:0]}
	handshakes.Put(h)
}

// negotiate fills in what gobwas will answer and the request it will read.
func (h *handshake) negotiate(u *Upgrader, r *Request) error {
	h.result.Subprotocol = -1
	h.in = append(h.in, "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"...)
	for name, value := range r.Headers() {
		switch {
		case equalFold(name, nameKey) || equalFold(name, nameVersion):
			h.in = append(h.in, name...)
			h.in = append(h.in, ": "...)
			h.in = append(h.in, value...)
			h.in = append(h.in, "\r\n"...)
		case equalFold(name, nameProtocol):
			i, ok := chooseProtocol(value, u.Subprotocols)
			if !ok {
				return errProtocols
			}
			if h.result.Subprotocol < 0 {
				h.result.Subprotocol = i
			}
		case equalFold(name, nameExtensions):
			answer, window, ok := negotiateDeflate(value)
			if !ok {
				return errExtensions
			}
			if h.answer == nil && u.Deflate {
				h.answer, h.result.Window = answer, window
			}
		}
	}
	if i := h.result.Subprotocol; i >= 0 {
		h.protocol = u.Subprotocols[i]
		h.in = append(h.in, "Sec-WebSocket-Protocol: chosen\r\n"...)
	}
	if h.answer != nil {
		h.result.Deflate = true
		h.in = append(h.in, "Sec-WebSocket-Extensions: chosen\r\n"...)
	}
	h.in = append(h.in, "\r\n"...)
	h.unread = h.in
	return nil
}

// Read gives gobwas the request.
func (h *handshake) Read(p []byte) (int, error) {
	if len(h.unread) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.unread)
	h.unread = h.unread[n:]
	return n, nil
}

// Write takes the answer from gobwas.
func (h *handshake) Write(p []byte) (int, error) {
	h.out = append(h.out, p...)
	return len(p), nil
}

// WriteTo gives gobwas the extra headers.
func (h *handshake) WriteTo(w io.Writer) (int64, error) {
	h.scratch = h.scratch[:0]
	for _, field := range h.extra {
		if !ownedByHandshake(field[0]) {
			h.scratch = appendField(h.scratch, field[0], field[1])
		}
	}
	n, err := w.Write(h.scratch)
	return int64(n), err
}

// ownedByHandshake reports whether a header in the answer is not for the application to set.
func ownedByHandshake(name string) bool {
	const prefix = "sec-websocket-"
	if len(name) >= len(prefix) && equalFold(name[:len(prefix)], prefix) {
		return true
	}
	return equalFold(name, nameUpgrade) || equalFold(name, nameConnection) ||
		equalFold(name, "content-length") || equalFold(name, "transfer-encoding")
}

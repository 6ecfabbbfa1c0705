package server

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
)

// Handler is what an application does with the connections of an endpoint. Any function may be nil.
//
// All of them run on the connection's event loop, one at a time for each connection, and must not
// block: every connection of that loop would wait. Start a goroutine for slow work; the methods of
// [Conn] and [Server] may be called from there. A panic closes the connection with 1011 (500 during
// the handshake), is logged with its stack and harms no other connection.
type Handler struct {
	// Upgrade sees a handshake request that is correct and decides about it. A nil error accepts.
	// A *[codec.Rejection] is the answer as it stands; any other error is answered 403 and logged.
	// Before it returns the client has been answered nothing, so one that is refused never sees an
	// open WebSocket. What takes long is for [Request.Defer].
	Upgrade func(r *Request) error

	// Refused is called for each request for the endpoint that is answered with an error and so becomes no connection,
	// be it for a WebSocket or for server-sent events: 400 and 426 for one that is no handshake, 401 and 403 for a
	// token, an origin or a topic, 429 and 503 for limits, and also what Upgrade or the connect hook has said. It may
	// log that, and change the answer: see [Refusal]. What comes to no endpoint, as no request is complete or its path
	// is another one, is only counted in [Stats].
	//
	// It may be called very often, when very many are refused. A panic leaves the answer as it was.
	Refused func(r *Request, refusal *Refusal)

	// Open is called once the handshake is answered, before any message.
	Open func(c *Conn)

	// Message gets each whole message, decompressed and, if it is text, checked to be UTF-8. The
	// payload is valid until Message returns and may be changed: code that needs it longer, such as a goroutine
	// or [Conn.After], keeps a copy (bytes.Clone). With the race detector (go test -race, go run -race) it is
	// overwritten when Message returns. See [JSON] for typed messages.
	Message func(c *Conn, op Opcode, payload []byte)

	// Error is told what went wrong with an open connection, before the connection is closed for it:
	//
	//   - *[PanicError], when Open, Message, Close or a function that was passed along panicked; close code 1011
	//   - *[codec.ProtocolError], when the peer broke a rule or exceeded a limit of [Limits]; its Code
	//   - *[DecodeError], when a message is not what [JSON] expects; its Code, or none with KeepOpen
	//
	// What Error sends still goes out, and when it calls [Conn.Close], its code is the one that the peer
	// gets. After Close only a panic in Close itself is reported. A lost connection is no error here but
	// Close's; messages that a slow consumer missed, which may be very many, are counted in [Stats].
	Error func(c *Conn, err error)

	// Close is called once for each connection that was opened, when nothing can be sent to it any
	// more. The error is always a *[CloseError].
	Close func(c *Conn, err error)
}

func (h *Handler) empty() bool {
	return h.Upgrade == nil && h.Open == nil && h.Message == nil && h.Error == nil && h.Close == nil
}

// Request is a handshake request. It and all its bytes are valid until [Handler.Upgrade] returns, and are
// overwritten then under the race detector; the strings that Cookie and QueryValues return are copies and may be
// kept.
type Request struct {
	codec.Request

	// RemoteAddr is the client's address: see [Conn.RemoteAddr].
	RemoteAddr netip.AddrPort

	// Secure is set when the client has come over TLS: to this server, see Options.TLS, or to a trusted
	// proxy that says so, see Options.TrustedProxies.
	Secure bool

	// Value is attached to the connection when the request is accepted: see [Conn.Value].
	Value any

	// ResponseHeader is added to the response 101, or to the 200 that begins server-sent events, as name and value.
	// What the answer says itself, such as Upgrade or the Content-Type of events, is left out.
	ResponseHeader [][2]string

	scheme     string          // http or https, "" when it is not known
	tls        *tls.Conn       // nil without TLS
	proxied    bool            // by one of Options.TrustedProxies
	topicQuery *protocol.Query // on an endpoint with topics

	token, bound auth.Identity // what the token says, and what Identify was told
	deferred     *deferred     // what has to be done first
}

// TLS describes the connection's TLS, the client's certificates among it, or is nil when there is none. What it
// returns may be kept. Behind a proxy it is about the proxy.
func (r *Request) TLS() *tls.ConnectionState {
	if r.tls == nil {
		return nil
	}
	state := r.tls.ConnectionState()
	return &state
}

// Cookie returns the value of the first cookie of this name, without quotes around it, or "" when there is
// none. Cookies that are malformed are passed over.
func (r *Request) Cookie(name string) string {
	all := http.Request{Header: http.Header{}}
	for n, value := range r.Headers() {
		if len(n) == len("Cookie") && strings.EqualFold(string(n), "Cookie") {
			all.Header.Add("Cookie", string(value))
		}
	}
	cookie, err := all.Cookie(name)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// QueryValues takes the query apart, each time that it is called. Parts that are malformed are left out.
func (r *Request) QueryValues() url.Values {
	values, _ := url.ParseQuery(string(r.Query))
	return values
}

// message returns what a built-in mode does with a message, or nil for none.
func (m Mode) message(s *Server) func(*Conn, codec.Opcode, []byte) {
	switch m {
	case ModeEcho:
		return echo
	case ModeBroadcast:
		return s.relay
	case ModeTopics:
		return takeTopicMessage
	}
	return nil
}

func echo(c *Conn, op codec.Opcode, payload []byte) {
	protocol.CloseRefused(c.core(), c.Send(op, payload))
}

func (s *Server) relay(c *Conn, op codec.Opcode, payload []byte) {
	if !c.core().PaysPublish() {
		return
	}
	c.core().ChargeFanout(len(payload) * len(s.engine.AllShards()))
	if s.opts().Broker == nil {
		_, err := s.broadcast(codec.NewFrame(op, payload), nil, c.endpoint())
		protocol.CloseRefused(c.core(), err)
		return
	}
	m := reactor.Flight{Bytes: reactor.FlightCost + len(payload), Transient: true}
	c.core().BeginPublishing(m)
	sent := func(error) { c.shard().PostDo(c.core(), 0, func() { c.core().EndPublishing(m) }) }
	_, err := s.broadcast(codec.NewFrame(op, payload), sent, c.endpoint())
	if err != nil { // it is not called
		sent(err)
	}
	protocol.CloseRefused(c.core(), err)
}

func takeTopicMessage(c *Conn, op codec.Opcode, payload []byte) {
	protocol.Of(c.core()).TakeMessage(op, payload)
}

// handler returns the one whose functions are called for the connection now.
func (c *Conn) handler() *Handler {
	var attached any
	if o := c.core().Attached(); o != nil {
		attached = o.Handler
	}
	return c.handlerOr(attached)
}

// handlerOr returns the handler that is attached, or that of the endpoint.
func (c *Conn) handlerOr(attached any) *Handler {
	switch h := attached.(type) {
	case nil:
		return &c.endpoint().handler
	case *Handler:
		return h
	}
	return &noHandler
}

// noHandler is that of a connection whose Close is called.
var noHandler Handler

// SetHandler has h handle this connection in place of the endpoint's [Handler], from the next call on:
// in a handler, that is already the next message, even one that came in the same packet; from another
// goroutine, a call that is under way is not disturbed. What h does not have is not called, and on an
// endpoint with a [Mode] its Message takes the place of what the mode does. Upgrade and Open are past and
// not called. With nil the endpoint's handler comes back.
//
// One Handler may serve any number of connections; it must not be changed once it is set. It fails with
// [ErrClosed] when the Close of the handler before was called or is about to be; then nothing of h ever
// is. So exactly one Close is called for each connection, that of its last handler.
func (c *Conn) SetHandler(h *Handler) error {
	before, _ := c.core().Attach(func(o *reactor.Attachment) {
		switch {
		case o.IsDetached():
		case h == nil:
			o.Handler = nil
		default:
			o.Handler = h
		}
	})
	if before.IsDetached() {
		return ErrClosed
	}
	return nil
}

package reactor

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"sync"

	"carillon/codec"
	"carillon/server/internal/certs"
	"carillon/server/internal/limit"
	"carillon/server/internal/logs"
	"carillon/server/internal/tlstable"
	"carillon/server/stats"
)

// A TLS handshake takes up to a millisecond of processor time, for which a loop must not stand still, and crypto/tls
// has it as one function that waits for the client. So it has a goroutine, for as long as it takes: the loop feeds it
// with what comes, and writes what it has to say. It is only begun when the client's first message is there, so that a
// client that says nothing costs no goroutine, and it goes on when a whole record has come, so that one that dribbles
// wakes nothing. See [tlstable.Table] for how many there are and which of them compute.

// tlsHandshake is what the loop and the goroutine of a handshake have in common.
type tlsHandshake struct {
	table   *tlstable.Table
	entry   tlstable.Entry
	session *Session
	ctx     context.Context
	cancel  context.CancelFunc
	arrived Stamp         // owned by the loop
	dead    chan struct{} // closed when the client has gone

	mu     sync.Mutex
	in     []byte        // guarded by mu, as the session's records are: what came and was not read
	out    []byte        // guarded by mu: what is to be written
	posted bool          // guarded by mu: the loop knows of out
	paused bool          // guarded by mu: the socket is not read
	over   bool          // guarded by mu: dead is closed
	ended  bool          // guarded by mu: nothing comes behind in
	wake   chan struct{} // has a value when in has changed
}

// A client may send its request together with the end of its handshake, and as much of what it uploads as the network
// takes. When more than MaxUnread has not been read, which is at least one whole record, its socket is not read. So
// there is that and one read of the loop for each connection, and above a little of it there is a bound for all
// together.
const (
	littleUnread   = MaxHello
	MaxUnread      = 2 * certs.MaxSealed
	maxUnreadTotal = 64 << 20
)

// MaxHello is the size of a client's first message, unless Limits.MaxHead is larger.
const MaxHello = 16 << 10

var (
	errHello      = errors.New("the client's first message is too large")
	errUnread     = errors.New("more data than a TLS handshake has")
	errConnClosed = errors.New("the connection is closed")
	errPanicky    = errors.New("panic in a tls.Config callback")

	errTLSEvicted = errors.New("TLS handshake evicted: limits.max_tls_handshakes is reached")
)

var (
	rejectPlainText = &codec.Rejection{Status: 400, Reason: "this port speaks TLS: use https:// or wss://"}
	RejectTLS       = &codec.Rejection{Status: 400, Reason: "this port does not speak TLS: use http:// or ws://"}
)

// greet collects the client's first message.
func (c *Conn) greet(b []byte) {
	if c.in != nil {
		c.in.Rest = append(c.in.Rest, b...)
		b = c.in.Rest
	}
	c.Hello(b)
}

// Hello is greet for all that has come so far.
func (c *Conn) Hello(b []byte) {
	limit := max(MaxHello, c.sh.Engine.Settings().MaxHead)
	whole, err := certs.WholeHello(b[:min(len(b), limit)])
	switch {
	case err == certs.ErrPlainText:
		c.Mark(MarkTLS, false)
		c.RefuseAs(stats.RefusePlainText, rejectPlainText)
	case err != nil:
		c.CutOff(stats.RefuseTLSHello, err)
	case whole:
		c.beginTLS(b)
	case len(b) >= limit:
		c.CutOff(stats.RefuseTLSHello, errHello)
	default:
		c.KeepHead(b)
	}
}

func (c *Conn) beginTLS(b []byte) {
	t := c.sh.Engine.TLSTable
	h := &tlsHandshake{
		table:   t,
		arrived: c.sh.Engine.Stamp(),
		dead:    make(chan struct{}),
		in:      bytes.Clone(b),
		wake:    make(chan struct{}, 1),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.session = &Session{Conn: c, shake: h}
	h.session.TLS = tls.Server(h.session, c.Entered().Certs.Config())
	h.entry = tlstable.Entry{
		Begin: func() { go h.session.run() },
		Evict: func() { c.sh.PostDo(c, 0, func() { c.evictTLS(h) }) },
		Gone:  h.dead,
	}
	c.setSession(h.session)
	c.DropInbound()
	c.sh.Engine.TLSUnread.Add(int64(len(h.in)))
	h.mu.Lock()
	h.holdUp(c)
	h.mu.Unlock()
	t.Enter(&h.entry, limit.KeyOf(AddrOf(c.remote)))
}

// feed takes what comes during the handshake.
func (c *Conn) feed(s *Session, b []byte) {
	if c.state.Load() != StateHandshake {
		return
	}
	h := s.shake
	h.mu.Lock()
	unread, all := len(h.in)+len(b), c.sh.Engine.TLSUnread.Add(int64(len(b)))
	h.in = append(h.in, b...)
	if s.Records.isWhole(h.in) {
		h.signal()
	}
	h.holdUp(c)
	h.mu.Unlock()
	if unread > littleUnread && all > maxUnreadTotal {
		c.CutOff(stats.RefuseTLSUnread, errUnread)
	}
}

// holdUp has the loop not read the socket while much is unread. The caller holds mu. Called on the loop.
func (h *tlsHandshake) holdUp(c *Conn) {
	if len(h.in) > MaxUnread && !h.paused && c.gc != nil {
		h.paused = true
		c.sh.Interest.pause(c.fd)
	}
}

// readOn has the loop read the socket again. Called on the loop.
func (h *tlsHandshake) readOn(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.paused && c.gc != nil {
		h.paused = false
		c.sh.Interest.resume(c.fd)
	}
}

// signal wakes the goroutine. The caller holds mu.
func (h *tlsHandshake) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// end makes the goroutine end.
func (h *tlsHandshake) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.over = true
		close(h.dead)
	}
}

// read waits for a whole record, and lets others compute meanwhile. It returns no more than that one.
func (h *tlsHandshake) read(b []byte) (int, error) {
	r := &h.session.Records
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.over && !h.ended && !r.isWhole(h.in) {
		h.mu.Unlock()
		h.table.Pause(&h.entry)
		select {
		case <-h.wake:
			h.table.Resume(&h.entry)
		case <-h.dead:
		}
		h.mu.Lock()
	}
	switch {
	case h.over:
		return 0, errConnClosed
	case !r.isWhole(h.in):
		return 0, io.EOF
	}
	n := copy(b, h.in[:r.limit(h.in)])
	r.advance(h.in[:n])
	if h.in = h.in[n:]; len(h.in) == 0 {
		h.in = nil
	}
	h.session.Conn.sh.Engine.TLSUnread.Add(-int64(n))
	if h.paused && len(h.in) <= MaxUnread {
		c := h.session.Conn
		c.sh.PostDo(c, 0, func() {
			if s := c.Session(); s != nil && s.shake == h {
				h.readOn(c)
			}
		})
	}
	return n, nil
}

// mayEnd reports whether the handshake may succeed with what has come: a record behind the client's first message.
func (h *tlsHandshake) mayEnd() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.session.Records.Count > 0 && h.session.Records.isWhole(h.in)
}

// endInput notes that nothing more comes.
func (h *tlsHandshake) endInput() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.signal()
}

// rest takes what was not read.
func (h *tlsHandshake) rest() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.in
	h.in = nil
	h.session.Conn.sh.Engine.TLSUnread.Add(-int64(len(b)))
	return b
}

func (h *tlsHandshake) write(s *Session, b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return 0, errConnClosed
	}
	h.out = append(h.out, b...)
	if !h.posted {
		h.posted = true
		s.Conn.sh.PostDo(s.Conn, 0, func() { s.Conn.sayOn(s) })
	}
	return len(b), nil
}

// sayOn writes what the handshake has to say.
func (c *Conn) sayOn(s *Session) {
	h := s.shake
	if c.Session() != s || h == nil {
		return
	}
	h.mu.Lock()
	b := h.out
	h.out, h.posted = nil, false
	h.mu.Unlock()
	if len(b) == 0 || c.state.Load() != StateHandshake {
		return
	}
	if errno := c.pushBytes(s, b); errno != 0 {
		c.Abort(errno)
	}
}

// run is the goroutine's part.
func (s *Session) run() {
	c, h := s.Conn, s.shake
	err := s.handshake(h)
	c.sh.PostDo(c, 0, func() { c.shaken(s, err) })
}

func (s *Session) handshake(h *tlsHandshake) (err error) {
	defer func() { h.table.Finish(&h.entry, err) }()
	defer func() {
		if p := recover(); p != nil {
			s.Conn.sh.Stats.Panics.Add(1)
			s.Conn.sh.Engine.LogGrave("tls handshake panicked", "remote", s.Conn.RemoteAddr(), "panic", logs.Shorten(fmt.Sprint(p)), "stack", string(debug.Stack()))
			err = errPanicky
		}
	}()
	return s.TLS.HandshakeContext(h.ctx)
}

// shaken is the end of the handshake, on the loop.
func (c *Conn) shaken(s *Session, err error) {
	if c.Session() != s || c.state.Load() != StateHandshake {
		return // it was refused meanwhile, or is gone
	}
	c.sayOn(s)
	if c.Session() != s || c.state.Load() != StateHandshake {
		return
	}
	if err != nil {
		if c.sh.Engine.LogsEvents() {
			c.sh.Engine.LogEvent("tls handshake failed", "id", c.id, "remote", c.RemoteAddr(), "error", logs.Shorten(err.Error()))
		}
		c.RefuseWith(reasonOfTLS(err), nil)
		return
	}
	h := s.shake
	s.shake, s.out, s.charged = nil, &c.sh.sealed, s.Records.Count
	c.sh.Stats.TLSHandshakes.Add(1)
	if s.TLS.ConnectionState().DidResume {
		c.sh.Stats.TLSResumed.Add(1)
	}
	c.sh.Histograms.TLS.Observe(uint32(c.sh.Engine.Stamp() - h.arrived))
	h.cancel()
	h.readOn(c)
	c.decrypt(s, h.rest())
	if c.gc == nil {
		c.inputEnded(io.EOF)
	}
}

// dropHandshake ends a handshake whose client has gone. Its session goes, too, unless a last alert is
// still to be written: a client that does not close its end would hold that memory for the closing handshake.
func (c *Conn) dropHandshake() {
	s := c.Session()
	if s == nil || s.shake == nil {
		return
	}
	s.shake.end()
	s.shake.cancel()
	s.shake.readOn(c)
	s.shake.rest()
	s.shake.table.Leave(&s.shake.entry)
	if len(s.pending) == 0 {
		c.setSession(nil)
	}
}

// evictTLS closes a connection whose place in the table another one has taken. It is not told why: nothing that
// its client could read can be written before the handshake is done.
func (c *Conn) evictTLS(h *tlsHandshake) {
	s := c.Session()
	if s == nil || s.shake != h || c.state.Load() != StateHandshake {
		return
	}
	c.evict(stats.RefuseTLSEvicted, nil, errTLSEvicted)
}

// reasonOfTLS sorts what crypto/tls has to say about a handshake. Some of it only has a text.
func reasonOfTLS(err error) stats.RefuseReason {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	text := err.Error()
	switch {
	case errors.Is(err, errPanicky):
		return stats.RefusePanic
	case errors.As(err, &certificate), strings.Contains(text, "didn't provide a certificate"):
		return stats.RefuseTLSCertificate
	case errors.As(err, &op) && op.Op == "remote error":
		return stats.RefuseTLSAlert
	case errors.As(err, &record):
		return stats.RefuseTLSHello
	case strings.Contains(text, "unsupported versions"), strings.Contains(text, "no cipher suite supported"), strings.Contains(text, "no supported elliptic curves"):
		return stats.RefuseTLSVersion
	case strings.Contains(text, "unsupported application protocols"):
		return stats.RefuseTLSProtocol
	}
	return stats.RefuseTLSFailed
}

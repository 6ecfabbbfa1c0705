package server

import (
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
)

// A TLS handshake takes up to a millisecond of processor time, for which a loop must not stand still, and
// crypto/tls has it as one function that waits for the client. So it has a goroutine, for as long as it
// takes: the loop feeds it with what comes, and writes what it has to say. It is only begun when the
// client's first message is there, so that whoever says nothing costs no goroutine. Of those there are
// Limits.MaxTLSHandshakes, and the others wait in line. Only a part of the processors may be at it at once,
// because otherwise a loop would have to wait for all that were ready before it.

// tlsHandshake is what the loop and the goroutine of a handshake have in common.
type tlsHandshake struct {
	line   *tlsLine
	ctx    context.Context
	cancel context.CancelFunc
	began  stamp // owned by the loop

	mu     sync.Mutex
	in     []byte        // guarded by mu: what came and was not read
	out    []byte        // guarded by mu: what is to be written
	posted bool          // guarded by mu: the loop knows of out
	over   bool          // guarded by mu: nobody waits for it any more
	wake   chan struct{} // has a value when in or over has changed

	place *list.Element // guarded by the line's mu: in it, while it waits
}

// A client may send its request together with the end of its handshake, and as much of what it uploads as the
// network takes. Nothing can hold it up: gnet reads whatever comes. So what a handshake has not read is
// bounded for each connection, and above a little also for all together.
const (
	littleUnread = mostOfHello
	mostUnread   = 4 << 20
	mostOfUnread = 64 << 20
)

// mostOfHello is the size of a client's first message, unless Limits.MaxHead is larger.
const mostOfHello = 16 << 10

var (
	errHello   = errors.New("the client's first message is too large")
	errUnread  = errors.New("more came than a TLS handshake has")
	errNobody  = errors.New("the connection is gone")
	errPanicky = errors.New("panic in a function of the tls.Config")
)

// greet collects the client's first message.
func (c *Conn) greet(b []byte) {
	if c.in != nil {
		c.in.rest = append(c.in.rest, b...)
		b = c.in.rest
	}
	c.hello(b)
}

// hello is greet for all that has come so far.
func (c *Conn) hello(b []byte) {
	limit := max(mostOfHello, int(c.sh.srv.opts().Limits.MaxHead))
	whole, err := wholeHello(b[:min(len(b), limit)])
	switch {
	case err == errPlainText:
		c.mark(markTLS, false)
		c.refuse(RefusePlainText, rejectPlainText)
	case err != nil:
		c.cutOff(RefuseTLSHello, err)
	case whole:
		c.beginTLS(b)
	case len(b) >= limit:
		c.cutOff(RefuseTLSHello, errHello)
	default:
		c.keepHead(b)
	}
}

func (c *Conn) beginTLS(b []byte) {
	h := &tlsHandshake{line: c.sh.srv.tlsLine, in: bytes.Clone(b), wake: make(chan struct{}, 1), began: c.sh.srv.stamp()}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	s := &session{conn: c, shake: h}
	s.tls = tls.Server(s, c.entered().secure.config())
	c.setSession(s)
	c.dropInbound()
	h.line.unread.Add(int64(len(h.in)))
	h.line.enter(s)
}

// feed takes what comes during the handshake.
func (c *Conn) feed(s *session, b []byte) {
	if c.state.Load() != stateHandshake {
		return
	}
	h := s.shake
	h.mu.Lock()
	unread, all := len(h.in)+len(b), h.line.unread.Add(int64(len(b)))
	h.in = append(h.in, b...)
	h.signal()
	h.mu.Unlock()
	if unread > mostUnread || unread > littleUnread && all > mostOfUnread {
		c.cutOff(RefuseTLSUnread, errUnread)
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
	h.over = true
	h.signal()
}

// read waits for what comes, and lets others work meanwhile.
func (h *tlsHandshake) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.in) == 0 && !h.over {
		h.mu.Unlock()
		h.line.rest()
		<-h.wake
		h.line.work()
		h.mu.Lock()
	}
	if h.over {
		return 0, errNobody
	}
	n := copy(b, h.in)
	if h.in = h.in[n:]; len(h.in) == 0 {
		h.in = nil
	}
	h.line.unread.Add(-int64(n))
	return n, nil
}

// rest takes what was not read.
func (h *tlsHandshake) rest() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.in
	h.in = nil
	h.line.unread.Add(-int64(len(b)))
	return b
}

func (h *tlsHandshake) write(s *session, b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return 0, errNobody
	}
	h.out = append(h.out, b...)
	if !h.posted {
		h.posted = true
		s.conn.sh.postDo(s.conn, 0, func() { s.conn.sayOn(s) })
	}
	return len(b), nil
}

// sayOn writes what the handshake has to say.
func (c *Conn) sayOn(s *session) {
	h := s.shake
	if c.session() != s || h == nil {
		return
	}
	h.mu.Lock()
	b := h.out
	h.out, h.posted = nil, false
	h.mu.Unlock()
	if len(b) == 0 || c.state.Load() != stateHandshake {
		return
	}
	if errno := c.pushBytes(s, b); errno != 0 {
		c.abort(errno)
	}
}

// run is the goroutine's part.
func (s *session) run() {
	c, h := s.conn, s.shake
	err := s.handshake(h)
	c.sh.postDo(c, 0, func() { c.shaken(s, err) })
}

func (s *session) handshake(h *tlsHandshake) (err error) {
	h.line.work()
	defer h.line.rest()
	defer func() {
		if p := recover(); p != nil {
			s.conn.sh.stats.Panics.Add(1)
			s.conn.sh.srv.logGrave("tls handshake panicked", "remote", s.conn.RemoteAddr(), "panic", shown(fmt.Sprint(p)), "stack", string(debug.Stack()))
			err = errPanicky
		}
	}()
	return s.tls.HandshakeContext(h.ctx)
}

// shaken is the end of the handshake, on the loop.
func (c *Conn) shaken(s *session, err error) {
	if c.session() != s || c.state.Load() != stateHandshake {
		return // it was refused meanwhile, or is gone
	}
	c.sayOn(s)
	if c.session() != s || c.state.Load() != stateHandshake {
		return
	}
	if err != nil {
		if c.sh.srv.logsEvents() {
			c.sh.srv.logEvent("tls handshake failed", "id", c.id, "remote", c.RemoteAddr(), "error", shown(err.Error()))
		}
		c.refuseWith(reasonOfTLS(err), nil)
		return
	}
	h := s.shake
	s.shake, s.out = nil, &c.sh.sealed
	c.sh.stats.TLSHandshakes.Add(1)
	if s.tls.ConnectionState().DidResume {
		c.sh.stats.TLSResumed.Add(1)
	}
	c.sh.meters.tls.observe(uint32(c.sh.srv.stamp() - h.began))
	h.cancel()
	c.decrypt(s, h.rest())
}

// dropHandshake ends a handshake that nobody waits for any more.
func (c *Conn) dropHandshake() {
	if s := c.session(); s != nil && s.shake != nil {
		s.shake.end()
		s.shake.cancel()
		s.shake.rest()
		s.shake.line.leave(s)
	}
}

// reasonOfTLS sorts what crypto/tls has to say about a handshake. Some of it only has a text.
func reasonOfTLS(err error) RefuseReason {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var op *net.OpError
	text := err.Error()
	switch {
	case errors.Is(err, errPanicky):
		return RefusePanic
	case errors.As(err, &certificate), strings.Contains(text, "didn't provide a certificate"):
		return RefuseTLSCertificate
	case errors.As(err, &op) && op.Op == "remote error":
		return RefuseTLSAlert
	case errors.As(err, &record):
		return RefuseTLSHello
	case strings.Contains(text, "unsupported versions"), strings.Contains(text, "no cipher suite supported"), strings.Contains(text, "no supported elliptic curves"):
		return RefuseTLSVersion
	case strings.Contains(text, "unsupported application protocols"):
		return RefuseTLSProtocol
	}
	return RefuseTLSFailed
}

// tlsLine bounds the handshakes that have a goroutine, and those of them that have a processor.
type tlsLine struct {
	srv *Server
	cpu chan struct{} // has a value for each that computes

	unread atomic.Int64 // bytes that came for all of them and were not read

	mu      sync.Mutex
	running int       // guarded by mu
	waiting list.List // guarded by mu: of *session
}

func newTLSLine(s *Server) *tlsLine {
	return &tlsLine{srv: s, cpu: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))}
}

func (l *tlsLine) work() { l.cpu <- struct{}{} }
func (l *tlsLine) rest() { <-l.cpu }

// enter begins a handshake, or lets it wait until others are done.
func (l *tlsLine) enter(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most := l.srv.opts().Limits.MaxTLSHandshakes; most >= 0 && l.running >= most {
		s.shake.place = l.waiting.PushBack(s)
		return
	}
	l.running++
	go l.serve(s)
}

// serve does one handshake after the other, as long as some wait.
func (l *tlsLine) serve(s *session) {
	for s != nil {
		s.run()
		s = l.next()
	}
}

func (l *tlsLine) next() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.waiting.Front()
	if first == nil {
		l.running--
		return nil
	}
	s := l.waiting.Remove(first).(*session)
	s.shake.place = nil
	return s
}

func (l *tlsLine) leave(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.shake.place != nil {
		l.waiting.Remove(s.shake.place)
		s.shake.place = nil
	}
}

// counts are the handshakes that have a goroutine, and those that wait for one.
func (l *tlsLine) counts() (running, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running, l.waiting.Len()
}

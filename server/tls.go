package server

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"time"

	"carillon/server/stats"
)

// session is the TLS of one connection: crypto/tls as it is, on top of a net.Conn that is this session
// itself. What that does depends on whose the session is. During the handshake it is a goroutine's, which
// may wait: see tlsHandshake. Then it is the loop's: what came is a view of the loop's read buffer, and a
// read beyond it fails for now; what is written collects in a buffer of the shard. So no goroutine waits
// for a connection that is idle. And net/http may have it for a while, on top of its own connection.
//
// Encrypted bytes can only leave in their order and cannot be dropped. So only what is about to be written
// is encrypted, and what waits behind it stays in the outbox, as references to frames that all share.
type session struct {
	tls   *tls.Conn
	conn  *Conn
	shake *tlsHandshake // nil once it went well
	lower net.Conn      // while net/http has the session

	in      []byte  // what came and has not been read, as it came
	waiting []byte  // what came and waits for the connection's turn, as it came
	unread  bool    // something waits there, or in crypto/tls
	out     *[]byte // where the loop wants what is written
	pending []byte  // encrypted, and not taken by the socket: the connection is stalled then
	chunk   int     // bytes of the last write whose encrypted form pending is the rest of
	lost    uint64  // messages that end in these, and are lost if the connection ends now
	ended   bool    // close_notify was sent

	records   records // of which crypto/tls has taken some
	charged   uint32  // how many of those chargeEmpty knows of
	emptyDebt uint32  // for records without data, as of emptyAt, which is the shard's clock
	emptyAt   uint32
}

// errDry is what a read gets when there is nothing more for now. crypto/tls goes on after an error that is
// temporary, with what it has of a record.
var errDry net.Error = dry{}

type dry struct{}

func (dry) Error() string   { return "no more data so far" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

// Read is for crypto/tls.
func (s *session) Read(b []byte) (int, error) {
	switch {
	case s.shake != nil:
		return s.shake.read(b)
	case len(s.in) > 0:
		n := copy(b, s.in[:s.records.limit(s.in)])
		s.records.advance(s.in[:n])
		s.in = s.in[n:]
		return n, nil
	case s.lower != nil:
		n, err := s.lower.Read(b)
		s.records.advance(b[:n])
		return n, err
	}
	return 0, errDry
}

// Write is for crypto/tls.
func (s *session) Write(b []byte) (int, error) {
	switch {
	case s.shake != nil:
		return s.shake.write(s, b)
	case s.lower != nil:
		return s.lower.Write(b)
	}
	*s.out = append(*s.out, b...)
	return len(b), nil
}

// Close is for crypto/tls.
func (s *session) Close() error {
	switch {
	case s.shake != nil:
		s.shake.end()
	case s.lower != nil:
		return s.lower.Close()
	}
	return nil
}

// LocalAddr is for crypto/tls, which shows it to the functions of a tls.Config.
func (s *session) LocalAddr() net.Addr {
	if s.lower != nil {
		return s.lower.LocalAddr()
	}
	return s.conn.sh.engine.addr()
}

// RemoteAddr is like LocalAddr.
func (s *session) RemoteAddr() net.Addr {
	if s.lower != nil {
		return s.lower.RemoteAddr()
	}
	if s.conn.remote == nil {
		return nobody // a client of a unix socket
	}
	return s.conn.remote
}

// The deadlines are net/http's: a loop has its sweep.

// SetDeadline is for crypto/tls.
func (s *session) SetDeadline(t time.Time) error {
	if s.lower != nil {
		return s.lower.SetDeadline(t)
	}
	return nil
}

// SetReadDeadline is for crypto/tls.
func (s *session) SetReadDeadline(t time.Time) error {
	if s.lower != nil {
		return s.lower.SetReadDeadline(t)
	}
	return nil
}

// SetWriteDeadline is for crypto/tls.
func (s *session) SetWriteDeadline(t time.Time) error {
	if s.lower != nil {
		return s.lower.SetWriteDeadline(t)
	}
	return nil
}

// session is nil for a connection without TLS, before the client's first message, and after the end.
func (c *Conn) session() *session {
	if c.ext == nil {
		return nil
	}
	return c.ext.session
}

func (c *Conn) setSession(s *session) {
	c.sh.mu.Lock()
	defer c.sh.mu.Unlock()
	if s == nil && c.ext == nil {
		return
	}
	c.extend().session = s
}

// canAnswer is false while the client could not read an answer, because its TLS handshake is not done.
func (c *Conn) canAnswer() bool {
	if !c.is(markTLS) {
		return true
	}
	s := c.session()
	return s != nil && s.shake == nil
}

// clearSize is how much is decrypted before it is looked at: as much as the loop reads at once.
const clearSize = 64 << 10

// unseal takes what came on a connection that speaks TLS.
func (c *Conn) unseal(b []byte) {
	switch s := c.session(); {
	case s == nil && c.state.Load() == stateHandshake:
		c.greet(b)
	case s == nil:
	case s.shake != nil:
		c.feed(s, b)
	default:
		c.decrypt(s, b)
	}
}

// decrypt reads what came, or has it wait for the connection's turn. What that leads to may take the session away, or
// end it.
func (c *Conn) decrypt(s *session, b []byte) {
	if !c.mustWait() {
		c.decryptUntil(c.sh.turnEnd(), s, b, false)
		return
	}
	s.waiting, s.unread = append(s.waiting, b...), true
	c.wait()
}

// decryptInput goes on with what waits, unless what was decrypted before waits again.
func (c *Conn) decryptInput(deadline time.Duration) {
	if s := c.session(); s != nil && s.unread && !c.isSuspended() {
		b := s.waiting
		s.dropWaiting()
		c.decryptUntil(deadline, s, b, true)
	}
}

// decryptUntil reads until nothing is left, the connection has to wait, or a time. The bytes are the session's own if
// it says so, and otherwise the loop's.
func (c *Conn) decryptUntil(deadline time.Duration, s *session, b []byte, own bool) {
	sh := c.sh
	if sh.clear == nil {
		sh.clear = make([]byte, clearSize)
	}
	s.in = b
	records, dry := s.records.count, false
	for !dry && c.session() == s && !c.is(markPeerDone) && c.state.Load() < stateLingering {
		n, err := s.drain(sh.clear, deadline)
		if !c.pushAnswers(s) {
			return
		}
		if n > 0 {
			c.consume(sh.clear[:n], deadline)
		}
		if err == nil {
			if c.isSuspended() || sh.engine.uptime() >= deadline {
				break
			}
			continue
		}
		if err != errDry && c.session() == s {
			c.unsealed(err)
		}
		dry = true
	}
	if c.session() != s {
		return
	}
	if !dry && !c.is(markPeerDone) && c.state.Load() < stateLingering {
		if !own {
			s.in = bytes.Clone(s.in)
		}
		s.waiting, s.unread = s.in, true
		c.wait()
	}
	s.in = nil
	c.chargeInput(len(b), int(s.records.count-records))
}

// dropWaiting forgets what waits.
func (s *session) dropWaiting() { s.waiting, s.unread = nil, false }

// recordsAtOnce is how many records are read between two looks at the clock.
const recordsAtOnce = 16

// drain decrypts until b is full, nothing is left, or a time.
func (s *session) drain(b []byte, deadline time.Duration) (n int, err error) {
	sh := s.conn.sh
	for reads := 1; n < len(b) && err == nil; reads++ {
		var m int
		m, err = s.tls.Read(b[n:])
		n += m
		if empty := s.chargeEmpty(m > 0, sh.clock); empty != nil {
			err = empty
		}
		if reads%recordsAtOnce == 0 && sh.engine.uptime() >= deadline {
			break
		}
	}
	return n, err
}

// pushAnswers sends what crypto/tls wrote while it read, and reports whether the connection is still there. It answers
// each request for new keys (RFC 8446, section 4.6.3), of which emptyRecordPace does not let many come.
func (c *Conn) pushAnswers(s *session) bool {
	if len(c.sh.sealed) == 0 {
		return true
	}
	if errno := c.push(s); errno != 0 {
		c.abort(errno)
		return false
	}
	return true
}

// unsealed ends a connection on which nothing more can be read. After close_notify, what the client has sent
// before is answered first.
func (c *Conn) unsealed(err error) {
	switch err {
	case io.EOF:
		c.inputEnded(err)
	case errEmptyRecords:
		c.cutEmptyRecords()
	default:
		c.mark(markPeerDone, true)
		c.abort(err)
	}
}

// cutEmptyRecords ends a connection whose client makes the loop work for nothing.
func (c *Conn) cutEmptyRecords() {
	switch c.state.Load() {
	case stateHandshake:
		c.evict(stats.RefuseTLSRecords, nil, errEmptyRecords)
		return
	case stateOpen:
		c.sh.stats.Cut(stats.CutTLSRecords)
	}
	c.abort(errEmptyRecords)
}

// sealChunk is how much is encrypted for one write, and so about how much of one slow connection can wait
// encrypted.
const sealChunk = 16 << 10

// seal encrypts and writes, and returns how many bytes have been encrypted: fewer than there are if the
// socket is full. What it did not take of those is pending, and the connection stalled.
func (c *Conn) seal(b []byte) (n int, errno syscall.Errno) {
	s := c.ext.session
	for n < len(b) && len(s.pending) == 0 {
		chunk := b[n:min(n+sealChunk, len(b))]
		if _, err := s.tls.Write(chunk); err != nil {
			return n, syscall.EPROTO // it has failed before, and the connection is about to end
		}
		if errno := c.push(s); errno != 0 {
			return n, errno
		}
		n += len(chunk)
		s.chunk = len(chunk)
	}
	return n, 0
}

// push writes what was encrypted behind what is pending.
func (c *Conn) push(s *session) syscall.Errno {
	b := c.sh.sealed
	c.sh.sealed = b[:0]
	return c.pushBytes(s, b)
}

// sayEnd sends close_notify (RFC 8446, section 6.1), without which the client could not tell our end from one
// that somebody between us has made up. It returns false if that has to wait, or the connection is gone.
func (c *Conn) sayEnd() bool {
	s := c.session()
	if s == nil || s.shake != nil || s.ended {
		return true
	}
	s.ended = true
	_ = s.tls.CloseWrite() // goes into memory
	if errno := c.push(s); errno != 0 {
		c.abort(errno)
		return false
	}
	return len(s.pending) == 0
}

// closeWith encrypts a last answer and the end, for a connection that no loop has.
func (s *session) closeWith(answer []byte) []byte {
	var b []byte
	s.out = &b
	_, _ = s.tls.Write(answer)
	_ = s.tls.CloseWrite()
	return bytes.Clone(b)
}

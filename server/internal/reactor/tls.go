package reactor

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"time"

	"carillon/server/stats"
)

// Session is the TLS of one connection: crypto/tls as it is, on top of a net.Conn that is this session
// itself. What that does depends on whose the session is. During the handshake it is a goroutine's, which
// may wait: see tlsHandshake. Then it is the loop's: what came is a view of the loop's read buffer, and a
// read beyond it fails for now; what is written collects in a buffer of the shard. So no goroutine waits
// for a connection that is idle. And net/http may have it for a while, on top of its own connection.
//
// Encrypted bytes can only leave in their order and cannot be dropped. So only what is about to be written
// is encrypted, and what waits behind it stays in the outbox, as references to frames that all share.
type Session struct {
	TLS   *tls.Conn
	Conn  *Conn
	shake *tlsHandshake // nil once it went well
	Lower net.Conn      // while net/http has the session

	In      []byte  // what came and has not been read, as it came
	Waiting []byte  // what came and waits for the connection's turn, as it came
	Unread  bool    // something waits there, or in crypto/tls
	out     *[]byte // where the loop wants what is written
	pending []byte  // encrypted, and not taken by the socket: the connection is stalled then
	chunk   int     // bytes of the last write whose encrypted form pending is the rest of
	lost    uint64  // messages that end in these, and are lost if the connection ends now
	ended   bool    // close_notify was sent

	Records   records // of which crypto/tls has taken some
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
func (s *Session) Read(b []byte) (int, error) {
	switch {
	case s.shake != nil:
		return s.shake.read(b)
	case len(s.In) > 0:
		n := copy(b, s.In[:s.Records.limit(s.In)])
		s.Records.advance(s.In[:n])
		s.In = s.In[n:]
		return n, nil
	case s.Lower != nil:
		n, err := s.Lower.Read(b)
		s.Records.advance(b[:n])
		return n, err
	}
	return 0, errDry
}

// Write is for crypto/tls.
func (s *Session) Write(b []byte) (int, error) {
	switch {
	case s.shake != nil:
		return s.shake.write(s, b)
	case s.Lower != nil:
		return s.Lower.Write(b)
	}
	*s.out = append(*s.out, b...)
	return len(b), nil
}

// Close is for crypto/tls.
func (s *Session) Close() error {
	switch {
	case s.shake != nil:
		s.shake.end()
	case s.Lower != nil:
		return s.Lower.Close()
	}
	return nil
}

// LocalAddr is for crypto/tls, which shows it to the functions of a tls.Config.
func (s *Session) LocalAddr() net.Addr {
	if s.Lower != nil {
		return s.Lower.LocalAddr()
	}
	return s.Conn.sh.Engine.Addr()
}

// RemoteAddr is like LocalAddr.
func (s *Session) RemoteAddr() net.Addr {
	if s.Lower != nil {
		return s.Lower.RemoteAddr()
	}
	if s.Conn.remote == nil {
		return UnixClient
	}
	return s.Conn.remote
}

// The deadlines are net/http's: a loop has its sweep.

// SetDeadline is for crypto/tls.
func (s *Session) SetDeadline(t time.Time) error {
	if s.Lower != nil {
		return s.Lower.SetDeadline(t)
	}
	return nil
}

// SetReadDeadline is for crypto/tls.
func (s *Session) SetReadDeadline(t time.Time) error {
	if s.Lower != nil {
		return s.Lower.SetReadDeadline(t)
	}
	return nil
}

// SetWriteDeadline is for crypto/tls.
func (s *Session) SetWriteDeadline(t time.Time) error {
	if s.Lower != nil {
		return s.Lower.SetWriteDeadline(t)
	}
	return nil
}

// Session is nil for a connection without TLS, before the client's first message, and after the end.
func (c *Conn) Session() *Session {
	if c.ext == nil {
		return nil
	}
	return c.ext.session
}

func (c *Conn) setSession(s *Session) {
	c.sh.Mu.Lock()
	defer c.sh.Mu.Unlock()
	if s == nil && c.ext == nil {
		return
	}
	c.Extend().session = s
}

// CanAnswer is false while the client could not read an answer, because its TLS handshake is not done.
func (c *Conn) CanAnswer() bool {
	if !c.Is(MarkTLS) {
		return true
	}
	s := c.Session()
	return s != nil && s.shake == nil
}

// ClearSize is how much is decrypted before it is looked at: as much as the loop reads at once.
const ClearSize = 64 << 10

// unseal takes what came on a connection that speaks TLS.
func (c *Conn) unseal(b []byte) {
	switch s := c.Session(); {
	case s == nil && c.state.Load() == StateHandshake:
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
func (c *Conn) decrypt(s *Session, b []byte) {
	if !c.mustWait() {
		c.decryptUntil(c.sh.TurnEnd(), s, b, false)
		return
	}
	s.Waiting, s.Unread = append(s.Waiting, b...), true
	c.wait()
}

// decryptInput goes on with what waits, unless what was decrypted before waits again.
func (c *Conn) decryptInput(deadline time.Duration) {
	if s := c.Session(); s != nil && s.Unread && !c.IsSuspended() {
		b := s.Waiting
		s.DropWaiting()
		c.decryptUntil(deadline, s, b, true)
	}
}

// decryptUntil reads until nothing is left, the connection has to wait, or a time. The bytes are the session's own if
// it says so, and otherwise the loop's.
func (c *Conn) decryptUntil(deadline time.Duration, s *Session, b []byte, own bool) {
	sh := c.sh
	if sh.clear == nil {
		sh.clear = make([]byte, ClearSize)
	}
	s.In = b
	records, dry := s.Records.Count, false
	for !dry && c.Session() == s && !c.Is(MarkPeerDone) && c.state.Load() < stateLingering {
		n, err := s.drain(sh.clear, deadline)
		if !c.pushAnswers(s) {
			return
		}
		if n > 0 {
			c.consume(sh.clear[:n], deadline)
		}
		if err == nil {
			if c.IsSuspended() || sh.Engine.Uptime() >= deadline {
				break
			}
			continue
		}
		if err != errDry && c.Session() == s {
			c.unsealed(err)
		}
		dry = true
	}
	if c.Session() != s {
		return
	}
	if !dry && !c.Is(MarkPeerDone) && c.state.Load() < stateLingering {
		if !own {
			s.In = bytes.Clone(s.In)
		}
		s.Waiting, s.Unread = s.In, true
		c.wait()
	}
	s.In = nil
	c.chargeInput(len(b), int(s.Records.Count-records))
}

// DropWaiting forgets what waits.
func (s *Session) DropWaiting() { s.Waiting, s.Unread = nil, false }

// recordsAtOnce is how many records are read between two looks at the clock.
const recordsAtOnce = 16

// drain decrypts until b is full, nothing is left, or a time.
func (s *Session) drain(b []byte, deadline time.Duration) (n int, err error) {
	sh := s.Conn.sh
	for reads := 1; n < len(b) && err == nil; reads++ {
		var m int
		m, err = s.TLS.Read(b[n:])
		n += m
		if empty := s.chargeEmpty(m > 0, sh.Clock); empty != nil {
			err = empty
		}
		if reads%recordsAtOnce == 0 && sh.Engine.Uptime() >= deadline {
			break
		}
	}
	return n, err
}

// pushAnswers sends what crypto/tls wrote while it read, and reports whether the connection is still there. It answers
// each request for new keys (RFC 8446, section 4.6.3), of which emptyRecordPace does not let many come.
func (c *Conn) pushAnswers(s *Session) bool {
	if len(c.sh.sealed) == 0 {
		return true
	}
	if errno := c.push(s); errno != 0 {
		c.Abort(errno)
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
		c.Mark(MarkPeerDone, true)
		c.Abort(err)
	}
}

// cutEmptyRecords ends a connection whose client makes the loop work for nothing.
func (c *Conn) cutEmptyRecords() {
	switch c.state.Load() {
	case StateHandshake:
		c.evict(stats.RefuseTLSRecords, nil, errEmptyRecords)
		return
	case StateOpen:
		c.sh.Stats.Cut(stats.CutTLSRecords)
	}
	c.Abort(errEmptyRecords)
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
		if _, err := s.TLS.Write(chunk); err != nil {
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
func (c *Conn) push(s *Session) syscall.Errno {
	b := c.sh.sealed
	c.sh.sealed = b[:0]
	return c.pushBytes(s, b)
}

// sayEnd sends close_notify (RFC 8446, section 6.1), without which the client could not tell our end from a forged one.
// It returns false if that has to wait, or the connection is gone.
func (c *Conn) sayEnd() bool {
	s := c.Session()
	if s == nil || s.shake != nil || s.ended {
		return true
	}
	s.ended = true
	_ = s.TLS.CloseWrite() // goes into memory
	if errno := c.push(s); errno != 0 {
		c.Abort(errno)
		return false
	}
	return len(s.pending) == 0
}

// CloseWith encrypts a last answer and the end, for a connection that no loop has.
func (s *Session) CloseWith(answer []byte) []byte {
	var b []byte
	s.out = &b
	_, _ = s.TLS.Write(answer)
	_ = s.TLS.CloseWrite()
	return bytes.Clone(b)
}

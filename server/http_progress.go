package server

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// net/http lets a request take its time: a body that never ends, and an answer that is never read, keep a goroutine,
// 22 KB and a socket for ever. Its own time-outs are for a whole request and a whole answer, and so would end long
// uploads, downloads and streams. What is bounded here is the time without progress.
//
// A body earns its time: the client has Limits.BodyTimeout to begin with, and progressRate bytes give back one second
// of what it has kept a read waiting (as mod_reqtimeout of Apache has it). Of an answer that is being written, the
// client has to take as much in each Limits.WriteTimeout. Between writes, and before a handler reads, no time runs.
//
// A deadline that a handler sets ([http.ResponseController]) takes the place of this until its request ends, and so
// does Hijack.

// progressRate is the bytes per second below which a client is cut off. A modem from 1962 manages 37, the slowest
// mobile networks some thousand.
const progressRate = 500

var (
	errBodyTimeout  = &progressError{"the request body did not arrive within limits.body_timeout"}
	errWriteStalled = &progressError{"the client read too little of the response within limits.write_timeout"}
)

// progressError is what a handler gets. It is a time-out for those who ask.
type progressError struct{ text string }

var _ net.Error = (*progressError)(nil)

func (e *progressError) Error() string   { return e.text }
func (e *progressError) Timeout() bool   { return true }
func (e *progressError) Temporary() bool { return false }

func (e *progressError) Unwrap() error { return os.ErrDeadlineExceeded }

// progress is the state of one connection's deadlines.
type progress struct {
	mu       sync.Mutex
	body     time.Duration // guarded by mu: the limit for a body; 0 while none is to be read, or the handler has its own deadline
	bodyLeft time.Duration // guarded by mu: what is left of it
	write    time.Duration // guarded by mu: the limit for a write; 0 as with body
	writeSet time.Time     // guarded by mu: the deadline of the socket
	stalled  bool          // guarded by mu: nothing more is written, such as the end of TLS, which would wait again
}

// limitWrites bounds what is written from now on.
func (c *plainConn) limitWrites() {
	p := &c.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write, p.writeSet = max(c.listener.srv.opts().Limits.WriteTimeout, 0), time.Time{}
}

// limitBody bounds the body of a request, before that is handled.
func (c *plainConn) limitBody() {
	l := &c.listener.srv.opts().Limits
	p := &c.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.BodyTimeout > 0 {
		p.body, p.bodyLeft = l.BodyTimeout, l.BodyTimeout
	}
}

// SetReadDeadline ends the time for a body: net/http calls it when a body is at its end, and a handler when it has
// a time of its own.
func (c *plainConn) SetReadDeadline(t time.Time) error {
	c.progress.mu.Lock()
	defer c.progress.mu.Unlock()
	c.progress.body = 0
	return c.streamConn.SetReadDeadline(t)
}

// SetWriteDeadline is the same for the answer.
func (c *plainConn) SetWriteDeadline(t time.Time) error {
	c.progress.mu.Lock()
	defer c.progress.mu.Unlock()
	c.progress.write = 0
	return c.streamConn.SetWriteDeadline(t)
}

// SetDeadline is both.
func (c *plainConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// readBody reads, within the time that is left if it is for a body.
func (c *plainConn) readBody(b []byte) (int, error) {
	p := &c.progress
	p.mu.Lock()
	isBody, began := p.body > 0, time.Time{}
	if isBody {
		began = time.Now()
		_ = c.streamConn.SetReadDeadline(began.Add(p.bodyLeft))
	}
	p.mu.Unlock()
	n, err := c.streamConn.Read(b)
	if !isBody {
		return n, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.body == 0 {
		return n, err // the handler has set a deadline meanwhile
	}
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		p.body = 0 // the deadline of the socket stays: whatever reads on gets the same
		c.sh.Stats.CutHTTP(PlainCutBodyTimeout)
		return 0, errBodyTimeout
	}
	p.bodyLeft = min(p.bodyLeft-time.Since(began)+time.Duration(n)*time.Second/progressRate, p.body)
	return n, err
}

func (c *plainConn) isStalled() bool {
	c.progress.mu.Lock()
	defer c.progress.mu.Unlock()
	return c.progress.stalled
}

// stall ends a connection's writes.
func (c *plainConn) stall() error {
	c.progress.mu.Lock()
	defer c.progress.mu.Unlock()
	c.progress.stalled = true
	c.sh.Stats.CutHTTP(PlainCutWriteTimeout)
	return errWriteStalled
}

// mayWrite renews the time for a write, and returns it.
func (c *plainConn) mayWrite(window time.Duration) (time.Duration, bool) {
	p := &c.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.write == 0 {
		return 0, false
	}
	if window == 0 {
		window = p.write
	}
	if end := time.Now().Add(window); window != p.write || end.Sub(p.writeSet) > p.write/16 {
		p.writeSet = end
		_ = c.streamConn.SetWriteDeadline(end)
	}
	return p.write, true
}

// probeTime is for a try whether a socket takes bytes that was not called writable: see [Conn.flushLate].
const probeTime = 5 * time.Millisecond

// progressing writes again and again while the client takes enough of it. The function writes what is left.
func (c *plainConn) progressing(write func() (int64, error)) (written int64, err error) {
	for {
		limit, ok := c.mayWrite(0)
		n, err := write()
		written += n
		if !ok || !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
		if need := int64(limit.Seconds() * progressRate); n < need {
			if _, ok := c.mayWrite(probeTime); !ok {
				return written, err
			}
			more, err := write()
			if written += more; !errors.Is(err, os.ErrDeadlineExceeded) {
				return written, err
			}
			if n+more < max(need, 1) {
				return written, c.stall()
			}
		}
	}
}

func (c *plainConn) Write(b []byte) (int, error) {
	if c.isStalled() {
		return 0, errWriteStalled
	}
	defer yieldToLoops()
	n, err := c.progressing(func() (int64, error) {
		n, err := c.streamConn.Write(b)
		b = b[n:]
		return int64(n), err
	})
	return int(n), err
}

// filePart is how much of a file is sent in one call.
const filePart = 4 << 20

// ReadFrom sends a file without copying it (sendfile), and copies everything else.
func (c *plainConn) ReadFrom(r io.Reader) (int64, error) {
	left := &io.LimitedReader{R: r, N: 1<<63 - 1}
	if limited, ok := r.(*io.LimitedReader); ok {
		left = limited
	}
	file, isFile := left.R.(*os.File)
	if isFile {
		info, err := file.Stat()
		isFile = err == nil && info.Mode().IsRegular()
	}
	stream, canSend := c.streamConn.(io.ReaderFrom)
	if !isFile || !canSend {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	var written int64
	for left.N > 0 {
		n, err := c.progressing(func() (int64, error) {
			part := &io.LimitedReader{R: file, N: min(left.N, filePart)}
			n, err := stream.ReadFrom(part)
			left.N -= n
			if at += n; err != nil { // without sendfile, more was read than written
				_, _ = file.Seek(at, io.SeekStart)
			}
			return n, err
		})
		written += n
		if err != nil || n == 0 {
			return written, err
		}
	}
	return written, nil
}

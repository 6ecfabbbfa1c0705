package server

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/internal/shrink"
	"carillon/server/internal/reactor"
	"carillon/server/internal/sys"
)

// detachedConn is a connection on its way from a loop to the http.Server.
type detachedConn struct {
	sh      *reactor.Shard
	entered *reactor.Listener
	fd      int              // a duplicate
	remote  *net.TCPAddr     // as in Conn
	counted bool             // as in Conn
	early   []byte           // what the loop has read, decrypted if there is a session
	session *reactor.Session // nil without TLS
}

// plainListener is what the http.Server accepts from: the loops put connections in, and never wait.
type plainListener struct {
	srv *Server

	mu     sync.Mutex
	filled sync.Cond      // queue has become longer, or closed is set
	queue  []detachedConn // no longer than the number of sockets
	turn   int            // which of the http.Servers accepts
	closed bool
	conns  shrink.Map[*plainConn, struct{}] // those that were accepted and not given away since
}

func newPlainListener(s *Server) *plainListener {
	l := &plainListener{srv: s}
	l.filled.L = &l.mu
	return l
}

// put takes over the descriptor, or returns false when it is too late for that.
func (l *plainListener) put(h detachedConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.queue = append(l.queue, h)
	l.filled.Signal()
	return true
}

// plainTurn is what one of the http.Servers accepts from until it is another one's turn.
type plainTurn struct {
	*plainListener
	mine int
}

func (l *plainListener) newTurn() *plainTurn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &plainTurn{l, l.turn}
}

// endTurn makes Accept fail for the current turn.
func (l *plainListener) endTurn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	l.filled.Broadcast()
}

func (t *plainTurn) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.turn != t.mine
}

// Close ends all of it, unless it is another server's turn: an http.Server that goes closes its listener.
func (t *plainTurn) Close() error {
	if t.over() {
		return nil
	}
	return t.plainListener.Close()
}

// Accept makes the connections one after the other, because each takes a second descriptor meanwhile.
func (t *plainTurn) Accept() (net.Conn, error) {
	for {
		h, ok := t.take()
		if !ok {
			return nil, net.ErrClosed
		}
		c, err := t.open(h)
		switch {
		case err == nil && h.session != nil:
			return c.secured(h.session), nil
		case err == nil:
			return c, nil
		}
		t.srv.engine.LogLoss("request refused", h.remote.AddrPort(), err)
		t.refuse(h, RefuseDescriptors, reactor.RejectDescriptors)
	}
}

func (t *plainTurn) take() (h detachedConn, ok bool) {
	l := t.plainListener
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closed && l.turn == t.mine {
		l.filled.Wait()
	}
	if len(l.queue) == 0 || l.turn != t.mine {
		return detachedConn{}, false
	}
	h = l.queue[0]
	if l.queue = l.queue[1:]; len(l.queue) == 0 {
		l.queue = nil
	}
	return h, true
}

func (l *plainListener) open(h detachedConn) (*plainConn, error) {
	stream, err := streamOf(h.fd)
	if err != nil {
		return nil, err
	}
	_ = unix.Close(h.fd)
	c := &plainConn{streamConn: stream, listener: l, sh: h.sh, entered: h.entered, remote: h.remote, counted: h.counted, early: h.early}
	c.limitWrites()
	l.mu.Lock()
	l.conns.Set(c, struct{}{})
	l.mu.Unlock()
	h.sh.Stats.PlainHTTP.Add(1)
	return c, nil
}

// streamConn is a [*net.TCPConn] or a [*net.UnixConn].
type streamConn interface {
	net.Conn
	syscall.Conn
	CloseRead() error
	CloseWrite() error
}

// streamOf makes a connection of a descriptor, which stays the caller's.
func streamOf(fd int) (streamConn, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(own), "stream")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("create a connection from a socket: %w", err)
	}
	return conn.(streamConn), nil
}

// refuse answers at once, as accept does when there are too many: the kernel may reset the connection
// before the client has read the answer.
func (l *plainListener) refuse(h detachedConn, why RefuseReason, r *codec.Rejection) {
	h.sh.Stats.Refusals[why].Add(1)
	answer := r.AppendResponse(nil)
	if h.session != nil {
		answer = h.session.CloseWith(answer)
	}
	_, _ = sys.Write(int32(h.fd), answer)
	_ = unix.Close(h.fd)
	l.srv.plain.entrance.leave()
	l.srv.engine.Release(h.remote, h.counted)
	l.srv.engine.SocketClosed()
}

// Close ends Accept for good. Those who wait for it came too late.
func (l *plainListener) Close() error {
	l.mu.Lock()
	late := l.queue
	l.queue, l.closed = nil, true
	l.filled.Broadcast()
	l.mu.Unlock()
	for _, h := range late {
		l.refuse(h, RefuseDraining, reactor.RejectDraining)
	}
	return nil
}

// Addr is the first address that the server listens on.
func (l *plainListener) Addr() net.Addr { return l.srv.engine.Listeners[0].Addr }

func (l *plainListener) members() []*plainConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*plainConn, 0, l.conns.Len())
	for c := range l.conns.All() {
		list = append(list, c)
	}
	return list
}

// leave takes c out of the list. It returns true once for each connection: that caller must see to it that the socket
// is counted as closed.
func (l *plainListener) leave(c *plainConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, was := l.conns.Lookup(c)
	l.conns.Delete(c)
	return was
}

// plainConn is a connection that the http.Server serves, or the application when it has hijacked it. Of what net/http
// asks a connection for besides a net.Conn, it has ReadFrom (sendfile) and CloseWrite.
type plainConn struct {
	streamConn
	listener *plainListener
	sh       *reactor.Shard // where it was accepted
	entered  *reactor.Listener
	remote   *net.TCPAddr // still known when the peer is gone; as in Conn
	counted  bool         // as in Conn
	early    []byte       // what the loop has read; owned by the reader
	progress progress
	turn     httpTurn
	isIn     atomic.Bool // its place at the entrance has been given back
}

// RemoteAddr is the address at the other end.
func (c *plainConn) RemoteAddr() net.Addr {
	if c.remote == nil {
		return reactor.UnixClient
	}
	return c.remote
}

func (c *plainConn) Read(b []byte) (int, error) {
	if len(c.early) == 0 {
		yieldToLoops()
		return c.readBody(b)
	}
	n := copy(b, c.early)
	c.skip(n)
	return n, nil
}

// yieldToLoops lets other goroutines run. One that serves a client which sends request upon request never blocks, so
// that an event loop that becomes ready would wait until Go's scheduler preempts it, 10 ms for each such client.
func yieldToLoops() { runtime.Gosched() }

// WriteTo is TCPConn's own, which would leave out what the loop has read.
func (c *plainConn) WriteTo(w io.Writer) (int64, error) {
	var early int64
	if len(c.early) > 0 {
		n, err := w.Write(c.early)
		c.skip(n)
		if early = int64(n); err != nil {
			return early, err
		}
	}
	n, err := io.Copy(w, c.streamConn) // which knows TCPConn.WriteTo; only a handler that hijacked it calls this
	return early + n, err
}

func (c *plainConn) skip(n int) {
	if c.early = c.early[n:]; len(c.early) == 0 {
		c.early = nil
	}
}

// Close closes the socket, which from then on does not count.
func (c *plainConn) Close() error {
	err := c.streamConn.Close()
	c.enters()
	if c.listener.leave(c) {
		c.listener.srv.engine.Release(c.remote, c.counted)
		c.listener.srv.engine.SocketClosed()
	}
	return err
}

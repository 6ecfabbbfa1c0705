package generator

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"syscall"

	"carillon/loadtest/internal/wsclient"

	"golang.org/x/sys/unix"
)

type state uint8

const (
	stateClosed state = iota
	stateDialing
	stateUpgrading // the request was sent
	stateOpen
	stateClosing // our close frame was sent
)

// conn is one connection. There are tens of thousands in a process: what a quiet one does not need is
// not here.
type conn struct {
	fd         int32
	generation int32 // tells a connection from the one that had its slot before
	state      state
	compressed bool
	member     bool // was open when the window began
	back       bool // storm: was open again after it was cut off
	tries      uint8
	began      int64 // of the attempt to connect

	partial  []byte // of a frame or of the server's head
	unsent   []byte // what the full socket did not take
	fragment *fragment

	sent uint32 // messages
	owed uint32 // messages that were due while the socket was full
	skip uint32 // closed loop: messages up to this one are given up
}

// dial begins to connect.
func (w *worker) dial(i int, now int64) {
	c := &w.conns[i]
	c.began = now
	if err := w.connect(i, c); err != nil {
		w.fail(i, reasonFor(err))
	}
}

func (w *worker) connect(i int, c *conn) (err error) {
	address := w.spec.Targets[w.targetOf(i)].Address
	family := unix.AF_INET
	if address.Addr().Is6() {
		family = unix.AF_INET6
	}
	if c.fd, err = socket(family); err != nil {
		c.fd = -1
		return err
	}
	c.state = stateDialing
	_ = unix.SetsockoptInt(int(c.fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if n := len(w.dialer.sources); n > 0 {
		_ = bindLate(c.fd)
		from := netip.AddrPortFrom(w.dialer.sources[int(w.id(i))%n], 0)
		if err = unix.Bind(int(c.fd), sockaddr(from)); err != nil {
			return err
		}
	}
	if err = unix.Connect(int(c.fd), sockaddr(address)); err != nil && err != unix.EINPROGRESS {
		return err
	}
	return w.poll.add(c.fd, int32(i), c.generation)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// reasonFor words an error of the system.
func reasonFor(err error) string {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return "no free port: use more --sources"
	case errors.Is(err, unix.EMFILE):
		return "too many open files in the generator"
	}
	return err.Error()
}

// close gives the slot free. Events that are still under way to it are told by their generation.
func (w *worker) close(c *conn) {
	if c.fd >= 0 {
		_ = unix.Close(int(c.fd))
	}
	if c.state == stateOpen || c.state == stateClosing {
		w.Open--
	}
	c.fd, c.state = -1, stateClosed
	c.generation++
	c.partial, c.unsent, c.fragment = nil, nil, nil
}

// fail ends an attempt to connect.
func (w *worker) fail(i int, reason string) {
	w.close(&w.conns[i])
	if w.reconnector.running {
		w.reconnector.failed(w, i, w.at(i, reason))
		return
	}
	w.Failed++
	w.dialer.inFlight--
	count(w.failedBy, w.at(i, reason))
}

// lose ends an open connection before its time.
func (w *worker) lose(i int, reason string) {
	c := &w.conns[i]
	switch {
	case c.state == stateClosed:
	case c.state == stateDialing || c.state == stateUpgrading:
		w.fail(i, reason)
	case c.state == stateClosing:
		w.close(c)
	case w.reconnector.running:
		w.close(c)
		w.reconnector.cut(w, i)
	default:
		w.close(c)
		w.Lost++
		w.shares[w.targetOf(i)].Lost++
		count(w.lostBy, w.at(i, reason))
	}
}

// handle works off what the poller has found.
func (w *worker) handle(events int) {
	for n := range events {
		if n&63 == 63 {
			w.sender.turn(w, Monotonic()) // long batches must not delay the schedule
		}
		i, generation, readable, writable, ended := w.poll.event(n)
		c := &w.conns[i]
		if c.generation != generation || c.state == stateClosed {
			continue
		}
		if c.state == stateDialing {
			w.dialed(int(i), c, ended)
			continue
		}
		if writable && (len(c.unsent) > 0 || c.owed > 0) {
			w.flush(int(i), c)
		}
		if (readable || ended) && c.generation == generation {
			w.read(int(i), c, ended)
		}
	}
}

// dialed sends the request, now that the connection stands, or says why it does not.
func (w *worker) dialed(i int, c *conn, ended bool) {
	if ended {
		e, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && e != 0 {
			w.fail(i, reasonFor(syscall.Errno(e)))
			return
		}
	}
	c.state = stateUpgrading
	w.batch = append(w.batch[:0], w.spec.Targets[w.targetOf(i)].Handshake.Request...)
	w.batch = append(wsclient.AppendKey(w.batch, w.seed(i, c)), "\r\n\r\n"...)
	w.write(i, c, w.batch)
}

// seed is that of the key of the connection's handshake.
func (w *worker) seed(i int, c *conn) uint64 {
	return w.spec.Run ^ uint64(w.id(i))<<32 ^ uint64(uint32(c.generation))
}

// read takes all that has come for a connection.
func (w *worker) read(i int, c *conn, ended bool) {
	for {
		into := w.buf
		kept := len(c.partial)
		if kept > 0 {
			into = c.partial[kept:cap(c.partial)]
		}
		n, e := read(c.fd, into)
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return
		case e != 0:
			w.lose(i, e.Error())
			return
		case n == 0:
			w.lose(i, "closed by the server without a close frame")
			return
		}
		w.Bytes += int64(n)
		data := into[:n]
		if kept > 0 {
			data = c.partial[:kept+n]
		}
		now := Monotonic()
		rest, need, ok := w.consume(i, c, data, now)
		if !ok {
			return
		}
		w.keep(c, rest, need)
		w.sender.received(w, i, c, now)
		if c.state == stateClosed || n < len(into) && !ended {
			return
		}
	}
}

// keep puts the beginning of a frame, of which it is known how many bytes it needs, by.
func (w *worker) keep(c *conn, rest []byte, need int) {
	if len(rest) == 0 {
		if c.partial != nil {
			w.spare, c.partial = c.partial[:0], nil
		}
		return
	}
	if room := need + 2048; cap(c.partial) < room {
		if cap(w.spare) >= room {
			c.partial, w.spare = w.spare, nil
		} else {
			c.partial = make([]byte, 0, room)
		}
	}
	n := copy(c.partial[:cap(c.partial)], rest)
	c.partial = c.partial[:n]
}

// write sends bytes. What the socket does not take now goes when it can; the bytes are copied then.
func (w *worker) write(i int, c *conn, b []byte) {
	if len(c.unsent) > 0 {
		c.unsent = append(c.unsent, b...)
		return
	}
	for {
		n, e := write(c.fd, b)
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			n = 0
		case e != 0:
			w.lose(i, e.Error())
			return
		}
		if n < len(b) {
			c.unsent = append(c.unsent, b[n:]...)
		}
		return
	}
}

// flush sends what the socket did not take before.
func (w *worker) flush(i int, c *conn) {
	if unsent := c.unsent; len(unsent) > 0 {
		c.unsent = nil
		w.write(i, c, unsent)
	}
	if c.state == stateOpen && len(c.unsent) == 0 {
		w.sender.send(w, i, Monotonic())
	}
}

// control sends a control frame.
func (w *worker) control(i int, c *conn, op byte, payload []byte) {
	w.batch = wsclient.AppendFrame(w.batch[:0], op, false, rand.Uint32(), payload)
	w.write(i, c, w.batch)
}

// finish says goodbye on all connections, so that the servers end them.
func (w *worker) finish() {
	w.sendReport(eventProgress) // what happens from here on is no part of the run
	w.phase = phaseFinishing
	w.reconnector.running = false
	w.drainEnd = Monotonic() + int64(DrainQuiet)/2
	for i := range w.conns {
		c := &w.conns[i]
		if c.state != stateOpen {
			continue
		}
		w.control(i, c, wsclient.OpClose, []byte{1000 >> 8, 1000 & 0xff})
		if c.state == stateOpen {
			c.state = stateClosing
		}
	}
}

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

// conn is one connection. A process has tens of thousands, so an idle one holds no buffer.
type conn struct {
	fd         int32
	generation int32 // distinguishes it from earlier connections in its slot
	state      state
	compressed bool
	member     bool // was open when the window began
	back       bool // storm: has reconnected
	tries      uint8
	began      int64 // when connecting began

	partial  []byte // start of a frame or response head
	unsent   []byte // rest of a write to a full socket
	fragment *fragment

	sent uint32 // messages
	owed uint32 // messages due while the socket was full
	skip uint32 // closed loop: messages below this are given up
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

// reasonFor words a system error.
func reasonFor(err error) string {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return "no free local port: use more --sources"
	case errors.Is(err, unix.EMFILE):
		return "too many open files in the generator"
	}
	return err.Error()
}

// close frees the slot. Its generation changes, so that pending events are ignored.
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

// lose ends an open connection that the run still needs.
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

// handle processes the events of the poller.
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

// dialed sends the handshake request once the connection is established.
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

// seed is the seed of the connection's Sec-WebSocket-Key.
func (w *worker) seed(i int, c *conn) uint64 {
	return w.spec.Run ^ uint64(w.id(i))<<32 ^ uint64(uint32(c.generation))
}

// read reads from a connection until its socket is empty.
func (w *worker) read(i int, c *conn, ended bool) {
	for {
		into := w.buf
		held := len(c.partial)
		if held > 0 {
			into = c.partial[held:cap(c.partial)]
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
		if held > 0 {
			data = c.partial[:held+n]
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

// keep stores an incomplete frame that needs the given number of bytes.
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

// write sends b. What the socket does not accept is copied and sent later.
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

// flush sends the rest of earlier writes.
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

// finish sends a close frame on every connection.
func (w *worker) finish() {
	w.sendReport(eventProgress) // what follows is not part of the run
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

//go:build linux

package main

import (
	"bytes"

	"golang.org/x/sys/unix"
)

type conn struct {
	fd     int // -1 once it is closed
	path   path
	member int    // its place in floor.members
	rest   []byte // read, but not yet a whole frame
}

type path byte

const (
	none path = iota // before the handshake
	echo
	broadcast
)

// read takes what has arrived, in one read(2).
func (f *floor) read(c *conn) {
	kept := copy(f.buffer[:], c.rest)
	n, errno := read(c.fd, f.buffer[kept:])
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n == 0 {
		f.close(c)
		return
	}
	data := f.buffer[:kept+n]
	if c.path == none {
		data = f.handshake(c, data)
	}
	if c.path != none {
		data = f.frames(c, data)
	}
	c.rest = append(c.rest[:0], data...)
}

// handshake returns what is left of data.
func (f *floor) handshake(c *conn, data []byte) []byte {
	head, rest, whole := bytes.Cut(data, []byte("\r\n\r\n"))
	if !whole && len(data) < 8<<10 {
		return data
	}
	answer, path := upgrade(head)
	if !whole || path == none {
		_, _ = write(c.fd, answer)
		f.close(c)
		return nil
	}
	if !f.send(c, answer) {
		return nil
	}
	if c.path = path; path == broadcast {
		c.member = len(f.members)
		f.members = append(f.members, c)
	}
	return rest
}

// frames answers every whole frame in data and returns what is left.
func (f *floor) frames(c *conn, data []byte) []byte {
	for c.fd >= 0 {
		frame, rest, ok := next(data)
		if !ok {
			f.close(c)
			break
		}
		if frame == nil {
			return data
		}
		data = rest
		switch kind := frame[0]; {
		case kind == finText || kind == finBinary:
			f.message(c, frame)
		case kind == finPing:
			frame[0] = finPong
			f.send(c, frame)
		case kind == finPong:
		default: // a close frame is answered, anything else is not supported
			if kind == finClose {
				_, _ = write(c.fd, frame)
			}
			f.close(c)
		}
	}
	return nil
}

func (f *floor) message(c *conn, frame []byte) {
	if c.path == echo {
		f.send(c, frame)
		return
	}
	// Backwards, because closing puts the last member in the place of the closed one.
	for i := len(f.members) - 1; i >= 0; i-- {
		f.send(f.members[i], frame)
	}
}

// send closes the connection if its socket does not take the whole frame.
func (f *floor) send(c *conn, frame []byte) bool {
	if n, errno := write(c.fd, frame); errno != 0 || n < len(frame) {
		f.close(c)
		return false
	}
	return true
}

func (f *floor) close(c *conn) {
	if c.path == broadcast {
		last := f.members[len(f.members)-1]
		f.members[c.member], last.member = last, c.member
		f.members = f.members[:len(f.members)-1]
	}
	f.conns[c.fd] = nil
	_ = unix.Close(c.fd)
	c.fd, c.path = -1, none
}

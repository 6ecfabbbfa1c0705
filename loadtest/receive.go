package main

import "errors"

// fragment is a message of which some frames are still to come.
type fragment struct {
	op         byte
	compressed bool
	payload    []byte
}

var (
	errContinuation = errors.New("continuation frame out of place")
	errCompressed   = errors.New("compressed frame without permessage-deflate")
)

// consume works off the whole frames in data, which came at a given moment. It returns the rest, and how
// many bytes the frame has that begins there; ok is false if the connection is gone.
func (w *worker) consume(i int, c *conn, data []byte, now int64) (rest []byte, need int, ok bool) {
	if c.state == stateUpgrading {
		end := headEnd(data)
		if end == 0 {
			if len(data) > maxHead {
				w.fail(i, "the head of the answer has no end")
				return nil, 0, false
			}
			return data, len(data), true
		}
		if !w.upgraded(i, c, data[:end], data[end:], now) {
			return nil, 0, false
		}
		data = data[end:]
	}
	for len(data) > 0 {
		f, size, complete, err := parseFrame(data)
		if err != nil {
			w.lose(i, err.Error())
			return nil, 0, false
		}
		if !complete {
			return data, size, true
		}
		data = data[size:]
		if f.final && !f.compressed && (f.op == opBinary || f.op == opText) && c.fragment == nil {
			w.message(i, f.op, f.payload, now)
		} else if err := w.unusual(i, c, f, now); err != nil {
			w.lose(i, err.Error())
			return nil, 0, false
		}
		if c.state == stateClosed {
			return nil, 0, false
		}
	}
	return nil, 0, true
}

// upgraded is the end of the handshake.
func (w *worker) upgraded(i int, c *conn, head, body []byte, now int64) bool {
	var key [keySize]byte
	to := w.targetOf(i)
	compressed, err := w.spec.Targets[to].Handshake.verify(head, body, appendKey(key[:0], w.seed(i, c)))
	if err != nil {
		w.fail(i, err.Error())
		return false
	}
	c.state, c.compressed = stateOpen, compressed
	w.Open++
	record(w.handshakes, now-c.began)
	if w.reconnector.running {
		w.reconnector.returned(c, now)
		return true
	}
	w.Opened++
	w.shares[to].Opened++
	w.dialer.inFlight--
	return true
}

// message enters one message that a connection has received.
func (w *worker) message(i int, op byte, payload []byte, now int64) {
	s, ok := w.payloads.read(payload)
	stream := s.sender
	if w.spec.Command == "echo" {
		ok = ok && s.sender == w.id(i)
		stream = 0
	}
	if !ok || op != w.op || int(stream) >= w.ledger.streams {
		w.Foreign++
		return
	}
	w.LastAt = now
	if w.ledger.note(i, int(stream), s.sequence) == duplicate {
		return
	}
	record(w.latency, now-s.due)
	if w.arrivals != nil {
		w.arrivals[stream].note(s, now)
	}
}

// unusual is for all frames but whole uncompressed messages. An error ends the connection.
func (w *worker) unusual(i int, c *conn, f frame, now int64) error {
	switch f.op {
	case opPing:
		w.control(i, c, opPong, f.payload)
		return nil
	case opPong:
		return nil
	case opClose:
		if c.state == stateOpen {
			w.control(i, c, opClose, f.payload[:min(len(f.payload), 2)])
		}
		return errors.New(closeReason(f.payload))
	case opContinuation:
		if c.fragment == nil || f.compressed {
			return errContinuation
		}
	default:
		if c.fragment != nil {
			return errContinuation
		}
		c.fragment = &fragment{op: f.op, compressed: f.compressed}
	}
	m := c.fragment
	if m.compressed && !c.compressed {
		return errCompressed
	}
	if len(m.payload)+len(f.payload) > maxFrame {
		return errFrameSize
	}
	if f.final && len(m.payload) == 0 {
		m.payload = f.payload // no need for a copy
	} else {
		m.payload = append(m.payload, f.payload...)
	}
	if !f.final {
		return nil
	}
	c.fragment = nil
	if m.compressed {
		expanded, err := w.deflate.decompress(m.payload)
		if err != nil {
			return err
		}
		m.payload = expanded
	}
	w.message(i, m.op, m.payload, now)
	return nil
}

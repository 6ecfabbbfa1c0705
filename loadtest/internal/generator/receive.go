package generator

import (
	"errors"

	"carillon/loadtest/internal/wsclient"
)

// fragment is an incomplete fragmented message.
type fragment struct {
	op         byte
	compressed bool
	payload    []byte
}

var (
	errContinuation = errors.New("unexpected continuation frame")
	errCompressed   = errors.New("compressed frame without permessage-deflate")
)

// consume processes the complete frames in data. It returns the rest and the number of bytes that the next
// frame needs; ok is false if the connection has ended.
func (w *worker) consume(i int, c *conn, data []byte, now int64) (rest []byte, need int, ok bool) {
	if c.state == stateUpgrading {
		end := wsclient.HeadEnd(data)
		if end == 0 {
			if len(data) > wsclient.MaxHead {
				w.fail(i, "response head too long")
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
		f, size, complete, err := wsclient.ParseFrame(data)
		if err != nil {
			w.lose(i, err.Error())
			return nil, 0, false
		}
		if !complete {
			return data, size, true
		}
		data = data[size:]
		if f.Final && !f.Compressed && (f.Op == wsclient.OpBinary || f.Op == wsclient.OpText) && c.fragment == nil {
			w.message(i, f.Op, f.Payload, now)
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

// upgraded completes the handshake.
func (w *worker) upgraded(i int, c *conn, head, body []byte, now int64) bool {
	var key [wsclient.KeySize]byte
	to := w.targetOf(i)
	compressed, err := w.spec.Targets[to].Handshake.Verify(head, body, wsclient.AppendKey(key[:0], w.seed(i, c)))
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

// message accounts for a received message.
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

// unusual handles all frames but whole uncompressed messages. An error ends the connection.
func (w *worker) unusual(i int, c *conn, f wsclient.Frame, now int64) error {
	switch f.Op {
	case wsclient.OpPing:
		w.control(i, c, wsclient.OpPong, f.Payload)
		return nil
	case wsclient.OpPong:
		return nil
	case wsclient.OpClose:
		if c.state == stateOpen {
			w.control(i, c, wsclient.OpClose, f.Payload[:min(len(f.Payload), 2)])
		}
		return errors.New(wsclient.CloseReason(f.Payload))
	case wsclient.OpContinuation:
		if c.fragment == nil || f.Compressed {
			return errContinuation
		}
	default:
		if c.fragment != nil {
			return errContinuation
		}
		c.fragment = &fragment{op: f.Op, compressed: f.Compressed}
	}
	m := c.fragment
	if m.compressed && !c.compressed {
		return errCompressed
	}
	if len(m.payload)+len(f.Payload) > wsclient.MaxFrame {
		return wsclient.ErrFrameSize
	}
	if f.Final && len(m.payload) == 0 {
		m.payload = f.Payload // without a copy
	} else {
		m.payload = append(m.payload, f.Payload...)
	}
	if !f.Final {
		return nil
	}
	c.fragment = nil
	if m.compressed {
		expanded, err := w.deflate.Decompress(m.payload)
		if err != nil {
			return err
		}
		m.payload = expanded
	}
	w.message(i, m.op, m.payload, now)
	return nil
}

package codec

import (
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// maxRetained is the largest buffer, in bytes, that is kept for the next message.
const maxRetained = 64 << 10

// Decoder turns the bytes that a client sends into messages and control frames (RFC 6455, section 5).
// Set the limits and use it; one connection needs it only while it is in the middle of something, see
// [Decoder.Idle].
type Decoder struct {
	// MaxMessage is the largest message in bytes, all fragments together and after inflation. 0
	// admits only empty messages, less than 0 is no limit.
	MaxMessage int64

	// MaxFragments is the number of frames a fragmented message may come in. 0 and 1 forbid
	// fragmentation, less than 0 is no limit.
	MaxFragments int

	// Inflater is set when permessage-deflate was negotiated. It may be shared by all decoders of a
	// goroutine, and must stay the same while a message is suspended.
	Inflater *Inflater

	// Buffers may keep the buffers of large messages. It may be shared by all decoders of a goroutine.
	Buffers *Buffers

	// Budget is how much decompression may still cost, in bytes of work: those that it reads, those
	// that it makes, and some for each block. [Decoder.Next] subtracts what it has spent and suspends
	// a message when nothing is left; it may overdraw by a thousand or so. At 0 or less, which is
	// where it starts, no message is decompressed.
	Budget int

	// Amplified is how much of that work was for a message that is worth more than 32 bytes of it for each
	// byte of its own. [Decoder.Next] adds to it, and the caller sets it back.
	Amplified int

	err *ProtocolError // the broken rule; there is no way back from it

	// The message that is arriving. op is 0 between messages.
	op         Opcode
	compressed bool
	text       utf8Check // of an uncompressed text message; at a start between messages
	fragments  int
	parts      [][]byte // its payload so far, unmasked, when it did not come in one piece: pieces of 64 KiB,
	message    []byte   // and what came behind them

	pending pendingInflation // of the message when it has arrived and is not decompressed

	// The data frame that is arriving, when its header is behind us and its payload is not.
	inFrame bool
	fin     bool
	mask    [4]byte
	masked  int   // payload bytes done, modulo 4: where in mask to go on
	missing int64 // payload bytes that have not come yet
}

// Event is a message or a control frame.
type Event struct {
	// Op is OpText or OpBinary for a message, else OpClose, OpPing or OpPong.
	Op Opcode

	// Payload is what was sent, unmasked and inflated; of a close frame, its reason. It may be
	// changed, and is valid until the next call of Next, Release or Reset.
	Payload []byte

	// Code is the code of a close frame, CloseNoStatus when it had none.
	Code CloseCode
}

// Next decodes from the start of buf, which must be writable: payloads are unmasked in place. It
// returns how many bytes it is done with, and ok=true when these end with a message or control frame.
//
// ok=false without an error means that buf holds nothing more to decode. The caller keeps buf[n:], the
// start of a header or of a control frame and at most 130 bytes, and offers it again with more behind
// it. The payload of an incomplete data frame is never left over: it is taken into the decoder, and
// text is checked at once (RFC 6455, section 8.1).
//
// A message in one frame that is wholly in buf costs no copy and no allocation: its payload is a view
// of buf. Every other message is collected in the decoder's buffer, which grows with the bytes that
// came, not with those that a header announces.
//
// After ok=false it is for [Decoder.Suspended] to tell whether the budget has ended the call, rather than
// the bytes. The next call goes on with the same message then, whether or not buf has more; it takes
// nothing from buf until that message is done.
//
// An error is a *[ProtocolError] and stays: every further call returns it. A close frame is an event
// like any other; that nothing may follow it is for the caller to see to.
func (d *Decoder) Next(buf []byte) (ev Event, n int, ok bool, err error) {
	if d.err != nil {
		return Event{}, 0, false, d.err
	}
	if d.pending.is {
		ev, ok, perr := d.resume()
		if perr != nil {
			return d.fail(0, perr)
		}
		return ev, 0, ok, nil
	}
	var h header
	for {
		if !d.inFrame {
			complete, perr := h.parse(buf[n:], d)
			if perr != nil {
				return d.fail(n, perr)
			}
			if !complete {
				return Event{}, n, false, nil
			}
			rest := buf[n+h.size:]
			if h.length <= int64(len(rest)) && (h.op.isControl() || h.fin && d.op == 0) {
				payload := rest[:h.length:h.length]
				ws.Cipher(payload, h.mask, 0)
				n += h.size + len(payload)
				ev, ok, perr = d.whole(&h, payload)
				if perr != nil {
					return d.fail(n, perr)
				}
				return ev, n, ok, nil
			}
			if h.op.isControl() {
				return Event{}, n, false, nil
			}
			d.begin(&h)
			n += h.size
		}
		taken, perr := d.take(buf[n:])
		n += taken
		if perr != nil {
			return d.fail(n, perr)
		}
		if d.missing > 0 {
			return Event{}, n, false, nil
		}
		d.inFrame = false
		if !d.fin {
			continue
		}
		ev, ok, perr = d.finish()
		if perr != nil {
			return d.fail(n, perr)
		}
		return ev, n, ok, nil
	}
}

// Idle reports that the decoder stands between messages and between frames: it may be dropped, or
// given to another connection after Release.
func (d *Decoder) Idle() bool { return d.op == 0 && d.err == nil }

// Buffered returns how many bytes of memory the decoder holds for the message that is arriving.
func (d *Decoder) Buffered() int {
	n := len(d.parts)*maxRetained + cap(d.message)
	if s := d.pending.inflation; s != nil {
		n += cap(s.out)
	}
	return n
}

// Release says that the payload of the last event is no longer used. A decoder that is idle then lets
// go of buffers above 64 KiB, to Buffers if that is set; smaller ones wait for the next message.
func (d *Decoder) Release() {
	if d.Inflater != nil {
		d.Inflater.release()
	}
	if d.op == 0 && cap(d.message) > maxRetained {
		d.drop()
	}
}

// drop lets go of the buffers.
func (d *Decoder) drop() {
	d.dropParts()
	d.Buffers.Put(d.message)
	d.message = nil
}

func (d *Decoder) dropParts() {
	for i, part := range d.parts {
		d.Buffers.Put(part)
		d.parts[i] = nil
	}
	d.parts = d.parts[:0]
}

// Reset forgets everything but MaxMessage, MaxFragments, Inflater, Buffers and a buffer of up to 64 KiB. It gives a
// suspended message up.
func (d *Decoder) Reset() {
	d.abandon()
	d.dropParts()
	*d = Decoder{
		MaxMessage:   d.MaxMessage,
		MaxFragments: d.MaxFragments,
		Inflater:     d.Inflater,
		Buffers:      d.Buffers,
		message:      d.message[:0],
	}
	d.Release()
}

func (d *Decoder) fail(n int, err *ProtocolError) (Event, int, bool, error) {
	d.err = err
	d.abandon()
	d.drop()
	return Event{}, n, false, err
}

// whole handles a control frame or an unfragmented message that came in one piece.
func (d *Decoder) whole(h *header, payload []byte) (ev Event, ok bool, err *ProtocolError) {
	switch {
	case h.op == OpClose:
		code, reason, err := parseClose(payload)
		return Event{Op: OpClose, Payload: reason, Code: code}, true, err
	case h.compressed:
		d.op = h.op
		return d.inflate(payload)
	case h.op == OpText && !utf8.Valid(payload):
		return Event{}, false, ErrInvalidUTF8
	}
	return Event{Op: h.op, Payload: payload}, true, nil
}

// begin enters a data frame whose payload is to be collected.
func (d *Decoder) begin(h *header) {
	if d.op == 0 {
		d.op, d.compressed, d.fragments = h.op, h.compressed, 0
		d.message = d.message[:0]
	}
	d.fragments++
	d.inFrame, d.fin = true, h.fin
	d.mask, d.masked, d.missing = h.mask, 0, h.length
}

// take collects what is there of the current frame's payload, and returns how much that was.
func (d *Decoder) take(b []byte) (n int, err *ProtocolError) {
	if int64(len(b)) > d.missing {
		b = b[:d.missing]
	}
	ws.Cipher(b, d.mask, d.masked)
	d.masked = (d.masked + len(b)) & 3
	d.missing -= int64(len(b))
	for rest := b; len(rest) > 0; {
		n := d.grow(len(rest))
		d.message = append(d.message, rest[:n]...)
		rest = rest[n:]
	}
	if d.op == OpText && !d.compressed && !d.text.write(b) {
		return len(b), ErrInvalidUTF8
	}
	return len(b), nil
}

// Arrived returns how many bytes have come of the message that is arriving.
func (d *Decoder) Arrived() int {
	if d.op == 0 {
		return 0
	}
	return d.arrived()
}

func (d *Decoder) arrived() int { return len(d.parts)*maxRetained + len(d.message) }

// grow makes room for n more bytes, or some of them, and returns for how many. A client pays for memory by sending: up
// to 64 KiB the buffer becomes at most twice what has arrived, and exactly the declared size when that is less. What
// comes behind has buffers of that size, so that nothing is copied again before the message is whole.
func (d *Decoder) grow(n int) int {
	if len(d.message) == maxRetained {
		d.parts = append(d.parts, d.message)
		d.message = d.Buffers.Get(maxRetained)
	}
	n = min(n, maxRetained-len(d.message))
	arrived := len(d.message) + n
	if arrived <= cap(d.message) {
		return n
	}
	const smallest = 512
	size := max(2*arrived, smallest)
	if d.fin && d.missing < int64(size-arrived) {
		size = arrived + int(d.missing)
	}
	d.message = append(d.Buffers.Get(min(size, maxRetained)), d.message...)
	return n
}

// join puts the parts of the message together.
func (d *Decoder) join() {
	if len(d.parts) == 0 {
		return
	}
	message := d.Buffers.Get(d.arrived())
	for _, part := range d.parts {
		message = append(message, part...)
	}
	message = append(message, d.message...)
	d.drop()
	d.message = message
}

// finish hands out the message that is now complete.
func (d *Decoder) finish() (ev Event, ok bool, err *ProtocolError) {
	d.fragments = 0
	d.join()
	if d.compressed {
		d.compressed = false
		return d.inflate(d.message)
	}
	op, payload := d.op, d.message
	d.op, d.message = 0, d.message[:0]
	if !d.text.complete() {
		return Event{}, false, ErrInvalidUTF8
	}
	return Event{Op: op, Payload: payload}, true, nil
}

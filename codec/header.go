package codec

import "encoding/binary"

// The first two bytes of a frame (RFC 6455, section 5.2).
const (
	bitFin  = 0x80
	bitRSV1 = 0x40 // "per-message compressed" (RFC 7692, section 6)
	bitsRSV = 0x70
	bitMask = 0x80

	length16 = 126 // the length follows in 2 bytes
	length64 = 127 // the length follows in 8 bytes

	maxControl = 125 // payload of a control frame
)

// header is the head of a client's frame.
type header struct {
	op         Opcode
	fin        bool
	compressed bool
	size       int // of the header itself, mask included
	length     int64
	mask       [4]byte
}

// parse reads the header at the start of b. ok=false without an error: more bytes are needed.
//
// What the first two bytes give away is refused as soon as they are there: an unmasked frame may be so
// short that waiting for its masking key would be waiting for ever.
func (h *header) parse(b []byte, d *Decoder) (ok bool, err *ProtocolError) {
	if len(b) < 2 {
		return false, nil
	}
	b0, b1 := b[0], b[1]
	if err := d.checkStart(b0, b1); err != nil {
		return false, err
	}
	h.op, h.fin, h.compressed = Opcode(b0&0x0F), b0&bitFin != 0, b0&bitRSV1 != 0

	h.size = 6
	h.length = int64(b1 &^ bitMask)
	if h.length >= length16 {
		if ok, err := h.parseLongLength(b); !ok {
			return false, err
		}
	}
	if !h.op.isControl() {
		if err := d.checkSize(h); err != nil {
			return false, err
		}
	}
	if len(b) < h.size {
		return false, nil
	}
	h.mask = [4]byte(b[h.size-4:])
	return true, nil
}

func (h *header) parseLongLength(b []byte) (ok bool, err *ProtocolError) {
	if h.length == length16 {
		if len(b) < 4 {
			return false, nil
		}
		h.size, h.length = 8, int64(binary.BigEndian.Uint16(b[2:]))
		if h.length < length16 {
			return false, ErrNonMinimalLength
		}
		return true, nil
	}
	if len(b) < 10 {
		return false, nil
	}
	h.size, h.length = 14, int64(binary.BigEndian.Uint64(b[2:]))
	if h.length < 0 {
		return false, ErrLengthOverflow
	}
	if h.length <= 0xFFFF {
		return false, ErrNonMinimalLength
	}
	return true, nil
}

// checkStart judges the first two bytes of a frame in the light of what came before.
func (d *Decoder) checkStart(b0, b1 byte) *ProtocolError {
	op := Opcode(b0 & 0x0F)
	if rsv := b0 & bitsRSV; rsv != 0 {
		switch {
		case rsv != bitRSV1 || d.Inflater == nil:
			return ErrReservedBits
		case op.isControl():
			return ErrCompressedControl
		case op == OpContinuation:
			return ErrCompressedContinuation
		}
	}
	if definedOpcodes>>op&1 == 0 {
		return ErrReservedOpcode
	}
	if b1&bitMask == 0 {
		return ErrUnmasked
	}
	if op.isControl() {
		if b0&bitFin == 0 {
			return ErrControlFragmented
		}
		if b1&^bitMask > maxControl {
			return ErrControlTooLong
		}
		return nil
	}
	if (op == OpContinuation) != (d.op != 0) {
		if op == OpContinuation {
			return ErrUnexpectedContinuation
		}
		return ErrExpectedContinuation
	}
	// A message in one frame is no fragment, whatever the limit.
	if d.MaxFragments >= 0 && d.fragments >= d.MaxFragments && (d.op != 0 || b0&bitFin == 0) {
		return ErrTooManyFragments
	}
	return nil
}

// checkSize judges the length that a data frame declares, before any of its payload is kept.
func (d *Decoder) checkSize(h *header) *ProtocolError {
	if d.MaxMessage < 0 {
		return nil
	}
	limit := d.MaxMessage
	if d.compressed || h.compressed {
		// DEFLATE may make noise larger, by an eighth in its worst form; what counts against
		// MaxMessage is the size after inflation.
		limit += limit/8 + 64
	}
	if h.length > limit-int64(d.arrived()) {
		return ErrMessageTooBig
	}
	return nil
}

package codec

import (
	"bytes"
	"compress/flate"
	"io"
	"unicode/utf8"
)

// reference is a second decoder, slow and plain: it has the whole stream before it, takes bytes one at
// a time and keeps every text in full to look at it again and again. DEFLATE is left to compress/flate.
func reference(stream string, limits *Decoder) (o outcome) {
	in := []byte(stream)
	short := false
	next := func() byte {
		if len(in) == 0 {
			short = true
			return 0
		}
		c := in[0]
		in = in[1:]
		return c
	}
	var kind Opcode // of the message in progress
	var message []byte
	var compressed bool
	frames := 0
	for {
		b0, b1 := next(), next()
		if short {
			return o
		}
		final, r1, r23, op := b0 >= 0x80, b0&0x40 != 0, b0&0x30 != 0, Opcode(b0%16)
		control := op >= 8
		if o.err = referenceStart(limits, final, r1, r23, op, b1, kind, frames); o.err != nil {
			return o
		}
		length := uint64(b1 % 128)
		if extra := map[uint64]int{126: 2, 127: 8}[length]; extra > 0 {
			length = 0
			for range extra {
				length = length*256 + uint64(next())
			}
			if short {
				return o
			}
			switch {
			case length >= 1<<63:
				o.err = ErrLengthOverflow
			case extra == 2 && length < 126, extra == 8 && length < 65536:
				o.err = ErrNonMinimalLength
			}
			if o.err != nil {
				return o
			}
		}
		if !control && limits.MaxMessage >= 0 {
			limit := uint64(limits.MaxMessage)
			if r1 || compressed {
				limit += limit/8 + 64
			}
			if length+uint64(len(message)) > limit {
				o.err = ErrMessageTooBig
				return o
			}
		}
		key := [4]byte{next(), next(), next(), next()}
		if short {
			return o
		}
		if !control && kind == 0 {
			kind, compressed, frames, message = op, r1, 0, nil
		}
		var payload []byte
		for i := uint64(0); i < length && !short; i++ {
			c := next() ^ key[i%4]
			if short {
				break
			}
			if payload = append(payload, c); !control {
				message = append(message, c)
				if kind == OpText && !compressed && !mayBecomeUTF8(message) {
					o.err = ErrInvalidUTF8
					return o
				}
			}
		}
		if short {
			return o
		}
		if control {
			ev := Event{Op: op, Payload: payload}
			if op == OpClose {
				ev, o.err = referenceClose(payload)
			}
			if o.err != nil {
				return o
			}
			o.add(ev)
			continue
		}
		frames++
		if !final {
			continue
		}
		if compressed {
			var err *ProtocolError
			if message, err = referenceInflate(message, limits.MaxMessage); err != nil {
				o.err = err
				return o
			}
		}
		if kind == OpText && !utf8.Valid(message) {
			o.err = ErrInvalidUTF8
			return o
		}
		o.add(Event{Op: kind, Payload: message})
		kind, compressed, message, frames = 0, false, nil, 0
	}
}

// referenceInflate is decompression by compress/flate.
func referenceInflate(message []byte, limit int64) (out []byte, _ *ProtocolError) {
	source := bytes.NewReader(append(bytes.Clone(message), inflateTail...))
	for source.Len() > len(inflateTail) {
		stream, err := io.ReadAll(io.LimitReader(flate.NewReader(source), limit+1-int64(len(out))))
		if out = append(out, stream...); int64(len(out)) > limit {
			return nil, ErrMessageTooBig
		}
		if err != nil {
			return nil, ErrDeflateData
		}
	}
	return out, nil
}

func referenceStart(limits *Decoder, final, r1, r23 bool, op Opcode, b1 byte, kind Opcode, frames int) error {
	deflate := limits.Inflater != nil
	switch {
	case r23 || r1 && !deflate:
		return ErrReservedBits
	case r1 && op >= 8:
		return ErrCompressedControl
	case r1 && op == 0:
		return ErrCompressedContinuation
	case op > 2 && op < 8 || op > 10:
		return ErrReservedOpcode
	case b1 < 128:
		return ErrUnmasked
	case op >= 8 && !final:
		return ErrControlFragmented
	case op >= 8 && b1%128 > 125:
		return ErrControlTooLong
	case op == 0 && kind == 0:
		return ErrUnexpectedContinuation
	case (op == 1 || op == 2) && kind != 0:
		return ErrExpectedContinuation
	case op < 8 && limits.MaxFragments >= 0 && frames >= limits.MaxFragments && !(kind == 0 && final):
		return ErrTooManyFragments
	}
	return nil
}

func referenceClose(payload []byte) (Event, error) {
	if len(payload) == 0 {
		return Event{Op: OpClose, Code: 1005}, nil
	}
	if len(payload) == 1 {
		return Event{}, ErrClosePayload
	}
	code := int(payload[0])*256 + int(payload[1])
	if !wireCodes()[code] {
		return Event{}, ErrCloseCode
	}
	if !utf8.Valid(payload[2:]) {
		return Event{}, ErrCloseReasonUTF8
	}
	return Event{Op: OpClose, Code: CloseCode(code), Payload: payload[2:]}, nil
}

// wireCodes lists the codes of RFC 6455, section 7.4, and of the IANA registry one by one.
func wireCodes() map[int]bool {
	codes := map[int]bool{1000: true, 1001: true, 1002: true, 1003: true, 1007: true, 1008: true,
		1009: true, 1010: true, 1011: true, 1012: true, 1013: true, 1014: true}
	for c := 3000; c < 5000; c++ {
		codes[c] = true
	}
	return codes
}

// mayBecomeUTF8 reports whether p is the start of some valid text.
func mayBecomeUTF8(p []byte) bool {
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		if r == utf8.RuneError && n == 1 {
			return !utf8.FullRune(p)
		}
		p = p[n:]
	}
	return true
}

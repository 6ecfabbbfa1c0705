// Package wsclient is a WebSocket client that works on bytes: frames, the handshake and permessage-deflate.
// It opens no socket.
package wsclient

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The opcodes of RFC 6455, section 5.2.
const (
	OpContinuation = 0
	OpText         = 1
	OpBinary       = 2
	OpClose        = 8
	OpPing         = 9
	OpPong         = 10
)

// MaxFrame is the largest payload, in bytes, that is accepted in one frame from a server.
const MaxFrame = 64 << 20

var (
	ErrMasked    = errors.New("masked frame from the server")
	errReserved  = errors.New("frame with a reserved bit or opcode")
	errControl   = errors.New("control frame fragmented or longer than 125 bytes")
	errLength    = errors.New("frame length not minimally encoded")
	ErrFrameSize = fmt.Errorf("frame larger than %d MiB", MaxFrame>>20)
)

// Frame is one frame from a server. Its payload aliases the buffer that was parsed.
type Frame struct {
	Final      bool
	Compressed bool // RSV1
	Op         byte
	Payload    []byte
}

// ParseFrame parses the first frame in b and returns its size in bytes. If b holds only part of it,
// complete is false and size is the least number of bytes that the frame needs.
func ParseFrame(b []byte) (f Frame, size int, complete bool, err error) {
	if len(b) < 2 {
		return f, 2, false, nil
	}
	b0, b1 := b[0], b[1]
	f = Frame{Final: b0&0x80 != 0, Compressed: b0&0x40 != 0, Op: b0 & 0x0f}
	head, length := 2, int(b1&0x7f)
	switch {
	case b1&0x80 != 0:
		return f, 0, false, ErrMasked
	case b0&0x30 != 0, f.Op > OpBinary && f.Op < OpClose, f.Op > OpPong:
		return f, 0, false, errReserved
	case f.Op >= OpClose && (!f.Final || f.Compressed || length > 125):
		return f, 0, false, errControl
	case length == 126:
		if head = 4; len(b) < head {
			return f, head, false, nil
		}
		if length = int(binary.BigEndian.Uint16(b[2:])); length < 126 {
			return f, 0, false, errLength
		}
	case length == 127:
		if head = 10; len(b) < head {
			return f, head, false, nil
		}
		long := binary.BigEndian.Uint64(b[2:])
		if long < 1<<16 {
			return f, 0, false, errLength
		}
		if long > MaxFrame {
			return f, 0, false, ErrFrameSize
		}
		length = int(long)
	}
	if size = head + length; len(b) < size {
		return f, size, false, nil
	}
	f.Payload = b[head:size:size]
	return f, size, true, nil
}

// AppendFrame appends a whole message as one frame, masked with key.
func AppendFrame(to []byte, op byte, compressed bool, key uint32, payload []byte) []byte {
	b0 := 0x80 | op
	if compressed {
		b0 |= 0x40
	}
	switch n := len(payload); {
	case n < 126:
		to = append(to, b0, 0x80|byte(n))
	case n < 1<<16:
		to = append(to, b0, 0x80|126, byte(n>>8), byte(n))
	default:
		to = binary.BigEndian.AppendUint64(append(to, b0, 0x80|127), uint64(n))
	}
	to = binary.LittleEndian.AppendUint32(to, key)
	at := len(to)
	to = append(to, payload...)
	mask(to[at:], key)
	return to
}

// mask applies a masking key. Its lowest byte is the first on the wire.
func mask(b []byte, key uint32) {
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(key >> (8 * (i & 3)))
	}
}

// CloseReason describes a close frame.
func CloseReason(payload []byte) string {
	if len(payload) < 2 {
		return "closed by the server without a code"
	}
	text := fmt.Sprintf("closed by the server with code %d", binary.BigEndian.Uint16(payload))
	if reason := FirstLine(payload[2:]); reason != "" {
		text += ": " + reason
	}
	return text
}

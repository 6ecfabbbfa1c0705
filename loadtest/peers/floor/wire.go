//go:build linux

package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
)

// upgrade returns the answer to the head of a request, and none if it is a refusal.
func upgrade(head []byte) (answer []byte, path path) {
	line, fields, _ := bytes.Cut(head, []byte("\r\n"))
	switch {
	case bytes.HasPrefix(line, []byte("GET /echo HTTP/1.1")):
		path = echo
	case bytes.HasPrefix(line, []byte("GET /broadcast HTTP/1.1")):
		path = broadcast
	default:
		return []byte("HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), none
	}
	for field := range bytes.SplitSeq(fields, []byte("\r\n")) {
		name, value, _ := bytes.Cut(field, []byte(":"))
		if !bytes.EqualFold(name, []byte("Sec-WebSocket-Key")) {
			continue
		}
		sum := sha1.Sum(append(bytes.TrimSpace(value), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
		answer = []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ")
		answer = base64.StdEncoding.AppendEncode(answer, sum[:])
		return append(answer, "\r\n\r\n"...), path
	}
	return []byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), none
}

// The first bytes of the frames that are known: unfragmented and without extension bits.
const (
	finText   = 0x81
	finBinary = 0x82
	finClose  = 0x88
	finPing   = 0x89
	finPong   = 0x8a
)

const maxPayload = 32 << 10

// next turns the client's frame at the start of data into the server's, in place, which is shorter by
// the four bytes of the mask. The frame is nil when it is not whole yet, and ok is false when it is not
// one that is supported.
func next(data []byte) (frame, rest []byte, ok bool) {
	if len(data) < 2 {
		return nil, data, true
	}
	size, head := int(data[1]&0x7f), 2
	if size == 126 {
		if len(data) < 4 {
			return nil, data, true
		}
		size, head = int(binary.BigEndian.Uint16(data[2:])), 4
	}
	if data[1]&0x80 == 0 || data[1] == 0xff || size > maxPayload {
		return nil, nil, false
	}
	end := head + 4 + size
	if len(data) < end {
		return nil, data, true
	}
	var mask [8]byte
	copy(mask[:4], data[head:])
	copy(mask[4:], data[head:])
	frame = data[4:end]
	copy(frame, data[:head])
	frame[1] &= 0x7f
	unmask(frame[head:], mask)
	return frame, data[end:], true
}

func unmask(b []byte, mask [8]byte) {
	wide := binary.LittleEndian.Uint64(mask[:])
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
	}
	for i := range b {
		b[i] ^= mask[i]
	}
}

package wsclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// serverFrame encodes a frame as a server sends it.
func serverFrame(b0 byte, payload []byte) []byte {
	switch n := len(payload); {
	case n < 126:
		return append([]byte{b0, byte(n)}, payload...)
	case n < 1<<16:
		return append([]byte{b0, 126, byte(n >> 8), byte(n)}, payload...)
	default:
		return append(binary.BigEndian.AppendUint64([]byte{b0, 127}, uint64(n)), payload...)
	}
}

func TestFrameIsOnlyTakenWhole(t *testing.T) {
	for _, length := range []int{0, 1, 125, 126, 127, 65535, 65536, 70000} {
		payload := bytes.Repeat([]byte("abcdefg"), length/7+1)[:length]
		whole := serverFrame(0x82, payload)
		stream := append(bytes.Clone(whole), 0x81, 0x00)
		for cut := range len(whole) {
			if cut > 20 && cut < len(whole)-20 && cut%997 != 0 {
				continue
			}
			_, size, complete, err := ParseFrame(stream[:cut:cut])
			if complete || err != nil || size <= cut || size > len(whole) {
				t.Fatalf("%d of %d bytes: size %d, complete %v, %v", cut, len(whole), size, complete, err)
			}
		}
		f, size, complete, err := ParseFrame(stream)
		if !complete || err != nil || size != len(whole) || f.Op != OpBinary || !f.Final || !bytes.Equal(f.Payload, payload) {
			t.Errorf("a frame of %d bytes: %+v, size %d, complete %v, %v", length, f, size, complete, err)
		}
	}
}

func TestBrokenFrames(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want error
	}{
		{"masked", []byte{0x81, 0x80, 0, 0, 0, 0}, ErrMasked},
		{"RSV2", []byte{0xa1, 0x00}, errReserved},
		{"RSV3", []byte{0x91, 0x00}, errReserved},
		{"opcode 3", []byte{0x83, 0x00}, errReserved},
		{"opcode 11", []byte{0x8b, 0x00}, errReserved},
		{"a ping in two parts", []byte{0x09, 0x00}, errControl},
		{"a compressed ping", []byte{0xc9, 0x00}, errControl},
		{"a ping of 126 bytes", []byte{0x89, 126, 0, 126}, errControl},
		{"125 written with 16 bits", []byte{0x82, 126, 0, 125}, errLength},
		{"65535 written with 64 bits", []byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, errLength},
		{"longer than any memory", []byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, ErrFrameSize},
	} {
		if _, _, complete, err := ParseFrame(tt.b); complete || !errors.Is(err, tt.want) {
			t.Errorf("%s: complete %v, %v, want %v", tt.name, complete, err, tt.want)
		}
	}
}

func TestClientFramesAreMasked(t *testing.T) {
	for _, length := range []int{0, 1, 7, 8, 9, 125, 126, 65535, 65536} {
		payload := bytes.Repeat([]byte("12345"), length/5+1)[:length]
		b := AppendFrame([]byte("before"), OpText, false, 0x04030201, payload)[len("before"):]
		head := 2
		switch {
		case length >= 1<<16:
			head = 10
		case length >= 126:
			head = 4
		}
		if b[0] != 0x81 || b[1]&0x80 == 0 || !bytes.Equal(b[head:head+4], []byte{1, 2, 3, 4}) {
			t.Fatalf("%d bytes: the head is % x", length, b[:head+4])
		}
		for i, c := range b[head+4:] {
			if c^byte(i&3+1) != payload[i] {
				t.Fatalf("%d bytes: byte %d is not masked by the key", length, i)
			}
		}
		b[1] &^= 0x80 // as a server would send it
		f, size, complete, err := ParseFrame(append(b[:head:head], payload...))
		if !complete || err != nil || size != head+length || f.Op != OpText {
			t.Errorf("%d bytes: the length is not readable: %d, %v, %v", length, size, complete, err)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(serverFrame(0x81, []byte("hello")))
	f.Add(serverFrame(0x82, make([]byte, 300)))
	f.Add([]byte{0x88, 0x02, 0x03, 0xe8})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, size, complete, err := ParseFrame(b)
		switch {
		case err != nil:
		case complete && (size > len(b) || size < 2+len(fr.Payload)):
			t.Errorf("a frame of %d bytes with a payload of %d was found in %d", size, len(fr.Payload), len(b))
		case !complete && size <= len(b):
			t.Errorf("%d bytes are not enough for a frame of %d", len(b), size)
		}
	})
}

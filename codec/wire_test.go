package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// How the tests write frames down: the client's as it would send them, masked.

var testMask = [4]byte{0x37, 0xFA, 0x21, 0x3D} // the key of the examples in RFC 6455, section 5.7

// fin, rsv1 and so on are or-ed to an opcode to make the first byte of a frame.
const (
	fin  = 0x80
	rsv1 = 0x40
	rsv2 = 0x20
	rsv3 = 0x10
)

// client is one masked frame with the shortest length.
func client(b0 byte, payload string) string {
	head := appendHeader(nil, b0, len(payload))
	head[1] |= bitMask
	return string(head) + masked(payload)
}

// masked is a masking key and the payload under it.
func masked(payload string) string {
	b := append(testMask[:], payload...)
	for i := range len(payload) {
		b[4+i] ^= testMask[i%4]
	}
	return string(b)
}

// header64 is the header of a masked frame with a length of eight bytes.
func header64(b0 byte, length uint64) string {
	b := binary.BigEndian.AppendUint64([]byte{b0, bitMask | length64}, length)
	return string(append(b, testMask[:]...))
}

// outcome is what a stream of bytes came to, as text that can be compared and read.
type outcome struct {
	events []string
	err    error
}

func (o *outcome) add(ev Event) {
	s := fmt.Sprintf("%v %q", ev.Op, abbreviated(ev.Payload))
	if ev.Op == OpClose {
		s += fmt.Sprintf(" %d", ev.Code)
	}
	o.events = append(o.events, s)
}

// abbreviated keeps messages of tests readable; the length stands for what is left out.
func abbreviated(p []byte) string {
	if len(p) <= 80 {
		return string(p)
	}
	sum := uint32(0)
	for _, c := range p {
		sum = sum*31 + uint32(c)
	}
	return fmt.Sprintf("%s... %d bytes, sum %08x", p[:20], len(p), sum)
}

func (o outcome) String() string {
	s := strings.Join(o.events, ", ")
	if o.err != nil {
		s += " then " + o.err.Error()
	}
	return s
}

// feed gives the chunks to d one after the other, as a server does: what Next leaves over is offered
// again with the next chunk behind it. Every chunk is its own memory, as a read buffer would be
// overwritten.
func feed(t testing.TB, d *Decoder, chunks ...string) (o outcome) {
	t.Helper()
	return feedSliced(t, d, func() int { return math.MaxInt }, chunks...)
}

// feedSliced is feed with a budget for each call of Next. A suspended message must not need the buffer
// that it came in.
func feedSliced(t testing.TB, d *Decoder, budget func() int, chunks ...string) (o outcome) {
	t.Helper()
	var rest []byte
	for _, chunk := range chunks {
		buf := append(bytes.Clone(rest), chunk...)
		for {
			pending := d.Suspended()
			d.Budget = budget()
			ev, n, ok, err := d.Next(buf)
			if n < 0 || n > len(buf) || pending && n > 0 {
				t.Fatalf("Next consumed %d of %d bytes, a message was suspended: %v", n, len(buf), pending)
			}
			done := buf[:n]
			buf = buf[n:]
			if d.Suspended() {
				if ok || err != nil || d.Idle() {
					t.Fatalf("a suspended message with ok=%v, idle=%v and %v", ok, d.Idle(), err)
				}
				clear(done)
				d.Release()
				continue
			}
			if err != nil {
				if again, n, ok, err2 := d.Next(buf); n != 0 || ok || err2 != err || again.Payload != nil {
					t.Fatalf("after %v Next returned %v, %d, %v, %v", err, again, n, ok, err2)
				}
				o.err = err
				return o
			}
			if !ok {
				break
			}
			o.add(ev)
			clear(ev.Payload) // the payload belongs to the caller
			d.Release()
		}
		if len(buf) > 6+maxControl-1 {
			t.Fatalf("%d bytes are left over: %x", len(buf), buf)
		}
		if _, n, ok, err := d.Next(buf); n != 0 || ok || err != nil {
			t.Fatalf("Next wants more bytes, but offered the same again it returned %d, %v, %v", n, ok, err)
		}
		rest = bytes.Clone(buf)
	}
	return o
}

// feedAll feeds the stream in one piece, byte by byte, and in two pieces at every place (at every
// 61st of a long stream), and fails unless the outcome is always the same.
func feedAll(t *testing.T, newDecoder func() *Decoder, stream string) outcome {
	t.Helper()
	whole := feed(t, newDecoder(), stream)
	same := func(how string, o outcome) {
		t.Helper()
		if o.String() != whole.String() || !errors.Is(o.err, whole.err) {
			t.Fatalf("%s:\n got %v\nwant %v", how, o, whole)
		}
	}
	if len(stream) < 1<<16 {
		same("byte by byte", feed(t, newDecoder(), strings.Split(stream, "")...))
		same("symbol by symbol", feedSliced(t, newDecoder(), func() int { return 1 }, stream))
	}
	stride := 1
	if len(stream) > 2000 {
		stride = 61
	}
	if len(stream) > 1<<16 {
		stride = len(stream) / 64
	}
	for i := 1; i < len(stream); i += stride {
		same(fmt.Sprintf("split after %d bytes", i), feed(t, newDecoder(), stream[:i], stream[i:]))
	}
	return whole
}

package codec

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/gobwas/ws"
)

func TestAppendFrame(t *testing.T) {
	tests := []struct {
		rule   string
		op     Opcode
		length int
		head   string
	}{
		//                                          fin+op len7  len16/64
		{"an empty frame is two bytes", OpText, 0, "\x81\x00"},
		{"125 bytes have a length of 7 bits", OpBinary, 125, "\x82\x7d"},
		{"126 bytes have a length of 16 bits", OpText, 126, "\x81\x7e\x00\x7e"},
		{"65535 bytes have a length of 16 bits", OpBinary, 65535, "\x82\x7e\xff\xff"},
		{"65536 bytes have a length of 64 bits", OpText, 65536, "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"},
		{"a ping is a frame too", OpPing, 125, "\x89\x7d"},
		{"so is a pong", OpPong, 1, "\x8a\x01"},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			payload := bytes.Repeat([]byte("p"), tt.length)
			got := AppendFrame([]byte("before"), tt.op, payload)
			if want := "before" + tt.head + string(payload); string(got) != want {
				t.Fatalf("got %.40q, want %.40q", got, want)
			}
			frame := got[len("before"):]
			if n := FrameLen(frame[:len(tt.head)]); n != len(frame) {
				t.Errorf("FrameLen is %d, want %d", n, len(frame))
			}
			h, err := ws.ReadHeader(bytes.NewReader(frame))
			if err != nil || h.Length != int64(tt.length) || h.OpCode != ws.OpCode(tt.op) || !h.Fin || h.Masked {
				t.Errorf("gobwas reads %+v, %v", h, err)
			}
			f := NewFrame(tt.op, payload)
			if !bytes.Equal(f.Plain(), frame) || !bytes.Equal(f.Payload(), payload) || f.Opcode() != tt.op {
				t.Errorf("NewFrame differs: %.40q", f.Plain())
			}
			f = NewFrameFunc(tt.op, func(dst []byte) []byte { return append(dst, payload...) })
			if !bytes.Equal(f.Plain(), frame) || !bytes.Equal(f.Payload(), payload) || f.Opcode() != tt.op {
				t.Errorf("NewFrameFunc differs: %.40q", f.Plain())
			}
		})
	}
	t.Run("a control frame is cut to what it may hold", func(t *testing.T) {
		long := bytes.Repeat([]byte("p"), 126)
		if got := AppendFrame(nil, OpPing, long); len(got) != 127 || got[1] != 125 {
			t.Errorf("% x", got[:2])
		}
		if f := NewFrame(OpPong, long); len(f.Payload()) != 125 || FrameLen(f.Plain()) != 127 {
			t.Errorf("% x", f.Plain()[:2])
		}
		f := NewFrameFunc(OpPong, func(dst []byte) []byte { return append(dst, long...) })
		if len(f.Payload()) != 125 || FrameLen(f.Plain()) != 127 {
			t.Errorf("% x", f.Plain()[:2])
		}
	})
}

func TestFrameIsACopy(t *testing.T) {
	payload := []byte("Hello")
	f := NewFrame(OpText, payload)
	clear(payload)
	if string(f.Payload()) != "Hello" {
		t.Errorf("the frame shares the caller's bytes: %q", f.Payload())
	}
}

func TestFrameDeflated(t *testing.T) {
	text := []byte(strings.Repeat("carillon ", 100))
	long := bytes.Repeat(text, 4) // for no small window
	d := NewDeflater(1, 512)
	t.Run("many goroutines get the same bytes", func(t *testing.T) {
		f := NewFrame(OpText, text)
		results := make([][]byte, 16)
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() { results[i] = f.Deflated(d) })
		}
		wg.Wait()
		for _, r := range results {
			if &r[0] != &results[0][0] || len(r) >= len(f.Plain()) || r[0] != fin|rsv1|byte(OpText) {
				t.Fatalf("%d bytes, first %02x", len(r), r[0])
			}
		}
		if cap(results[0]) > len(results[0])+len(results[0])/4 {
			t.Errorf("%d bytes are kept in a buffer of %d", len(results[0]), cap(results[0]))
		}
	})
	t.Run("the first Deflater wins", func(t *testing.T) {
		f := NewFrame(OpText, text)
		first := f.Deflated(NewDeflater(1, 1<<20))
		if again := f.Deflated(d); &again[0] != &first[0] {
			t.Error("another Deflater made another frame")
		}
	})
	t.Run("those whose window is smaller than the payload share two more", func(t *testing.T) {
		f := NewFrame(OpText, text)
		narrowest, widest := f.DeflatedWithin(d, minWindow), f.Deflated(d)
		for window := minWindow; window <= MaxWindow; window++ {
			got, want := f.DeflatedWithin(d, window), widest
			if window < middleWindow {
				want = narrowest
			}
			if &got[0] != &want[0] {
				t.Errorf("%d bits: a frame of its own", window)
			}
		}
		f = NewFrame(OpText, long)
		if same := f.DeflatedWithin(d, 14); &same[0] != &f.DeflatedWithin(d, middleWindow)[0] || &same[0] == &f.Deflated(d)[0] {
			t.Error("14 bits do not share with 11, or share with 15")
		}
		if o := Opaque(text); &o.DeflatedWithin(d, 8)[0] != &text[0] {
			t.Error("what goes out as it is was compressed")
		}
		if size := unsafe.Sizeof(Frame{}); size > 64 {
			t.Errorf("a frame takes %d bytes", size)
		}
	})
	t.Run("one that is left plain is so for its windows only, and not if it was compressed before", func(t *testing.T) {
		f := NewFrame(OpText, long)
		narrow := f.DeflatedWithin(d, 8)
		f.LeavePlain(9)
		f.LeavePlain(12)
		if got := f.DeflatedWithin(d, 8); &got[0] != &narrow[0] || &got[0] == &f.Plain()[0] {
			t.Error("the frame has changed for clients that get it compressed")
		}
		if got := f.DeflatedWithin(d, 11); &got[0] != &f.Plain()[0] {
			t.Error("it was compressed all the same")
		}
		if got := f.Deflated(d); &got[0] == &f.Plain()[0] {
			t.Error("it is plain for another window, too")
		}
		f = NewFrame(OpText, text)
		f.LeavePlain(MaxWindow)
		if got := f.Deflated(d); &got[0] != &f.Plain()[0] {
			t.Error("it was compressed all the same for the largest window")
		}
		Opaque(text).LeavePlain(8)
	})
	t.Run("its compressed forms are counted, and a fresh frame has none", func(t *testing.T) {
		f := NewFrame(OpText, long)
		f.LeavePlain(12)
		if n := f.DeflatedSize(); n != 0 {
			t.Errorf("%d bytes before it was compressed", n)
		}
		if n := len(f.DeflatedWithin(d, 8)) + len(f.Deflated(d)); f.DeflatedSize() != n {
			t.Errorf("%d bytes, want %d", f.DeflatedSize(), n)
		}
		if fresh := f.Fresh(); fresh.DeflatedSize() != 0 || &fresh.Plain()[0] != &f.Plain()[0] || string(fresh.Deflated(d)) != string(f.Deflated(d)) {
			t.Error("the fresh frame is another one")
		}
		if o := Opaque(text); o.Fresh() != o || o.DeflatedSize() != 0 {
			t.Error("what is never compressed needs no fresh frame")
		}
	})
	t.Run("what does not get smaller is the plain frame", func(t *testing.T) {
		for _, f := range []*Frame{NewFrame(OpText, []byte("short")), NewFrame(OpBinary, noise(4096)), NewFrame(OpPing, text[:100])} {
			if got := f.Deflated(d); &got[0] != &f.Plain()[0] {
				t.Errorf("%v of %d bytes was copied", f.Opcode(), len(f.Payload()))
			}
		}
	})
}

// noise is n bytes that do not compress, always the same.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
}

func ExampleFrame() {
	frame := NewFrame(OpText, []byte("Hello"))
	fmt.Printf("% x\n", frame.Plain())
	// Output: 81 05 48 65 6c 6c 6f
}

func ExampleAppendClose() {
	fmt.Printf("% x\n", AppendClose(nil, CloseGoingAway, "bye"))
	// Output: 88 05 03 e9 62 79 65
}

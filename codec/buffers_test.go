package codec

import (
	"bytes"
	"testing"

	"github.com/gobwas/ws"
)

// largeFrame is a binary message of a client.
func largeFrame(t testing.TB, payload []byte) []byte {
	t.Helper()
	frame, err := ws.CompileFrame(ws.MaskFrame(ws.NewBinaryFrame(payload)))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// Decoders that share buffers take turns in the middle of messages, and none sees what another one has received.
func TestDecodersShareBuffers(t *testing.T) {
	shared := &Buffers{Max: 1 << 20}
	const decoders, chunk = 7, 48 << 10
	var list [decoders]Decoder
	var want, rest [decoders][]byte
	for round := range 6 {
		for i := range list {
			if round == 0 {
				list[i] = Decoder{MaxMessage: -1, Buffers: shared}
			}
			want[i] = bytes.Repeat([]byte{byte(16*round + i)}, 60_000*(i+1)+round)
			rest[i] = largeFrame(t, want[i])
		}
		for open := decoders; open > 0; {
			for i := range list {
				d := &list[i]
				if len(rest[i]) == 0 {
					continue
				}
				part := bytes.Clone(rest[i][:min(chunk, len(rest[i]))])
				ev, n, ok, err := d.Next(part)
				if err != nil {
					t.Fatal(err)
				}
				if rest[i] = rest[i][n:]; !ok {
					continue
				}
				if !bytes.Equal(ev.Payload, want[i]) {
					t.Fatalf("round %d: decoder %d has another message", round, i)
				}
				d.Release()
				open--
			}
		}
	}
	if n := shared.Kept(); n == 0 || n > shared.Max {
		t.Errorf("%d bytes are kept of %d", n, shared.Max)
	}
}

// A message that comes in pieces of any size, and in fragments, is what was sent, and its buffers are used again.
func TestLargeMessagesInPieces(t *testing.T) {
	shared := &Buffers{Max: 4 << 20}
	d := Decoder{MaxMessage: 1 << 20, MaxFragments: -1, Buffers: shared}
	for _, size := range []int{65535, 65536, 65537, 131072, 200_001, 1 << 20} {
		payload := make([]byte, size)
		for i := range payload {
			payload[i] = byte(i * 7 / 3)
		}
		for _, piece := range []int{1021, 4096, 65536, 65537, 1 << 20} {
			for _, fragment := range []int{size, size/3 + 1} {
				var stream []byte
				for at := 0; at < size; at += fragment {
					f := ws.NewFrame(ws.OpBinary, at+fragment >= size, bytes.Clone(payload[at:min(at+fragment, size)]))
					if at > 0 {
						f.Header.OpCode = ws.OpContinuation
					}
					stream = append(stream, ws.MustCompileFrame(ws.MaskFrame(f))...)
				}
				var got []byte
				for buf := []byte(nil); len(stream) > 0; {
					n := min(piece, len(stream))
					buf = append(buf, stream[:n]...)
					stream = stream[n:]
					ev, used, ok, err := d.Next(buf)
					if err != nil {
						t.Fatal(err)
					}
					if ok {
						got = bytes.Clone(ev.Payload)
					}
					for buf = buf[used:]; !ok && len(stream) == 0 && len(buf) > 0; buf = buf[used:] {
						if ev, used, ok, err = d.Next(buf); err != nil || used == 0 {
							t.Fatal(used, err)
						}
						got = bytes.Clone(ev.Payload)
					}
				}
				if !bytes.Equal(got, payload) {
					t.Fatalf("a message of %d bytes in pieces of %d and fragments of %d has come as %d other bytes", size, piece, fragment, len(got))
				}
				if d.Release(); !d.Idle() || d.Buffered() > maxRetained {
					t.Fatalf("%d bytes are held after the message", d.Buffered())
				}
			}
		}
	}
	d.Reset()
	if n := shared.Kept(); n == 0 || n > shared.Max {
		t.Errorf("%d bytes are kept of %d", n, shared.Max)
	}
}

func TestLargeMessagesNeedNoNewMemory(t *testing.T) {
	frame := largeFrame(t, make([]byte, 1_000_000))
	d := Decoder{MaxMessage: -1, Buffers: &Buffers{Max: 4 << 20}}
	part := make([]byte, 64<<10)
	allocs := testing.AllocsPerRun(10, func() {
		for rest := frame; len(rest) > 0; {
			n := copy(part, rest)
			if _, used, _, err := d.Next(part[:n]); err != nil || used != n {
				t.Fatal(used, err)
			}
			rest = rest[n:]
		}
		d.Release()
	})
	if allocs > 0 {
		t.Errorf("a message costs %v allocations", allocs)
	}
}

func TestBuffersLetGo(t *testing.T) {
	p := &Buffers{Max: 3 * minBuffer}
	a, b := p.Get(minBuffer), p.Get(minBuffer)
	c := p.Get(2*minBuffer - 5)
	for _, one := range [][]byte{a, b, c, p.Get(64 << 20), make([]byte, 0, minBuffer+1), nil} {
		p.Put(one)
	}
	if n := p.Kept(); n != 2*minBuffer { // the third one is too much
		t.Errorf("%d bytes are kept", n)
	}
	p.Trim()
	p.Put(p.Get(minBuffer))
	if p.Trim(); p.Kept() != minBuffer { // one was needed
		t.Errorf("%d bytes are kept after the first Trim", p.Kept())
	}
	if p.Trim(); p.Kept() != 0 {
		t.Errorf("%d bytes are kept in the end", p.Kept())
	}
	for _, n := range []int{0, 1, maxRetained, maxRetained + 1, minBuffer, minBuffer + 1, 1 << 20, 1<<20 + 1, 2 << 20, 3 << 20} {
		if got := cap(p.Get(n)); got < n || n > maxRetained && got > 2*n {
			t.Errorf("for %d there are %d", n, got)
		}
	}
	var none *Buffers
	none.Put(none.Get(minBuffer))
	if got := cap((&Buffers{}).Get(minBuffer + 1)); got != minBuffer+1 {
		t.Errorf("without a Max it makes %d", got)
	}
}

// Buffers for something smaller than messages are kept as well, if that is asked for.
func TestBuffersOfOtherSizes(t *testing.T) {
	p := &Buffers{Max: 1 << 20, Min: 4 << 10}
	for n, want := range map[int]int{100: 100, 4095: 4095, 4 << 10: 4 << 10, 5000: 8 << 10, 64 << 10: 64 << 10, 3 << 20: 3 << 20} {
		b := p.Get(n)
		if cap(b) < want || cap(b) > want+want/4 { // make rounds up as well
			t.Errorf("for %d there are %d bytes, want %d", n, cap(b), want)
		}
		p.Put(b)
		kept := want >= 4<<10 && want <= 2<<20
		if again := p.Get(n); kept != (&again[:1][0] == &b[:1][0]) {
			t.Errorf("a buffer of %d: kept: %v, want %v", n, !kept, kept)
		}
	}
}

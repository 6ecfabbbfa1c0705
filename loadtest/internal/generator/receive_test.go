package generator

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// Receiving a message does not allocate.
func TestReceivingDoesNotAllocate(t *testing.T) {
	w := &worker{handshakes: newHistogram(), latency: newHistogram(), lostBy: map[string]int{}, failedBy: map[string]int{}}
	w.prepare(&Spec{Command: "fanout", Count: 1, Run: 1, Connections: 4, Senders: 2, Size: 128, Depth: 1})
	c := &w.conns[3]
	c.state = stateOpen
	const batch = 16
	sequence := uint32(0)
	frames := make([]byte, 0, batch*130)
	body := w.payloads.blank()
	if n := testing.AllocsPerRun(100, func() {
		frames = frames[:0]
		for range batch {
			w.payloads.put(body, stamp{1, sequence, 0})
			sequence++
			frames = append(binary.BigEndian.AppendUint16(append(frames, 0x82, 126), 128), body...)
		}
		if rest, _, ok := w.consume(3, c, frames, 1000); len(rest) != 0 || !ok {
			t.Fatal("the frames were not taken")
		}
	}); n > 1 { // the rows of arrivals grow now and then
		t.Errorf("%g allocations for %d messages", n, batch)
	}
	if w.ledger.received != 101*batch || w.Foreign != 0 {
		t.Errorf("%d received, %d foreign", w.ledger.received, w.Foreign)
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{128, 4096} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			w := &worker{handshakes: newHistogram(), latency: newHistogram()}
			w.prepare(&Spec{Command: "fanout", Count: 1, Run: 1, Connections: 4, Senders: 2, Size: size, Depth: 1})
			body := w.payloads.blank()
			frame := binary.BigEndian.AppendUint16([]byte{0x82, 126}, uint16(size))
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for n := range b.N {
				w.payloads.put(body, stamp{1, uint32(n), 0})
				frame = append(frame[:4], body...)
				w.consume(3, &w.conns[3], frame, 1000)
			}
		})
	}
}

package hub

import (
	"strings"
	"testing"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// A large message is encoded in the memory of its frame, which is taken once.
func TestLargeMessagesInJSON(t *testing.T) {
	for _, format := range []topic.Format{topic.FormatText, topic.FormatBinary, topic.FormatJSON} {
		unit := "1\x01\"\u2028"
		if format == topic.FormatJSON {
			unit = "1"
		}
		for _, size := range []int{envelope.LargeText / 8, envelope.LargeText, 70_000} {
			payload := strings.Repeat(unit, size/len(unit)+1)
			m := &Message{Topic: &topicState{Source: Source{Name: "prices"}}, Offset: 7, Format: format}
			m.WithRaw(codec.NewFrame(format.Opcode(), []byte(payload)))
			want := string(m.appendEnvelope(nil))
			f := m.Frame(reactor.FramingEnvelope)
			if got := string(f.Payload()); got != want {
				t.Fatalf("%v of %d bytes becomes %.60q, want %.60q", format, len(payload), got, want)
			}
			if f.Opcode() != codec.OpText || codec.FrameLen(f.Plain()) != len(f.Plain()) {
				t.Errorf("%v of %d bytes has the header % x", format, len(payload), f.Plain()[:10])
			}
			if len(payload) < envelope.LargeText {
				continue // in memory of a sync.Pool, which the race detector empties at random
			}
			if n := testing.AllocsPerRun(10, func() { m.encode(reactor.FramingEnvelope) }); n > 4 { // 3 without the race detector
				t.Errorf("%v of %d bytes takes %v allocations", format, len(payload), n)
			}
		}
	}
}

func BenchmarkLargeMessageInJSON(b *testing.B) {
	for _, row := range []struct{ name, unit string }{{"plain", "x"}, {"control", "\x01"}} {
		b.Run(row.name, func(b *testing.B) {
			raw := codec.NewFrame(codec.OpText, []byte(strings.Repeat(row.unit, 350<<10)))
			t := &topicState{Source: Source{Name: "prices"}}
			b.SetBytes(int64(len(raw.Payload())))
			b.ReportAllocs()
			for b.Loop() {
				m := &Message{Topic: t, Format: topic.FormatText}
				m.WithRaw(raw).Frame(reactor.FramingEnvelope)
			}
		})
	}
}

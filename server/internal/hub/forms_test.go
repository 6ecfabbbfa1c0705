package hub

import (
	"runtime"
	"strings"
	"testing"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// Whatever clients ask for a history in, JSON, events, compressed for windows of all sizes, takes a bounded amount of
// memory besides the messages. What they get stays the same.
func TestFormsOfAHistoryAreBounded(t *testing.T) {
	const messages, size = 200, 10_000
	top := &topicState{Source: Source{Name: "a"}, hub: &Hub{}, rule: &topic.Rule{History: messages, MaxBytes: -1, MaxAge: -1}}
	for i := range messages {
		m := &Message{Topic: top, Offset: uint64(i + 1), Format: topic.FormatText, Epoch: new(string)}
		top.keep(m.WithRaw(codec.NewFrame(codec.OpText, []byte(strings.Repeat("\x01\x02\x03\n\x05", size/5)))))
	}
	d := codec.NewDeflater(1, 1)
	before := testenv.HeapInUse()
	limit := int64(2*messages*size + messages*formCost)
	for window := uint8(8); window <= codec.MaxWindow; window++ {
		for kind := range reactor.NumFramings {
			for i, m := range top.history.all() {
				f := m.Frame(kind)
				f.DeflatedWithin(d, window)
				if i%10 == 9 {
					top.boundForms(top.history.all()[i-9 : i+1])
				}
				if top.forms > int(limit) || top.forms < 0 {
					t.Fatalf("%d B of forms of a history of %d B", top.forms, top.history.bytes)
				}
			}
		}
		if grown := testenv.HeapInUse() - before; grown > limit*5/4 && !testenv.Race {
			t.Fatalf("%d B of memory for forms of a history of %d B", grown, top.history.bytes)
		}
	}
	for _, m := range top.history.all() {
		if want := string(m.appendEnvelope(nil)); string(m.Frame(reactor.FramingEnvelope).Payload()) != want {
			t.Fatalf("message %d has changed", m.Offset)
		}
	}
	top.boundForms(top.history.all())
	for top.history.len() > 0 {
		top.dropOldest()
	}
	if top.forms != 0 {
		t.Errorf("%d B of forms are left of nothing", top.forms)
	}
	runtime.KeepAlive(top)
}

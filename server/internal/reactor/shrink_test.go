package reactor

import (
	"runtime"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/outbox"
)

// Whatever clients fill, and leave again, gives its memory back.
func TestWhatClientsFillGivesItsMemoryBack(t *testing.T) {
	var (
		due     deadlines
		stalled = &Shard{Engine: &Engine{}}
		conns   = make([]*Conn, 100_000) // which are not counted
		pending queue[Audience]
		one     Audience
	)
	for i := range conns {
		conns[i] = &Conn{sh: stalled, fd: int32(i), out: &outbox.Outbox{}, ext: &Extension{deadline: -1}}
	}
	for _, row := range []struct {
		name        string
		least       int // bytes that one takes when it is full
		fill, empty func(i int)
	}{
		{"deadlines", 16, func(i int) { due.Set(conns[i], time.Now().UnixMilli()+int64(i)) }, func(i int) { due.remove(conns[i]) }},
		{"connections that stall", 8, func(i int) {
			conns[i].out.Slot = len(stalled.Stalled)
			stalled.Stalled = append(stalled.Stalled, conns[i])
		}, func(i int) { stalled.unlist(conns[i].out) }},
		{"audiences with messages", 8, func(int) { pending.push(&one) }, func(int) { pending.pop() }},
	} {
		t.Run(row.name, func(t *testing.T) { testenv.GivesMemoryBack(t, row.least, row.fill, row.empty) })
	}
	runtime.KeepAlive([]any{&due, stalled, &pending, conns})
}

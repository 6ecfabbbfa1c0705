package server

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/hub"
	"carillon/server/internal/limit"
	"carillon/server/internal/reactor"
)

// Whatever clients fill, and leave again, gives its memory back: all but a small part of what it took.
func TestWhatClientsFillGivesItsMemoryBack(t *testing.T) {
	count := 100_000
	if raceEnabled {
		count = 2000 // to see that it works; the race detector changes what memory costs
	}
	s := start(t, topics(TopicRule{Match: "log", History: 1_000_000, MaxBytes: -1}))
	var (
		addresses = limit.NewAddresses(time.Now())
		waiting   reactor.Watcher
		due       reactor.Deadlines
		stalled   = &reactor.Shard{Engine: &s.engine}
		conns     = make([]*reactor.Conn, count) // which are not counted
		pending   reactor.Queue[reactor.Audience]
		audiences = make([]reactor.Audience, 1)
		index     hub.PatternIndex
		sources   = make([]hub.Source, count)
		history   hub.Ring
		kept      = &hub.Message{Raw: codec.NewFrame(codec.OpText, []byte("x"))}
	)
	for i := range conns {
		conns[i] = reactor.Assemble(reactor.Parts{
			Shard: stalled, FD: int32(i), Outbox: &reactor.Outbox{}, Extension: &reactor.Extension{Deadline: -1}})
	}
	for i := range sources {
		sources[i].Name = fmt.Sprintf("p.%d.*", i)
	}
	address := func(i int) limit.Key {
		return limit.KeyOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	for _, row := range []struct {
		name        string
		fill, empty func(i int)
		least       int // bytes that one takes when it is full
	}{
		{"addresses", func(i int) { addresses.Add(address(i), -1) }, func(i int) { addresses.Remove(address(i)) }, 16},
		{"sockets that are watched", func(i int) { waiting.Waiting.Set(conns[i].FD(), conns[i]) }, func(i int) { waiting.Forget(conns[i]) }, 12},
		{"deadlines", func(i int) {
			due.Set(conns[i], time.Now().UnixMilli()+int64(i))
		}, func(i int) { due.Remove(conns[i]) }, 16},
		{"connections that stall", func(i int) {
			conns[i].Outbox().Slot = len(stalled.Stalled)
			stalled.Stalled = append(stalled.Stalled, conns[i])
		}, func(i int) { stalled.Unlist(conns[i].Outbox()) }, 8},
		{"audiences with messages", func(int) { pending.Push(&audiences[0]) }, func(int) { pending.Pop() }, 8},
		{"patterns", func(i int) { index.Add(&sources[i]) }, func(i int) { index.Remove(&sources[i]) }, 64},
		{"histories", func(int) { history.Push(kept) }, func(int) { history.DropOldest() }, 8},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := heapBytes()
			for i := range count {
				row.fill(i)
			}
			full := heapBytes() - before
			for i := range count - 1 { // the last one stays
				row.empty(i)
			}
			left := heapBytes() - before
			row.empty(count - 1)
			if raceEnabled {
				return
			}
			if full < int64(row.least*count) {
				t.Errorf("it took only %d B", full)
			}
			if left > full/20 {
				t.Errorf("%d B are left of %d B", left, full)
			}
		})
	}
	runtime.KeepAlive([]any{addresses, &waiting, &due, stalled, &pending, &index, &history, conns})
}

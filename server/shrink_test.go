package server

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
)

// Whatever clients fill, and leave again, gives its memory back: all but a small part of what it took.
func TestWhatClientsFillGivesItsMemoryBack(t *testing.T) {
	count := 100_000
	if raceEnabled {
		count = 2000 // to see that it works; the race detector changes what memory costs
	}
	s := start(t, topics(TopicRule{Match: "log", History: 1_000_000, MaxBytes: -1}))
	conns := make([]Conn, count) // which are not counted
	for i := range conns {
		conns[i].fd, conns[i].ext = int32(i), &extension{deadline: -1}
	}
	var (
		addresses = limit.NewAddresses(time.Now())
		waiting   watcher
		due       deadlines
		stalled   = &shard{engine: &s.engine}
		outboxes  = make([]outbox, count)
		pending   queue[audience]
		audiences = make([]audience, 1)
		index     patternIndex
		sources   = make([]source, count)
		history   ring
		kept      = &message{raw: codec.NewFrame(codec.OpText, []byte("x"))}
	)
	for i := range sources {
		sources[i].name = fmt.Sprintf("p.%d.*", i)
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
		{"sockets that are watched", func(i int) { waiting.waiting.Set(conns[i].fd, &conns[i]) }, func(i int) { waiting.forget(&conns[i]) }, 12},
		{"deadlines", func(i int) {
			due.set(&conns[i], time.Now().UnixMilli()+int64(i))
		}, func(i int) { due.remove(&conns[i]) }, 16},
		{"connections that stall", func(i int) {
			outboxes[i].slot = len(stalled.stalled)
			conns[i].out, conns[i].sh = &outboxes[i], stalled
			stalled.stalled = append(stalled.stalled, &conns[i])
		}, func(i int) { stalled.unlist(conns[i].out) }, 8},
		{"audiences with messages", func(int) { pending.push(&audiences[0]) }, func(int) { pending.pop() }, 8},
		{"patterns", func(i int) { index.add(&sources[i]) }, func(i int) { index.remove(&sources[i]) }, 64},
		{"histories", func(int) { history.push(kept) }, func(int) { history.dropOldest() }, 8},
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
	runtime.KeepAlive([]any{addresses, &waiting, &due, stalled, &pending, &index, &history, conns, outboxes})
}

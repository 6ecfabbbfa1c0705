package server

import (
	"cmp"
	"runtime"
	gometrics "runtime/metrics"
	"slices"
	"sync/atomic"
	"time"

	"carillon/codec"
)

// memoryGuard keeps the process below Limits.MaxMemory as far as it can: above it nobody new comes in, and
// if that is not enough, those go for whom most waits.
//
// What it measures is what the Go runtime uses: all that it has of the system, without what it has free.
// Free memory serves whoever comes next, and the runtime gives it back in its own time, so to wait for that
// would be to refuse and to close for nothing; for the same reason garbage is collected before anybody is
// closed. A shed connection therefore counts after one collection and not when the system has its memory
// back. To free frames that many receivers share, all of those have to go: that is why it looks again after
// each batch instead of counting what it thinks it has freed.
type memoryGuard struct {
	srv     *Server
	measure func() int64
	collect func()
	every   time.Duration // how often it looks

	over atomic.Bool  // nobody new comes in
	used atomic.Int64 // bytes, as of memoryEvery ago; 0 without a mark

	// Owned by the goroutine that looks.
	collected time.Duration // when that was last, after the server was made
	took      time.Duration
	looks     int  // in a row that were above the mark
	shedding  bool // somebody was asked to go since the last collection
}

const (
	// memoryEvery is how often the memory is looked at.
	memoryEvery = time.Second

	// collectRarely is how often garbage is collected above the mark when nobody could be closed anyway, and
	// collectShare the part of the time that it may take, whatever the heap's size.
	collectRarely = 10 * time.Second
	collectShare  = 10

	// shedMost is how many connections one loop closes for one look, and shedLeast what must wait for one
	// to be worth it.
	shedMost  = 256
	shedLeast = 16 << 10
)

func newMemoryGuard(s *Server) memoryGuard {
	return memoryGuard{srv: s, measure: memoryUsed, collect: runtime.GC, every: memoryEvery, collected: -collectRarely}
}

// memoryUsed is what GOMEMLIMIT bounds, less what is free. The kernel's memory for sockets is not in it.
func memoryUsed() int64 {
	read := []gometrics.Sample{{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	gometrics.Read(read)
	return int64(read[0].Value.Uint64() - read[1].Value.Uint64() - read[2].Value.Uint64())
}

// refuses says whether nobody new comes in. A mark that was taken away counts at once.
func (g *memoryGuard) refuses() bool { return g.over.Load() && g.srv.opts().Limits.MaxMemory > 0 }

func (g *memoryGuard) look() {
	mark := int64(g.srv.opts().Limits.MaxMemory)
	if mark < 0 {
		g.used.Store(0)
		g.setOver(false, 0, 0)
		return
	}
	used, clean := g.measure(), false
	if used > mark {
		if clean = g.mayCollect(); clean {
			used = g.measure()
		}
	}
	g.used.Store(used)
	switch {
	case used > mark:
		g.setOver(true, used, mark)
		if g.looks++; g.looks > 1 && clean {
			g.shed(used - mark)
		}
	case used <= mark-mark/16:
		g.setOver(false, used, mark)
		fallthrough
	default:
		g.looks = 0
	}
}

// mayCollect collects garbage, unless that was done only just now.
func (g *memoryGuard) mayCollect() bool {
	pause := collectRarely
	if g.shedding || g.srv.queuedBytes() > 0 {
		pause = 0
	}
	now := g.srv.elapsed()
	if now-g.collected < max(pause, collectShare*g.took) {
		return false
	}
	g.collect()
	g.shedding = false
	g.collected = g.srv.elapsed()
	g.took = g.collected - now
	return true
}

func (g *memoryGuard) setOver(over bool, used, mark int64) {
	if g.over.Swap(over) == over {
		return
	}
	if over {
		g.srv.log.Warn("limits.max_memory is reached: new connections are refused", "used", Size(used), "max_memory", Size(mark))
	} else {
		g.srv.log.Info("memory is below limits.max_memory again", "used", Size(used), "max_memory", Size(mark))
	}
}

// shed asks each loop for its part of the excess.
func (g *memoryGuard) shed(excess int64) {
	all := g.srv.queuedBytes()
	if all == 0 {
		return
	}
	g.shedding = true
	for _, sh := range g.srv.allShards() {
		if queued := sh.stats.QueuedBytes.Load(); queued > 0 {
			sh.excess.Store(int64(float64(excess)*float64(queued)/float64(all)) + 1)
			sh.postTick()
		}
	}
}

// queuedBytes is what waits for slow consumers, counted for each of them.
func (s *Server) queuedBytes() (n int64) {
	for _, sh := range s.allShards() {
		n += sh.stats.QueuedBytes.Load()
	}
	return n
}

// shed closes those for whom most waits, until so many bytes waited for them, counted for each.
func (sh *shard) shed(excess int64) {
	type slow struct {
		conn  *Conn
		bytes int
	}
	var list []slow
	for _, c := range sh.stalled {
		if c.out.bytes >= shedLeast && c.state.Load() == stateOpen {
			list = append(list, slow{c, c.out.bytes})
		}
	}
	slices.SortFunc(list, func(a, b slow) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, one := range list[:min(len(list), shedMost)] {
		if excess <= 0 {
			return
		}
		c := one.conn
		if c.out == nil || c.state.Load() != stateOpen {
			continue
		}
		excess -= int64(one.bytes)
		sh.stats.cut(CutMemory)
		c.dropWaiting(DropMemory, 0)
		c.beginClose(closeOwn, codec.CloseTryAgainLater, "server is short of memory")
	}
}

var rejectMemory = &codec.Rejection{Status: 503, Reason: "server is short of memory", Header: [][2]string{{"Retry-After", "5"}}}

package server

import (
	"context"
	"runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"sync/atomic"
	"time"

	"carillon/codec"
)

// memoryGuard keeps the process below Limits.MaxMemory, and below the limit of its cgroup, as far as it can:
// above it no new connection is accepted, and the connections that hold most are closed.
//
// It compares the limits with what was still in use after the last collection of garbage. Free memory serves the
// next connection, and garbage is no reason to close one; so when memory looks used up and that is not known, it
// collects garbage first. Only when the process comes so close to its end that there may be no time for that,
// connections are closed without knowing (see urgent).
//
// To free frames that many receivers share, all of those have to go. So it looks again after each batch instead
// of counting what it thinks it has freed.
type memoryGuard struct {
	srv     *Server
	find    func() memorySystem
	measure func(*memoryLimit) memoryUse
	collect func(release bool) // garbage, and give back what is free
	every   time.Duration      // how often it looks at least, and how long it refuses at least

	over  atomic.Bool                 // no new connection is accepted
	used  atomic.Int64                // by the runtime, as of the last look; 0 without a limit
	limit atomic.Pointer[memoryLimit] // nil before the server runs

	// Owned by the goroutine that looks.
	refreshed  time.Duration // when the environment was read, after the server was made
	overSince  time.Duration
	collecting chan struct{} // closed when the collection that runs is done; nil while none does
	collected  time.Duration // when the last one ended
	began      time.Duration
	took       time.Duration
	unsure     int           // collections that have to end before it is known what shedding has freed
	shed       time.Duration // when loops were last asked to close connections
	shedUse    int64         // bytes that were used then
}

// memoryLimit is what the guard compares with.
type memoryLimit struct {
	mark   int64 // Limits.MaxMemory, or its default; negative is off
	source string
	hard   int64   // above it the kernel ends processes; 0 if it is not known
	group  *cgroup // whose limit may be lower than that allows for; nil without one
	option Size    // what MaxMemory was
}

// memoryUse is what is used, in bytes.
type memoryUse struct {
	used  int64 // by the Go runtime: all that it has of the system less what it has free
	kept  int64 // the same, of the heap only what the last collection found in use
	group int64 // by the cgroup; 0 without one
	other int64 // of that, what is not the Go runtime's
}

const (
	// memoryEvery is how often the memory is looked at when there is much room, and memoryFastest how often when
	// there is little.
	memoryEvery   = time.Second
	memoryFastest = 10 * time.Millisecond

	// memoryGrowth is how fast one processor is thought to be able to fill memory, in bytes a second. The next look
	// is before the room that there is can be used up at this rate.
	memoryGrowth = 1 << 30

	// memoryRefresh is how often the environment is read for other limits.
	memoryRefresh = 10 * time.Second

	// shedPatience is how long a collection waits for loops that have not closed yet whom they were asked to close.
	shedPatience = 100 * time.Millisecond

	// collectRarely is how often garbage is collected above the mark when no connection could be closed anyway, and
	// collectShare the part of the time that it may take, whatever the heap's size; it may take more when connections
	// were closed and it is not known what that has freed.
	collectRarely      = 10 * time.Second
	collectShare       = 10
	collectUrgentShare = 2
)

func newMemoryGuard(s *Server) memoryGuard {
	return memoryGuard{srv: s, find: func() memorySystem { return findMemory("") }, measure: measureMemory,
		collect: collectGarbage, every: memoryEvery, collected: -collectRarely}
}

func collectGarbage(release bool) {
	if release {
		debug.FreeOSMemory() // which collects garbage first
		return
	}
	runtime.GC()
}

// measureMemory reads the figures of the runtime, and of the cgroup.
func measureMemory(l *memoryLimit) (u memoryUse) {
	read := []gometrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	gometrics.Read(read)
	value := func(i int) int64 { return int64(read[i].Value.Uint64()) }
	resident := value(0) - value(1)
	u.used = resident - value(2)
	u.kept = u.used - max(value(3)-value(4), 0)
	if l.group != nil {
		u.group = l.group.workingSet(l.groupMark())
		u.other = max(u.group-resident, 0)
	}
	return u
}

// memoryUsed is what GOMEMLIMIT bounds, less what is free.
func memoryUsed() int64 { return measureMemory(&memoryLimit{}).used }

// groupMark is for the cgroup what the mark is for the runtime.
func (l *memoryLimit) groupMark() int64 { return l.group.limit / 10 * 9 }

// isUrgent reports whether there may be no time for a collection of garbage: more than 92 % of what the kernel allows
// is in use, or 95 % with what is free. That is more than [LimitRuntimeMemory] lets garbage grow to.
func (l *memoryLimit) isUrgent(u memoryUse) bool {
	return l.hard > 0 && u.used > max(l.mark, l.hard/100*92) || l.group != nil && u.group > l.group.limit/100*95
}

// excess is by how much is used too much for certain.
func (l *memoryLimit) excess(u memoryUse) int64 {
	excess := u.kept - l.mark
	if l.group != nil {
		excess = max(excess, u.kept+u.other-l.groupMark())
	}
	return excess
}

// room is how much may be used, garbage included, until anything has to be done.
func (l *memoryLimit) room(u memoryUse) int64 {
	room := l.mark - u.used
	if l.group != nil {
		room = min(room, l.groupMark()-u.group)
	}
	return room
}

// refuses reports whether new connections are refused. A limit that was turned off counts at once.
func (g *memoryGuard) refuses() bool { return g.over.Load() && g.srv.opts().Limits.MaxMemory >= 0 }

// limitNow is the limit in force. The environment is read again every now and then: limits of cgroups change while
// processes run.
func (g *memoryGuard) limitNow() *memoryLimit {
	now, was := g.srv.engine.Uptime(), g.limit.Load()
	if was != nil && was.option == g.srv.opts().Limits.MaxMemory && now-g.refreshed < memoryRefresh {
		return was
	}
	g.refreshed = now
	system := g.find()
	limitRuntimeAgain(system)
	l := g.limitIn(system)
	g.limit.Store(l)
	switch {
	case was == nil: // applications that want to tell have MaxMemory
		g.srv.log.Debug("memory limit", "max_memory", Size(l.mark), "source", l.source)
	case l.mark != was.mark:
		g.srv.log.Info("memory limit changed", "max_memory", Size(l.mark), "source", l.source)
	}
	return l
}

// current is the limit in force, for callers that do not look after the memory.
func (g *memoryGuard) current() *memoryLimit {
	l := g.limit.Load()
	if l == nil || l.option != g.srv.opts().Limits.MaxMemory {
		l = g.limitIn(g.find())
	}
	return l
}

func (g *memoryGuard) limitIn(system memorySystem) *memoryLimit {
	l := &memoryLimit{option: g.srv.opts().Limits.MaxMemory, source: explicitMemory, group: system.group, hard: system.physical}
	if l.mark = int64(l.option); l.option == 0 {
		mark, source := system.defaultLimit()
		l.mark, l.source = int64(mark), source
	}
	if l.group != nil && (l.hard == 0 || l.group.limit < l.hard) {
		l.hard = l.group.limit
	}
	return l
}

// run looks until ctx ends, the more often the less room there is.
func (g *memoryGuard) run(ctx context.Context) {
	timer := time.NewTimer(g.every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.collecting: // never while it is nil
		case <-timer.C:
		}
		timer.Reset(g.look())
	}
}

// look returns when to look again.
func (g *memoryGuard) look() time.Duration {
	g.endCollection()
	l := g.limitNow()
	if l.mark < 0 {
		g.used.Store(0)
		g.setOver(false, l, memoryUse{})
		return g.every
	}
	u := g.measure(l)
	g.used.Store(u.used)
	room, urgent := l.room(u), l.isUrgent(u)
	tooMuch := l.excess(u) + l.mark/16 // to be below the limit for good
	switch {
	case urgent:
		g.setOver(true, l, u)
		if g.unsure == 0 || u.used-g.shedUse > l.mark/64 {
			g.ask(-room, u)
		}
	case tooMuch > l.mark/16 || tooMuch > 0 && g.over.Load():
		g.setOver(true, l, u)
		if g.unsure == 0 {
			g.ask(min(tooMuch, g.srv.engine.HeldBytes()/2+1), u) // what is counted may be less than what it takes
		}
	case tooMuch <= 0 && g.srv.engine.Uptime()-g.overSince >= g.every:
		g.setOver(false, l, u)
	}
	if room < 0 || g.over.Load() {
		g.collectSoon(urgent, l.group != nil && u.group > l.groupMark())
	}
	return g.pause(room)
}

// pause is how long it takes to use up that room, at the fastest.
func (g *memoryGuard) pause(room int64) time.Duration {
	ms := room / (memoryGrowth / 1000 * int64(runtime.GOMAXPROCS(0)))
	return min(max(time.Duration(ms)*time.Millisecond, memoryFastest), g.every)
}

// collectSoon begins to collect garbage, unless that was done only just now.
func (g *memoryGuard) collectSoon(urgent, release bool) {
	pause, share := collectRarely, time.Duration(collectShare)
	if g.srv.engine.HeldBytes() > 0 {
		pause = 0
	}
	if urgent || g.unsure > 0 {
		pause, share = 0, collectUrgentShare
	}
	now := g.srv.engine.Uptime()
	if g.collecting != nil || now-g.collected < max(pause, (share-1)*g.took) || g.srv.engine.IsShedding() && now-g.shed < shedPatience {
		return
	}
	done := make(chan struct{})
	g.collecting, g.began = done, now
	go func() {
		defer close(done)
		g.collect(release)
	}()
}

// endCollection notes that the collection is done.
func (g *memoryGuard) endCollection() {
	select {
	case <-g.collecting:
		g.collecting = nil
		g.collected = g.srv.engine.Uptime()
		g.took = g.collected - g.began
		g.unsure = max(g.unsure-1, 0)
	default:
	}
}

// ask has the loops close connections until they have freed the given number of bytes.
func (g *memoryGuard) ask(excess int64, u memoryUse) {
	if !g.srv.engine.Shed(excess) {
		return
	}
	g.unsure, g.shed, g.shedUse = 1, g.srv.engine.Uptime(), u.used
	if g.collecting != nil { // that one does not find it
		g.unsure++
	}
}

func (g *memoryGuard) setOver(over bool, l *memoryLimit, u memoryUse) {
	if over {
		g.overSince = g.srv.engine.Uptime()
	}
	if g.over.Swap(over) == over {
		return
	}
	args := []any{"used", roundedSize(u.used), "max_memory", Size(l.mark), "source", l.source}
	if l.group != nil {
		args = append(args, "cgroup_used", roundedSize(u.group), "cgroup_limit", roundedSize(l.group.limit))
	}
	if over {
		g.srv.log.Warn("limits.max_memory reached; refusing new connections", args...)
	} else {
		g.srv.log.Info("memory below limits.max_memory again", args...)
	}
}

var rejectMemory = &codec.Rejection{Status: 503, Reason: "server is low on memory", Header: [][2]string{{"Retry-After", "5"}}}

package reactor

import (
	"cmp"
	"slices"

	"carillon/codec"
	"carillon/server/stats"
)

const (
	// maxShed is how many connections one loop closes in one turn, and shedLeast what one must hold to be worth
	// it.
	maxShed   = 256
	ShedLeast = 16 << 10
)

// Shed has the loops close connections that hold so many bytes, each of them its part, and reports whether there are
// any.
func (e *Engine) Shed(excess int64) bool {
	all := e.HeldBytes()
	if all == 0 {
		return false
	}
	for _, sh := range e.AllShards() {
		if held := sh.held(); held > 0 {
			sh.excess.Store(int64(float64(excess)*float64(held)/float64(all)) + 1)
			sh.PostTick()
		}
	}
	return true
}

// IsShedding reports whether a loop has not begun with what it was asked for.
func (e *Engine) IsShedding() bool {
	return slices.ContainsFunc(e.AllShards(), func(sh *Shard) bool { return sh.excess.Load() > 0 })
}

// HeldBytes is what waits for slow consumers, counted for each of them, and what has come of large messages that
// are not complete.
func (e *Engine) HeldBytes() (n int64) {
	for _, sh := range e.AllShards() {
		n += sh.held()
	}
	return n
}

func (sh *Shard) held() int64 { return sh.Stats.QueuedBytes.Load() + sh.partial.Load() }

// shedExcess closes the connections that hold most, until they held so many bytes that the guard is content. Other
// events on the loop have their turn after each batch.
func (sh *Shard) shedExcess() {
	excess := sh.excess.Swap(0)
	if excess <= 0 {
		return
	}
	list, more := sh.largest()
	for _, one := range list {
		if excess <= 0 {
			return
		}
		excess -= int64(one.bytes)
		one.conn.shed()
	}
	if excess > 0 && more {
		sh.excess.CompareAndSwap(0, excess)
		sh.PostTick()
	}
}

// holder is a connection and what it holds.
type holder struct {
	conn  *Conn
	bytes int
}

// largest returns the maxShed connections that hold most, the largest first, of those that hold enough to be closed for
// it, and whether there are more. It never sorts more than twice as many at once: a loop that has 100,000 slow
// consumers must not stand still for it.
func (sh *Shard) largest() (list []holder, more bool) {
	list = make([]holder, 0, 2*maxShed)
	least := ShedLeast
	largestFirst := func(a, b holder) int { return cmp.Compare(b.bytes, a.bytes) }
	add := func(c *Conn, bytes int) {
		if bytes < least {
			more = more || bytes >= ShedLeast
			return
		}
		if list = append(list, holder{c, bytes}); len(list) == cap(list) {
			slices.SortFunc(list, largestFirst)
			list, more = list[:maxShed], true
			least = list[maxShed-1].bytes + 1
		}
	}
	for _, c := range sh.Stalled {
		if c.state.Load() == StateOpen {
			add(c, c.out.Bytes)
		}
	}
	for _, in := range sh.partials {
		add(in.conn, in.counted)
	}
	slices.SortFunc(list, largestFirst)
	return list[:min(len(list), maxShed)], more || len(list) > maxShed
}

// shed closes a connection because memory is short. One that has sent part of a large message is not listened to any
// more: otherwise the rest of that would come.
func (c *Conn) shed() {
	how := CloseOwn
	if c.in != nil && c.in.counted > 0 {
		how = CloseFail
	}
	switch state := c.state.Load(); {
	case state == StateOpen:
		c.sh.Stats.Cut(stats.CutMemory)
		if c.out != nil {
			c.discardWaiting(stats.DropMemory)
		}
		if how == CloseFail {
			c.dropInput()
		}
		c.beginClose(how, codec.CloseTryAgainLater, "server is low on memory")
	case state == StateClosing && how == CloseFail: // it was given a moment for its close frame
		c.Mark(MarkPeerDone, true)
		c.dropInput()
		c.flushed()
	}
}

// weigh notes how much of an incomplete message is kept, if that is worth shedding.
func (sh *Shard) weigh(c *Conn) {
	in := c.in
	size := cap(in.Rest) + in.decoder.Buffered()
	if size < ShedLeast {
		sh.unweigh(in)
		return
	}
	if in.counted == 0 {
		in.conn, in.slot = c, len(sh.partials)
		sh.partials = append(sh.partials, in)
	}
	sh.partial.Add(int64(size - in.counted))
	in.counted = size
}

func (sh *Shard) unweigh(in *inbound) {
	if in.counted == 0 {
		return
	}
	sh.partial.Add(-int64(in.counted))
	in.counted, in.conn = 0, nil
	last := len(sh.partials) - 1
	sh.partials[in.slot] = sh.partials[last]
	sh.partials[in.slot].slot = in.slot
	sh.partials[last] = nil
	sh.partials = sh.partials[:last]
}

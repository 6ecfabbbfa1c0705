package server

import (
	"slices"
	"sync"
	"time"

	"carillon/internal/shrink"
	"carillon/server/internal/limit"
)

// pastUse is what connections had used that have closed, by address. Who comes back goes on where he was: otherwise
// those that send one heavy message on each connection would always come before those that stay. Only newcomers that use
// much themselves get a share, one each, so it means nothing to others of the same address. The zero value is empty; its
// methods may be called from any goroutine.
type pastUse struct {
	mu    sync.Mutex
	lists shrink.Map[limit.Key, []used] // guarded by mu
	count int                           // of what is in the lists; guarded by mu
}

// used is what a connection had used when it closed.
type used struct{ loop, offloaded usage }

const (
	// leastPast is the least use that is remembered, and maxPast is of how many connections.
	leastPast = 500 * time.Microsecond
	maxPast   = 8192 // about 50 B each

	// newcomerFor is how long a connection is a newcomer, and newcomerUse what it uses of a loop before it gets a share.
	newcomerFor = 3 // seconds
	newcomerUse = 2 * quantum
)

func (u *used) lately(now time.Duration) time.Duration {
	return u.loop.lately(now) + u.offloaded.lately(now)
}

// leave remembers what a connection had used that closes now.
func (p *pastUse) leave(key limit.Key, u used, now time.Duration) {
	if u.lately(now) < leastPast {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == maxPast {
		p.forget(now)
	}
	if p.count < maxPast {
		p.lists.Set(key, append(p.lists.Get(key), u))
		p.count++
	}
}

// take returns what the connection of the address had used that closed last, and forgets it.
func (p *pastUse) take(key limit.Key, now time.Duration) (last used) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.lists.Get(key); len(list) > 0 {
		last = list[len(list)-1]
		p.set(key, list[:len(list)-1])
		p.count--
	}
	return last
}

func (p *pastUse) set(key limit.Key, list []used) {
	if len(list) == 0 {
		p.lists.Delete(key)
		return
	}
	p.lists.Set(key, shrink.Slice(list))
}

// sweep forgets what matters no more.
func (p *pastUse) sweep(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(now)
}

// forget is sweep for who holds mu.
func (p *pastUse) forget(now time.Duration) {
	for key, list := range p.lists.All() {
		before := len(list)
		list = slices.DeleteFunc(list, func(u used) bool { return u.lately(now) < leastPast })
		p.count -= before - len(list)
		p.set(key, list)
	}
}

// charge adds a turn to what a connection has used of its loop.
func (w *workload) charge(took, now time.Duration) {
	w.used.addTurn(took, now)
	if !w.inherited && w.used.lately(now) > newcomerUse {
		w.inherit(now)
	}
}

// inherit adds what a connection of the same address had used to what a newcomer uses.
func (w *workload) inherit(now time.Duration) {
	w.inherited = true
	c := w.conn
	e := c.sh.engine
	if key := c.sharer(); key != nobodys && e.uptimeSeconds()-c.opened <= newcomerFor {
		past := e.past.take(key, now)
		w.used.add(past.loop.lately(now), now)
		w.offloaded.add(past.offloaded.lately(now), now)
	}
}

// leaveUse has a connection of the same address inherit what this one has used.
func (c *Conn) leaveUse() {
	w := c.workload()
	if w == nil {
		return
	}
	if key := c.sharer(); key != nobodys {
		c.sh.engine.past.leave(key, used{w.used, w.offloaded}, c.sh.engine.uptime())
	}
}

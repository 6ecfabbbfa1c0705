package server

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"carillon/server/internal/reactor"
)

// connIndex is a list of the open connections by id, made when a client of the internal interface pages through them.
// Connections themselves are in no order, so each page would otherwise look at all of them.
type connIndex struct {
	mu      sync.Mutex
	list    []entry
	made    time.Time
	cost    time.Duration // of making it
	forget  *time.Timer
	reached uint64 // the highest id at that time
}

type entry struct {
	id   uint64
	conn *Conn
}

// A list serves all pages for a while. A first page wants a new one, but making lists takes no more than
// a small part of the time, however often it is asked for.
const (
	connIndexLife = 10 * time.Second
	connIndexPart = 20
)

// page returns open connections with ids above after, and reports whether there are more. One that is open
// throughout the pages is in exactly one of them.
func (r *connIndex) page(s *Server, after uint64, limit int) (conns []*Conn, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	age, fresh := time.Since(r.made), after == 0 || after >= r.reached
	if age > connIndexLife || fresh && age > connIndexPart*r.cost {
		r.make(s)
	}
	i, found := r.search(after)
	if found {
		i++
	}
	for ; i < len(r.list); i++ {
		c := r.list[i].conn
		if c.core().State().Load() != reactor.StateOpen {
			continue
		}
		if len(conns) == limit {
			return conns, true
		}
		conns = append(conns, c)
	}
	return conns, false
}

func (r *connIndex) search(id uint64) (int, bool) {
	return slices.BinarySearchFunc(r.list, id, func(e entry, id uint64) int { return cmp.Compare(e.id, id) })
}

// make lists the connections of now. The caller holds mu.
func (r *connIndex) make(s *Server) {
	began := time.Now()
	r.list = slices.Grow([]entry(nil), s.Count())
	r.reached = s.engine.LastID.Load()
	for c := range s.Conns() {
		r.list = append(r.list, entry{c.ID(), c})
	}
	slices.SortFunc(r.list, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	r.made = time.Now()
	r.cost = r.made.Sub(began)
	if r.forget == nil {
		r.forget = time.AfterFunc(connIndexLife, r.drop)
	} else {
		r.forget.Reset(connIndexLife)
	}
}

// drop gives the memory back, that of connections that are gone included.
func (r *connIndex) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.made) >= connIndexLife {
		r.list, r.made = nil, time.Time{}
	}
}

// find returns an open connection, or nil.
func (r *connIndex) find(s *Server, id uint64) *Conn {
	r.mu.Lock()
	i, found := r.search(id)
	if found && r.list[i].conn.core().State().Load() == reactor.StateOpen {
		defer r.mu.Unlock()
		return r.list[i].conn
	}
	r.mu.Unlock()
	for c := range s.Conns() {
		if c.ID() == id {
			return c
		}
	}
	return nil
}

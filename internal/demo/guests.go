package demo

import (
	"container/list"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"carillon/server"
)

// guests indexes the connections of the chat, so that the work for one of them does not grow with the number of
// the others. Guarded by room.mu.
type guests struct {
	byConn    map[*server.Conn]*guest
	bySession map[string]*guest // those that have joined
	byKey     map[string]*guest // the same
	waiting   list.List         // those that have not joined, the oldest first
	silence   list.List         // those that have joined, the one first that has been silent for longest
}

// guest is a connection to the chat, before and after it has joined.
type guest struct {
	conn    *server.Conn
	name    string // "" before joining
	key     string // nameKey of name
	session string
	heard   time.Time     // when the guest said something last, or connected
	why     string        // of leaving, if the room knows it
	rate    bucket        // of what the guest says
	strikes int           // messages refused in a row
	place   *list.Element // in waiting or silence
}

func newGuests() guests {
	return guests{byConn: map[*server.Conn]*guest{}, bySession: map[string]*guest{}, byKey: map[string]*guest{}}
}

// add adds a connection that has not joined. If there are too many of these, it removes the oldest and returns it.
func (gs *guests) add(c *server.Conn, now time.Time) (evicted *guest) {
	g := &guest{conn: c, heard: now}
	gs.byConn[c] = g
	g.place = gs.waiting.PushBack(g)
	if gs.waiting.Len() <= maxWaiting {
		return nil
	}
	evicted = first(&gs.waiting)
	gs.remove(evicted)
	return evicted
}

// join gives a guest a name that freeName has returned.
func (gs *guests) join(g *guest, name, key, session string, now time.Time) {
	gs.waiting.Remove(g.place)
	g.name, g.key, g.session, g.heard = name, key, session, now
	g.place = gs.silence.PushBack(g)
	gs.bySession[session], gs.byKey[key] = g, g
}

func (gs *guests) remove(g *guest) {
	delete(gs.byConn, g.conn)
	if g.name == "" {
		gs.waiting.Remove(g.place)
		return
	}
	gs.silence.Remove(g.place)
	delete(gs.bySession, g.session)
	delete(gs.byKey, g.key)
}

// noteHeard notes that a guest has said something.
func (gs *guests) noteHeard(g *guest, now time.Time) {
	g.heard = now
	gs.silence.MoveToBack(g.place)
}

// first returns the first guest of a list, or nil.
func first(l *list.List) *guest {
	if e := l.Front(); e != nil {
		return e.Value.(*guest)
	}
	return nil
}

// freeName returns a name that is free, and its key: the one that is asked for, or that with a number.
func (gs *guests) freeName(name string) (free, key string) {
	return freeName(name, func(key string) bool { return gs.byKey[key] != nil })
}

// Numbers behind a name go up from 2, and are chosen at random beyond lastInOrder: a crowd of the same name would have
// all others of that name try all of its numbers.
const (
	lastInOrder = 9
	lastNumber  = 9999 // many more than there can be people, so that a few tries are enough
)

func freeName(name string, taken func(key string) bool) (free, key string) {
	free, key = name, nameKey(name)
	runes := []rune(name)
	for n := 2; taken(key); n++ {
		number := fmt.Sprintf(" %d", n)
		if n > lastInOrder {
			number = fmt.Sprintf(" %d", lastInOrder+1+rand.IntN(lastNumber-lastInOrder))
		}
		free = strings.TrimSpace(string(runes[:min(len(runes), maxName-len(number))])) + number
		key = nameKey(free)
	}
	return free, key
}

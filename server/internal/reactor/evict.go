package reactor

import (
	"errors"
	"math/rand/v2"
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/stats"
)

// When Limits.MaxConnections is reached, a newcomer takes the place of a connection that the server need not keep:
// one that was answered and that its client does not close, one that has not come to a request, or one of plain HTTP
// that carries no request. So clients that connect and say nothing cannot keep others out, however many they are.
// WebSockets, and requests that are being decided or answered, are never closed for it.

const (
	// evictSamples is how many connections are compared to find the one to close: looking at all of them would
	// take longer the more an attacker opens.
	evictSamples = 32

	// evictShare is how many of those an address may have before its oldest is closed at once. Below that a
	// connection has EvictGrace to send its request, and always as long to read its answer.
	evictShare = 2
	EvictGrace = time.Second
)

var (
	errEvicted  = errors.New("evicted before sending a request: limits.max_connections is reached")
	errLingered = errors.New("evicted: the client got its response and did not close the connection")
)

var rejectEvicted = &codec.Rejection{Status: 503, Reason: "server is full and the request did not arrive in time", Header: [][2]string{{"Retry-After", "5"}}}

// makeRoom closes a connection of this loop in favour of a newcomer, and reports whether there was one.
func (sh *Shard) makeRoom() bool {
	sh.BeginTurn()
	defer sh.EndSocketTurn()
	return sh.evictLingering() || sh.evictShaking()
}

// sample are some members, evenly spread over the table from a random one on.
func (g *Table) sample() (slots []int) {
	all := len(g.Members)
	n := min(all, evictSamples)
	for i, first := 0, rand.IntN(all+1); i < n; i++ {
		slots = append(slots, (first+i*all/n)%all)
	}
	return slots
}

// evictLingering closes the oldest socket of which only the client's end is still open.
func (sh *Shard) evictLingering() bool {
	var victim *Conn
	oldest := EvictGrace
	for _, i := range sh.closing.sample() {
		c, age := sh.closing.Members[i].Conn, sh.since(sh.closing.Times[i].Read)
		if c.state.Load() == stateLingering && age >= oldest {
			victim, oldest = c, age
		}
	}
	if victim == nil {
		return false
	}
	victim.Abort(errLingered)
	return true
}

// evictShaking closes a connection that has not come to a request: the oldest, which has the lowest id, of the
// address that most of the sample have.
func (sh *Shard) evictShaking() bool {
	type candidate struct {
		conn *Conn
		from limit.Key
		age  time.Duration
	}
	var list []candidate
	for _, i := range sh.Handshaking.sample() {
		if c := sh.Handshaking.Members[i].Conn; c.isEvictable() {
			list = append(list, candidate{c, c.sharer(), sh.since(sh.Handshaking.Times[i].Message)})
		}
	}
	var victim candidate
	most := 0
	for _, a := range list {
		n := 0
		for _, b := range list {
			if a.from == b.from && a.from != unknownKey {
				n++
			}
		}
		if victim.conn == nil || n > most || n == most && a.conn.id < victim.conn.id {
			victim, most = a, n
		}
	}
	if victim.conn == nil || most <= evictShare && victim.age < EvictGrace {
		return false
	}
	victim.conn.evict(stats.RefuseEvicted, rejectEvicted, errEvicted)
	return true
}

// since is the time that has gone by on the shard's clock.
func (sh *Shard) since(t uint32) time.Duration { return time.Duration(sh.Clock-t) * time.Millisecond }

// isEvictable reports whether nothing but its client keeps a connection in its handshake. One that was accepted
// beyond the limit makes no room.
func (c *Conn) isEvictable() bool { return !c.Is(MarkFull) && !c.Owner().IsDeciding(c) }

// unknownKey stands for the address of a client that is not known. No client has 0:0:0:1::/64.
const unknownKey limit.Key = 1

// sharer is the address that shares a full server with others, or unknownKey if it is a proxy's, behind which there
// may be many clients, or there is none.
func (c *Conn) sharer() limit.Key {
	a := AddrOf(c.remote)
	if !a.IsValid() || c.Is(MarkPreface) || c.sh.Engine.Settings().Trusted.Contains(a) {
		return unknownKey
	}
	return limit.KeyOf(a)
}

// evict closes a connection in its handshake at once, after an answer, which may be nil, where its client can read
// one: to wait for the client's end would keep its place.
func (c *Conn) evict(why stats.RefuseReason, answer *codec.Rejection, err error) {
	sh := c.sh
	if sh.Engine.LogsEvents() {
		sh.Engine.LogEvent("connection evicted", "id", c.id, "remote", ShownAddr(c.RemoteAddr()), "reason", why.String())
	}
	c.state.Store(StateClosing) // its end is accounted for
	if answer != nil && c.CanAnswer() && c.out == nil && !c.Is(MarkPreface) {
		_, _ = c.put(answer.AppendResponse(nil))
	}
	c.dropHandshake()
	c.Abort(err)
	sh.Stats.Refusals[why].Add(1)
}

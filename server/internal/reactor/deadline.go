package reactor

import "carillon/internal/indexheap"

// deadlines are the connections of a shard that end at some time, as a heap: the sweep only looks at the first. So such
// a connection has no timer, nor is it looked at before its time. Owned by the loop.
type deadlines struct{ Heap indexheap.Heap[deadline] }

type deadline struct {
	at   int64 // milliseconds since 1970
	conn *Conn
}

func (d deadline) Before(other deadline) bool { return d.at < other.at }
func (d deadline) Place() *int                { return &d.conn.ext.deadline }

// Set enters a connection with an extension, or moves it. 0 is never.
func (d *deadlines) Set(c *Conn, at int64) {
	d.remove(c)
	if at != 0 {
		d.Heap.Insert(deadline{at: at, conn: c})
	}
}

// remove takes a connection out, if it is in.
func (d *deadlines) remove(c *Conn) {
	if c.ext != nil && c.ext.deadline >= 0 {
		d.Heap.Remove(deadline{conn: c})
	}
}

// expireNext ends one connection whose time has come, if there is one.
func (sh *Shard) expireNext() bool {
	if sh.Deadlines.Heap.Len() == 0 || sh.Engine.Wall().UnixMilli() < sh.Deadlines.Heap[0].at {
		return false
	}
	c := sh.Deadlines.Heap[0].conn
	sh.Deadlines.remove(c)
	c.Owner().Expired(c)
	return true
}

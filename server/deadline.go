package server

// deadlines are the connections of a shard that end at some time, as a heap: the sweep only looks at the first. So such
// a connection has no timer, nor is it looked at before its time. Owned by the loop.
type deadlines struct{ heap indexedHeap[deadline] }

type deadline struct {
	at   int64 // milliseconds since 1970
	conn *Conn
}

func (d deadline) before(other deadline) bool { return d.at < other.at }
func (d deadline) place() *int                { return &d.conn.ext.deadline }

// set enters a connection with an extension, or moves it. 0 is never.
func (d *deadlines) set(c *Conn, at int64) {
	d.remove(c)
	if at != 0 {
		d.heap.push(deadline{at: at, conn: c})
	}
}

func (d *deadlines) remove(c *Conn) {
	if c.ext != nil && c.ext.deadline >= 0 {
		d.heap.remove(deadline{conn: c})
	}
}

// expireNext ends one connection whose time has come, if there is one.
func (sh *shard) expireNext() bool {
	if sh.deadlines.heap.Len() == 0 || sh.engine.wall().UnixMilli() < sh.deadlines.heap[0].at {
		return false
	}
	c := sh.deadlines.heap[0].conn
	sh.deadlines.remove(c)
	c.owner().expired(c)
	return true
}

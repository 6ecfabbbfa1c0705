package reactor

import (
	"time"

	"carillon/server/internal/fair"
)

// ParseByte and CompressByte are about how long a byte takes.
const (
	ParseByte    = 100 * time.Nanosecond
	CompressByte = 20 * time.Nanosecond
)

// Offload has work done in a queue, and what it returns in the place of what is done now, on the loop. What the client
// asks for behind it waits. If too much waits in the queue, drop is called instead, on the loop.
func (c *Conn) Offload(q *fair.Queue, takes time.Duration, size int, work func() (then func()), drop func()) *Slot {
	s := c.Reserve()
	s.offload = true
	q.Add(&c.Workload().offloaded, c.sh.Began, takes, &fair.Job{
		Size: size,
		Do:   func() { c.Resolve(s, true, work()) },
		Drop: func() { c.Resolve(s, true, drop) },
	})
	return s
}

// DoNothing is for a client that has closed.
func DoNothing() {}

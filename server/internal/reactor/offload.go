package reactor

import (
	"runtime"
	"sync"
	"time"

	"carillon/internal/indexheap"
)

// offloadQueue has another goroutine do what would take too much of a loop's time in one piece: parse large requests,
// compress large replies, check costly tokens. It does one job at a time, or as many as parallel says, on goroutines
// that live while there are jobs. Its order is that of the run queues, so that clients that ask for much wait for each
// other and not the others for them.
type offloadQueue struct {
	Parallel int // immutable: how many jobs it does at a time; 0 is one

	Mu      sync.Mutex
	Jobs    indexheap.Heap[*OffloadJob]
	Bytes   int // of the jobs
	time    virtualTime
	orders  uint64
	running int // goroutines
}

// OffloadJob is done before those with a higher tag, and those that came later with the same.
type OffloadJob struct {
	tag   time.Duration
	order uint64
	index int // in the heap
	Size  int // bytes that it holds
	Do    func()
	Drop  func() // called instead of do when too much waits; nil for what must be done

	Yields time.Duration // for how long it gives way to those of clients that have used nothing
}

func (j *OffloadJob) Before(other *OffloadJob) bool {
	return j.tag < other.tag || j.tag == other.tag && j.order < other.order
}

func (j *OffloadJob) Place() *int { return &j.index }

const (
	// ParseByte and CompressByte are about how long a byte takes.
	ParseByte    = 100 * time.Nanosecond
	CompressByte = 20 * time.Nanosecond

	// MaxOffloaded is how many bytes may wait.
	MaxOffloaded = 64 << 20
)

// Add has a job done in its turn, and adds the time that it takes to what the connection has used of the queue. When
// too much waits, those that would be done last are dropped. Neither do nor drop may call add.
func (q *offloadQueue) Add(used *Usage, now, takes time.Duration, job *OffloadJob) {
	var dropped []*OffloadJob
	q.Mu.Lock()
	job.tag = q.time.at(now, len(q.Jobs) == 0) + used.Delay(now) + job.Yields
	used.AddTurn(takes, now) // it cannot be interrupted
	q.orders++
	job.order = q.orders
	q.Jobs.Insert(job)
	q.Bytes += job.Size
	for q.Bytes > MaxOffloaded {
		last := q.last()
		if last == nil {
			break
		}
		q.Jobs.Remove(last)
		q.Bytes -= last.Size
		dropped = append(dropped, last)
	}
	if q.running < max(q.Parallel, 1) {
		q.running++
		go q.run()
	}
	q.Mu.Unlock()
	for _, job := range dropped {
		job.Drop()
	}
}

// Offload has work done in a queue, and what it returns in the place of what is done now, on the loop. What the client
// asks for behind it waits. If too much waits in the queue, drop is called instead, on the loop.
func (c *Conn) Offload(q *offloadQueue, takes time.Duration, size int, work func() (then func()), drop func()) *Slot {
	s := c.Reserve()
	s.offload = true
	q.Add(&c.Workload().offloaded, c.sh.Began, takes, &OffloadJob{
		Size: size,
		Do:   func() { c.Resolve(s, true, work()) },
		Drop: func() { c.Resolve(s, true, drop) },
	})
	return s
}

// DoNothing is for a client that has closed.
func DoNothing() {}

// last returns the last job that may be dropped, or nil. The caller holds mu.
func (q *offloadQueue) last() (last *OffloadJob) {
	for _, job := range q.Jobs {
		if job.Drop != nil && (last == nil || last.Before(job)) {
			last = job
		}
	}
	return last
}

func (q *offloadQueue) run() {
	for {
		q.Mu.Lock()
		if len(q.Jobs) == 0 {
			q.running--
			q.Mu.Unlock()
			return
		}
		job := q.Jobs.TakeFirst()
		q.Bytes -= job.Size
		q.time.served(job.tag)
		q.Mu.Unlock()
		job.Do()
		runtime.Gosched() // a loop may wait for the processor
	}
}

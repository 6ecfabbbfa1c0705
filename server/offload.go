package server

import (
	"runtime"
	"sync"
	"time"
)

// offloadQueue has another goroutine do what would take too much of a loop's time in one piece: parse large requests,
// compress large replies, check costly tokens. It does one job at a time, or as many as parallel says, on goroutines
// that live while there are jobs. Its order is that of the run queues, so that clients that ask for much wait for each
// other and not the others for them.
type offloadQueue struct {
	parallel int // immutable: how many jobs it does at a time; 0 is one

	mu      sync.Mutex
	jobs    indexedHeap[*offloadJob]
	bytes   int // of the jobs
	time    virtualTime
	orders  uint64
	running int // goroutines
}

// offloadJob is done before those with a higher tag, and those that came later with the same.
type offloadJob struct {
	tag   time.Duration
	order uint64
	index int // in the heap
	size  int // bytes that it holds
	do    func()
	drop  func() // called instead of do when too much waits; nil for what must be done

	yields time.Duration // for how long it gives way to those of clients that have used nothing
}

func (j *offloadJob) before(other *offloadJob) bool {
	return j.tag < other.tag || j.tag == other.tag && j.order < other.order
}

func (j *offloadJob) place() *int { return &j.index }

const (
	// parseByte and compressByte are about how long a byte takes.
	parseByte    = 100 * time.Nanosecond
	compressByte = 20 * time.Nanosecond

	// maxOffloaded is how many bytes may wait.
	maxOffloaded = 64 << 20
)

// add has a job done in its turn, and adds the time that it takes to what the connection has used of the queue. When
// too much waits, those that would be done last are dropped. Neither do nor drop may call add.
func (q *offloadQueue) add(used *usage, now, takes time.Duration, job *offloadJob) {
	var dropped []*offloadJob
	q.mu.Lock()
	job.tag = q.time.at(now, len(q.jobs) == 0) + used.delay(now) + job.yields
	used.addTurn(takes, now) // it cannot be interrupted
	q.orders++
	job.order = q.orders
	q.jobs.push(job)
	q.bytes += job.size
	for q.bytes > maxOffloaded {
		last := q.last()
		if last == nil {
			break
		}
		q.jobs.remove(last)
		q.bytes -= last.size
		dropped = append(dropped, last)
	}
	if q.running < max(q.parallel, 1) {
		q.running++
		go q.run()
	}
	q.mu.Unlock()
	for _, job := range dropped {
		job.drop()
	}
}

// offload has work done in a queue, and what it returns in the place of what is done now, on the loop. What the client
// asks for behind it waits. If too much waits in the queue, drop is called instead, on the loop.
func (c *Conn) offload(q *offloadQueue, takes time.Duration, size int, work func() (then func()), drop func()) *slot {
	s := c.reserve()
	q.add(&c.workload().offloaded, c.sh.began, takes, &offloadJob{
		size: size,
		do:   func() { c.resolve(s, true, work()) },
		drop: func() { c.resolve(s, true, drop) },
	})
	return s
}

// doNothing is for a client that has closed: nobody waits for it.
func doNothing() {}

// last returns the last job that may be dropped, or nil. The caller holds mu.
func (q *offloadQueue) last() (last *offloadJob) {
	for _, job := range q.jobs {
		if job.drop != nil && (last == nil || last.before(job)) {
			last = job
		}
	}
	return last
}

func (q *offloadQueue) run() {
	for {
		q.mu.Lock()
		if len(q.jobs) == 0 {
			q.running--
			q.mu.Unlock()
			return
		}
		job := q.jobs.pop()
		q.bytes -= job.size
		q.time.served(job.tag)
		q.mu.Unlock()
		job.do()
		runtime.Gosched() // a loop may wait for the processor
	}
}

package fair

import (
	"runtime"
	"sync"
	"time"

	"carillon/internal/indexheap"
)

// Queue has another goroutine do what would take too much of a loop's time in one piece: parse large requests,
// compress large replies, check costly tokens. It does one job at a time, or as many as Parallel says, on goroutines
// that live while there are jobs. Its order is that of the run queues, so that clients that ask for much wait for each
// other and not the others for them.
type Queue struct {
	Parallel int // immutable: how many jobs it does at a time; 0 is one

	mu      sync.Mutex
	jobs    indexheap.Heap[*Job]
	bytes   int // of the jobs
	time    VirtualTime
	orders  uint64
	running int // goroutines
}

// Job is done before those with a higher tag, and those that came later with the same.
type Job struct {
	tag   time.Duration
	order uint64
	index int // in the heap
	Size  int // bytes that it holds
	Do    func()
	Drop  func() // called instead of Do when too much waits; nil for what must be done

	Yields time.Duration // for how long it gives way to those of clients that have used nothing
}

func (j *Job) Before(other *Job) bool {
	return j.tag < other.tag || j.tag == other.tag && j.order < other.order
}

func (j *Job) Place() *int { return &j.index }

// MaxQueued is how many bytes may wait in a queue.
const MaxQueued = 64 << 20

// Add has a job done in its turn, and adds the time that it takes to what the connection has used of the queue. When
// too much waits, those that would be done last are dropped. Neither Do nor Drop may call Add. It may be called from
// any goroutine that owns used.
func (q *Queue) Add(used *Usage, now, takes time.Duration, job *Job) {
	var dropped []*Job
	q.mu.Lock()
	job.tag = q.time.At(now, len(q.jobs) == 0) + used.Delay(now) + job.Yields
	used.AddTurn(takes, now) // it cannot be interrupted
	q.orders++
	job.order = q.orders
	q.jobs.Insert(job)
	q.bytes += job.Size
	for q.bytes > MaxQueued {
		last := q.last()
		if last == nil {
			break
		}
		q.jobs.Remove(last)
		q.bytes -= last.Size
		dropped = append(dropped, last)
	}
	if q.running < max(q.Parallel, 1) {
		q.running++
		go q.run()
	}
	q.mu.Unlock()
	for _, job := range dropped {
		job.Drop()
	}
}

// Waiting returns the number of jobs that wait.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.jobs)
}

// last returns the last job that may be dropped, or nil. The caller holds mu.
func (q *Queue) last() (last *Job) {
	for _, job := range q.jobs {
		if job.Drop != nil && (last == nil || last.Before(job)) {
			last = job
		}
	}
	return last
}

func (q *Queue) run() {
	for {
		q.mu.Lock()
		if len(q.jobs) == 0 {
			q.running--
			q.mu.Unlock()
			return
		}
		job := q.jobs.TakeFirst()
		q.bytes -= job.Size
		q.time.Served(job.tag)
		q.mu.Unlock()
		job.Do()
		runtime.Gosched() // a loop may wait for the processor
	}
}

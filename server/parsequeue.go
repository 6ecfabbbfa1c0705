package server

import (
	"sync"
	"time"
)

// parseQueue has large requests parsed one at a time, on a goroutine that lives while there are any. Like the run queues of
// the loops it is a virtual clock, so that clients that ask for much wait for each other and not the others for them.
type parseQueue struct {
	mu      sync.Mutex
	jobs    indexedHeap[*parseJob]
	orders  uint64
	running bool
}

// parseJob is a large request. It is parsed before those with a higher tag, and those that came later with the same.
type parseJob struct {
	tag   time.Duration
	order uint64
	index int // in the heap
	parse func()
}

func (j *parseJob) before(other *parseJob) bool {
	return j.tag < other.tag || j.tag == other.tag && j.order < other.order
}

func (j *parseJob) place() *int { return &j.index }

const (
	// parseByte is about how long a byte takes, and parseWeight in how much of the time a connection may have its requests
	// parsed without coming after others: one in so many.
	parseByte   = 100 * time.Nanosecond
	parseWeight = 16
)

// add has a request of n bytes parsed in its turn. finish is when the connection has paid for its requests so far, and add
// returns when it has paid for this one, too.
func (q *parseQueue) add(finish, now time.Duration, n int, parse func()) time.Duration {
	tag := max(finish, now)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.orders++
	q.jobs.push(&parseJob{tag: tag, order: q.orders, parse: parse})
	if !q.running {
		q.running = true
		go q.run()
	}
	return min(tag+time.Duration(n)*parseByte*parseWeight, now+maxDebt)
}

func (q *parseQueue) run() {
	for {
		q.mu.Lock()
		if len(q.jobs) == 0 {
			q.running = false
			q.mu.Unlock()
			return
		}
		job := q.jobs.pop()
		q.mu.Unlock()
		job.parse()
	}
}

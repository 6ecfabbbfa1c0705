package server

import (
	"sync"
	"time"
)

// parseQueue has large requests parsed one at a time, on a goroutine that lives while there are any. Its order is that of the
// run queues, so that clients that ask for much wait for each other and not the others for them.
type parseQueue struct {
	mu      sync.Mutex
	jobs    indexedHeap[*parseJob]
	time    virtualTime
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

// parseByte is about how long a byte takes.
const parseByte = 100 * time.Nanosecond

// add has a request of n bytes parsed in its turn, and adds that to what the connection has had parsed.
func (q *parseQueue) add(parsed *usage, now time.Duration, n int, parse func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	tag := q.time.at(now, len(q.jobs) == 0) + parsed.delay(now)
	parsed.addTurn(time.Duration(n)*parseByte, now) // it cannot be interrupted
	q.orders++
	q.jobs.push(&parseJob{tag: tag, order: q.orders, parse: parse})
	if !q.running {
		q.running = true
		go q.run()
	}
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
		q.time.served(job.tag)
		q.mu.Unlock()
		job.parse()
	}
}

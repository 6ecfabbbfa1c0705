package fair

import (
	"slices"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// parseByte is about how long a byte of a request takes.
const parseByte = 100 * time.Nanosecond

// Requests of a connection that has had many parsed come after those of others, however many wait.
func TestQueue(t *testing.T) {
	var q Queue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	parse := func(used *Usage, n int, do func()) {
		q.Add(used, 0, time.Duration(n)*parseByte, &Job{Size: n, Do: do})
	}
	parse(new(Usage), 1, func() { close(began); <-hold })
	<-began
	var much, little Usage
	for range 5 {
		parse(&much, 100_000, func() { done <- "much" })
	}
	for range 2 {
		parse(&little, 40_000, func() { done <- "little" })
	}
	close(hold)
	var got []string
	for range 7 {
		got = append(got, <-done)
	}
	if want := []string{"much", "little", "little", "much", "much", "much", "much"}; !slices.Equal(got, want) {
		t.Errorf("parsed in the order %v, want %v", got, want)
	}
	one := 100_000 * parseByte
	if got := much.Lately(0); got != 5*(one+overrunWeight*(one-Quantum)) {
		t.Errorf("five requests take %v", got)
	}
	testenv.Eventually(t, "the goroutine has ended", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.running == 0
	})
}

// When too much waits, the jobs that would be done last are dropped, but for those that must be done.
func TestQueueIsBounded(t *testing.T) {
	var q Queue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	q.Add(new(Usage), 0, 0, &Job{Do: func() { close(began); <-hold }})
	<-began
	var much, little Usage
	dropped := map[string]int{}
	add := func(name string, used *Usage, size int, mayDrop bool) {
		job := &Job{Size: size, Do: func() { done <- name }}
		if mayDrop {
			job.Drop = func() { dropped[name]++ }
		}
		q.Add(used, 0, time.Millisecond, job)
	}
	add("must", new(Usage), MaxQueued, false)
	add("first", new(Usage), 1, true) // too much, and the only one that may be dropped
	q.bytes -= MaxQueued - 1<<20
	for range 3 {
		add("much", &much, MaxQueued/4, true)
	}
	add("little", &little, MaxQueued/4, true)
	if dropped["first"] != 1 || dropped["much"] != 1 || dropped["little"] != 0 {
		t.Errorf("dropped were %v, want first and one of much", dropped)
	}
	q.mu.Lock()
	q.bytes += MaxQueued - 1<<20
	q.mu.Unlock()
	close(hold)
	for range 4 {
		<-done
	}
	testenv.Eventually(t, "nothing is counted any more", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.running == 0 && q.bytes == 0
	})
}

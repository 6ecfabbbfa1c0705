package server

import (
	"slices"
	"testing"
)

// Requests of a connection that has had many parsed come after those of others, however many wait.
func TestParseQueue(t *testing.T) {
	var q parseQueue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	q.add(new(usage), 0, 1, func() { close(began); <-hold })
	<-began
	var much, little usage
	for range 5 {
		q.add(&much, 0, 100_000, func() { done <- "much" })
	}
	for range 2 {
		q.add(&little, 0, 40_000, func() { done <- "little" })
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
	if got := much.lately(0); got != 5*(one+overrunWeight*(one-quantum)) {
		t.Errorf("five requests take %v", got)
	}
	eventually(t, "the goroutine has ended", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return !q.running
	})
}

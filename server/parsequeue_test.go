package server

import (
	"slices"
	"testing"
	"time"
)

// Requests of a connection that has had many parsed come after those of others, however many wait.
func TestParseQueue(t *testing.T) {
	var q parseQueue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	q.add(0, 0, 1, func() { close(began); <-hold })
	<-began
	var much, little time.Duration
	for range 5 {
		much = q.add(much, 0, 100_000, func() { done <- "much" })
	}
	for range 2 {
		little = q.add(little, 0, 40_000, func() { done <- "little" })
	}
	close(hold)
	var got []string
	for range 7 {
		got = append(got, <-done)
	}
	if want := []string{"much", "little", "little", "much", "much", "much", "much"}; !slices.Equal(got, want) {
		t.Errorf("parsed in the order %v, want %v", got, want)
	}
	if much != 5*100_000*parseByte*parseWeight || q.add(much, 0, 1<<30, func() {}) != maxDebt {
		t.Errorf("five requests are paid for after %v", much)
	}
	eventually(t, "the goroutine has ended", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return !q.running
	})
}

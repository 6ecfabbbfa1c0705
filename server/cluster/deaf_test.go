package cluster

import (
	"sync/atomic"
	"testing"
	"time"
)

// overwhelm writes to a NATS server that does not read, until that fails. last is when it succeeded.
func overwhelm(n *testNode) (last *atomic.Int64, failed <-chan struct{}) {
	last, ended := new(atomic.Int64), make(chan struct{})
	go func() {
		defer close(ended)
		for n.nc.Publish("x", make([]byte, 1<<19)) == nil {
			last.Store(time.Now().UnixNano())
		}
	}()
	return last, ended
}

// NATS does not read any more, and the NATS client waits for it with everything locked. A goroutine that asks whether
// NATS is there, as event loops do for every message, does not wait.
func TestNobodyWaitsForANATSServerThatDoesNotRead(t *testing.T) {
	t.Parallel() // it waits
	deaf := make(chan struct{})
	n := join(t, Options{NATS: NATS{URL: pretender(t, "2.15.2", deaf)}, Timeout: 10 * time.Second})
	close(deaf)
	_, failed := overwhelm(n)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		answered := make(chan error, 1)
		go func() {
			_ = n.Ready()
			answered <- n.PersistentErr(0)
		}()
		select {
		case <-answered:
		case <-time.After(5 * time.Second):
			t.Fatal("asking whether NATS is there takes long")
		}
	}
	<-failed
}

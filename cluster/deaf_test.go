package cluster

import (
	"testing"
	"time"
)

// NATS does not read any more, and the NATS client waits for it with everything locked. Whoever asks whether NATS is there, as
// event loops do for every message, does not wait.
func TestNobodyWaitsForANATSServerThatDoesNotRead(t *testing.T) {
	t.Parallel() // it waits
	deaf := make(chan struct{})
	n := join(t, Options{NATS: NATS{URL: pretender(t, "2.15.2", deaf)}, Timeout: 10 * time.Second})
	close(deaf)
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for n.ready.Load() && n.away.Load() == nil {
			if err := n.nc.Publish("x", make([]byte, 1<<19)); err != nil {
				return
			}
		}
	}()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		answered := make(chan error, 1)
		go func() {
			_ = n.Ready()
			answered <- n.KeptErr(0)
		}()
		select {
		case <-answered:
		case <-time.After(5 * time.Second):
			t.Fatal("asking whether NATS is there takes long")
		}
	}
	<-stuck
}

package cluster

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"time"

	"carillon/server"
	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// BenchmarkHop is the way of a message from one node to another, one message at a time: p50 and p99 from the call at
// the one to the call at the other, and the same until the publisher has the acknowledgement.
func BenchmarkHop(b *testing.B) {
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	go s.Start()
	b.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(patience) {
		b.Fatal("no server")
	}
	o := Options{NATS: NATS{URL: urlOf(s)}, Logger: slog.New(slog.DiscardHandler)}
	rule := topic.Rule{Match: "kept.>", History: 100}
	from, to := benchNode(b, o, rule), benchNode(b, o, rule)
	joined := make(chan error, 1)
	to.broker.Follow(">", func(err error) { joined <- err })
	if err := <-joined; err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{128, 4096} {
		payload := make([]byte, size)
		for _, name := range []string{"plain.a", "kept.a"} {
			b.Run(fmt.Sprintf("topic=%s/size=%d", name, size), func(b *testing.B) {
				var arrived, acknowledged []time.Duration
				seq := uint64(0)
				done := make(chan error, 1)
				for b.Loop() {
					seq++
					p := topic.Publication{Topic: name, Format: topic.FormatBinary, Payload: payload}
					begin := time.Now()
					if name == "kept.a" {
						from.broker.PublishPersistent(p, 0, func(_ topic.Position, err error) { done <- err })
					} else {
						from.broker.PublishTransient(p, 1, seq, func(err error) { done <- err })
					}
					at := <-to.came
					arrived = append(arrived, at.Sub(begin))
					if err := <-done; err != nil {
						b.Fatal(err)
					}
					acknowledged = append(acknowledged, time.Since(begin))
				}
				report(b, arrived, "arrived")
				report(b, acknowledged, "acknowledged")
			})
		}
	}
}

func report(b *testing.B, list []time.Duration, what string) {
	slices.Sort(list)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(list[len(list)*p/100].Microseconds()), "us-"+what+"-p"+strconv.Itoa(p))
	}
}

// timedNode tells when messages come.
type timedNode struct {
	fakeNode
	broker *Broker
	came   chan time.Time
}

func (n *timedNode) Transient(string, uint64, uint64, topic.Publication, time.Time) {
	n.came <- time.Now()
}
func (n *timedNode) Persistent(topic.Message, string, uint64) { n.came <- time.Now() }

func benchNode(b *testing.B, o Options, rules ...topic.Rule) *timedNode {
	broker, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	so, err := server.Options{Topics: rules}.Resolve()
	if err != nil {
		b.Fatal(err)
	}
	n := &timedNode{fakeNode{options: so}, broker, make(chan time.Time, 16)}
	if err := broker.Start(b.Context(), n); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { broker.Stop(b.Context()) })
	return n
}

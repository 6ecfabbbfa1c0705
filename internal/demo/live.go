package demo

import (
	"encoding/json"
	"runtime/metrics"
	"time"

	"carillon/server"
)

const (
	boardTopic   = "demo.stats"
	boardSeconds = 120
	probeTopics  = "demo.probe.>" // each page publishes to one of its own, and measures how long that takes
)

// board publishes once a second what the server does, while the page is open. Owned by its goroutine.
type board struct {
	before server.Stats
	at     time.Time // of before; zero while the page was closed
}

// sample is one second on the board.
type sample struct {
	Connections int64 `json:"connections"`
	Memory      int64 `json:"memory"` // bytes

	// Each second; nil in the first second that the page is open.
	In       *float64 `json:"in,omitempty"`  // messages
	Out      *float64 `json:"out,omitempty"` // deliveries
	BytesOut *float64 `json:"bytesOut,omitempty"`
}

func (b *board) tick(s *server.Server) {
	if topic, ok := s.Topic(boardTopic); !ok || topic.Subscribers == 0 {
		b.at = time.Time{}
		return
	}
	stats := s.Stats()
	point := sample{Connections: stats.Open, Memory: memory()}
	if !b.at.IsZero() {
		rate := func(now, before uint64) *float64 {
			each := float64(now-before) / max(time.Since(b.at).Seconds(), 0.001)
			return &each
		}
		point.In = rate(stats.MessagesIn, b.before.MessagesIn)
		point.Out = rate(stats.Deliveries, b.before.Deliveries)
		point.BytesOut = rate(stats.BytesOut, b.before.BytesOut)
	}
	b.before, b.at = stats, time.Now()
	payload, err := json.Marshal(point)
	if err != nil {
		panic("demo: encode a sample: " + err.Error())
	}
	// A server that is overloaded has better things to do than to say so here.
	_, _ = s.Publish(server.Publication{Topic: boardTopic, Format: server.FormatJSON, Payload: payload})
}

// memory is what Go holds of the machine's.
func memory() int64 {
	m := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(m)
	return int64(m[0].Value.Uint64() - m[1].Value.Uint64())
}

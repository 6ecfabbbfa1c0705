package cluster

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// stats are this node's numbers.
type stats struct {
	published, refused, unknown       atomic.Uint64
	received, repeated, slow, foreign atomic.Uint64
	disconnects, resyncs, lostNodes   atomic.Uint64
	loads, loadFailures, leaderLoads  atomic.Uint64
	barriers                          atomic.Uint64
	rewinds, holes, full              atomic.Uint64
	foreignSaid                       atomic.Int64 // since the broker was made, in nanoseconds
	behind                            atomic.Bool  // messages have been dropped since the last resync
}

// Stats are numbers since the broker was made.
type Stats struct {
	Published    uint64 // messages that NATS has acknowledged
	Refused      uint64 // that were not sent
	Unknown      uint64 // that were not acknowledged in time, or before the connection was lost
	Received     uint64 // that came from NATS and were handed over
	Repeated     uint64 // that came more than once, for overlapping subscriptions
	Slow         uint64 // that were dropped, because they came faster than they could be taken
	Foreign      uint64 // that were dropped as unknown: of another version, or for other rules
	Disconnects  uint64
	Resyncs      uint64
	LostNodes    uint64 // nodes that fell silent
	Loads        uint64
	LoadFailures uint64
	LeaderLoads  uint64 // that were fetched from the stream's leader, since the replicas were behind
	Barriers     uint64 // subscriptions that some node did not confirm in time
	Rewinds      uint64 // streams that had lost their newest messages, for which this node began an epoch
	Holes        uint64 // losses in the middle of a stream that this node has found
	Full         uint64 // times that there was no room for a stream's messages
}

// Stats returns the numbers. It may be called from any goroutine.
func (b *Broker) Stats() Stats {
	s := &b.stats
	return Stats{s.published.Load(), s.refused.Load(), s.unknown.Load(), s.received.Load(), s.repeated.Load(), s.slow.Load(), s.foreign.Load(),
		s.disconnects.Load(), s.resyncs.Load(), s.lostNodes.Load(), s.loads.Load(), s.loadFailures.Load(), s.leaderLoads.Load(), s.barriers.Load(),
		s.rewinds.Load(), s.holes.Load(), s.full.Load()}
}

var (
	connectedDesc = prometheus.NewDesc("carillon_nats_connected", "1 if this node exchanges messages with NATS, else 0.", nil, nil)
	keptDesc      = prometheus.NewDesc("carillon_nats_jetstream_up", "1 if all persistent topics accept messages, else 0.", nil, nil)
	fullDesc      = prometheus.NewDesc("carillon_nats_jetstream_full", "1 if JetStream has no room for messages of persistent topics, else 0.", nil, nil)
	nodesDesc     = prometheus.NewDesc("carillon_nats_nodes", "Nodes heard from recently, including this one.", nil, nil)
	waitingDesc   = prometheus.NewDesc("carillon_nats_waiting_messages", "Messages not yet acknowledged by NATS.", nil, nil)
	followedDesc  = prometheus.NewDesc("carillon_nats_followed_names", "Topics and patterns this node follows.", nil, nil)
	publishedDesc = prometheus.NewDesc("carillon_nats_published_messages_total", "Messages published to the cluster, by result.", []string{"result"}, nil)
	receivedDesc  = prometheus.NewDesc("carillon_nats_received_messages_total", "Messages received from other nodes and from JetStream, by result.", []string{"result"}, nil)
	eventsDesc    = prometheus.NewDesc("carillon_nats_events_total", "Cluster events on this node, by kind.", []string{"event"}, nil)
)

// Describe implements prometheus.Collector.
func (b *Broker) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{connectedDesc, keptDesc, fullDesc, nodesDesc, waitingDesc, followedDesc, publishedDesc, receivedDesc, eventsDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (b *Broker) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	count := func(d *prometheus.Desc, v uint64, label string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), label)
	}
	connected, kept, full := 0.0, 0.0, 0.0
	if b.Err() == nil {
		connected, kept = 1, 1
	}
	for rule, st := range b.streams {
		if st != nil && b.PersistentErr(rule) != nil {
			kept = 0
		}
		if st != nil && st.fullErr() != nil {
			kept, full = 0, 1
		}
	}
	gauge(connectedDesc, connected)
	gauge(keptDesc, kept)
	gauge(fullDesc, full)
	b.peers.mu.Lock()
	nodes := 1 + len(b.peers.nodes)
	b.peers.mu.Unlock()
	gauge(nodesDesc, float64(nodes))
	b.out.mu.Lock()
	waiting := b.out.waiting
	b.out.mu.Unlock()
	gauge(waitingDesc, float64(waiting))
	gauge(followedDesc, float64(b.follows.count.Load()))
	s := b.Stats()
	count(publishedDesc, s.Published, "acknowledged")
	count(publishedDesc, s.Refused, "refused")
	count(publishedDesc, s.Unknown, "unknown")
	count(receivedDesc, s.Received, "delivered")
	count(receivedDesc, s.Repeated, "repeated")
	count(receivedDesc, s.Slow, "slow")
	count(receivedDesc, s.Foreign, "foreign")
	count(eventsDesc, s.Disconnects, "disconnect")
	count(eventsDesc, s.Resyncs, "resync")
	count(eventsDesc, s.LostNodes, "node_lost")
	count(eventsDesc, s.Loads, "load")
	count(eventsDesc, s.LoadFailures, "load_failed")
	count(eventsDesc, s.LeaderLoads, "load_from_leader")
	count(eventsDesc, s.Barriers, "follow_unconfirmed")
	count(eventsDesc, s.Rewinds, "stream_rewound")
	count(eventsDesc, s.Holes, "stream_hole")
	count(eventsDesc, s.Full, "store_full")
	if b.ready.Load() && b.embedded != nil {
		count(eventsDesc, uint64(b.embedded.NumSlowConsumers()), "server_slow_consumer")
		count(eventsDesc, uint64(b.embedded.NumStaleConnections()), "server_stale_connection")
	}
}

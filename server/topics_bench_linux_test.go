package server

import (
	"fmt"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
	"carillon/server/internal/sys"
)

// subscribeAll lets connections have topics, chosen by their number, and waits until it is done.
func subscribeAll(t testing.TB, s *Server, conns []*Conn, each int, topic func(conn, i int) string) {
	t.Helper()
	for n, c := range conns {
		for i := range each {
			if err := c.Subscribe(topic(n, i), SubscribeOptions{Done: func(_ Subscribed, err error) {
				if err != nil {
					t.Error(err)
				}
			}}); err != nil {
				t.Fatal(err)
			}
		}
		if n%100 == 99 { // else the mailbox would grow, and its memory be taken for that of subscriptions
			s.settled()
		}
	}
	eventually(t, "all are subscribed", func() bool { return s.engine.BacklogBytes() == 0 })
}

// connsAt are the connections of an endpoint.
func connsAt(s *Server, path string) (list []*Conn) {
	for c := range s.Conns() {
		if c.Path() == path {
			list = append(list, c)
		}
	}
	return list
}

// BenchmarkTopicPublish compares a publish to a topic of 1,000 subscribers, who are among 18,000 connections with
// 100,000 topics, ten for each connection, with a broadcast to 1,000 connections that have no topics, in turn. The
// sockets of the two differ, and 1,000 out of 18,000 are colder for the kernel than 1,000 alone: the second ratio is
// that of bare write(2) to both, and the third is for a topic of the very connections that get the broadcast. It also
// gives the heap that a topic costs, a subscription that is the first of its topic on its loop or nearly so, and one
// among many others.
func BenchmarkTopicPublish(b *testing.B) {
	reactor.CheckOwner = false
	const conns, hot, topicCount, each, size = 18000, 1000, 100_000, 10, 128
	needDescriptors(b, conns+hot)
	b.Run(fmt.Sprintf("conns=%d/topics=%d/subscribers=%d/size=%d", conns, topicCount, hot, size), func(b *testing.B) {
		opts := quiet(2)
		opts.Endpoints = append(opts.Endpoints, topicsEndpoint())
		s, _ := startChanged(b, opts, func(s *Server) { s.hub.Linger, s.hub.MaxUnheard = time.Hour, topicCount })
		startSwarm(b, s, swarmOrder{Path: "/broadcast", Conns: hot, Discard: true})
		startSwarm(b, s, swarmOrder{Path: "/ws", Conns: conns, Discard: true})
		all := connsAt(s, "/ws")
		payload := numbered(0, size)
		topic := func(n int) string { return fmt.Sprintf("topic.%d", n%topicCount) }

		before := heapBytes()
		for n := range topicCount {
			if _, err := s.Publish(Publication{Topic: topic(n), Format: FormatBinary, Payload: payload}); err != nil {
				b.Fatal(err)
			}
		}
		topicHeap := heapBytes()
		subscribeAll(b, s, all, each, func(conn, i int) string { return topic(conn*each + i) })
		thinHeap := heapBytes()
		subscribeAll(b, s, all, each, func(_, i int) string { return fmt.Sprintf("crowd.%d", i) })
		crowdHeap := heapBytes()
		var some []*Conn // from all loops
		for n := 0; n < conns; n += conns / hot {
			some = append(some, all[n])
		}
		subscribeAll(b, s, some, 1, func(int, int) string { return "hot" })
		crowd := connsAt(s, "/broadcast")
		subscribeAll(b, s, crowd, 1, func(int, int) string { return "same" })

		frame := codec.NewFrame(Binary, payload).Plain()
		write := func(conns []*Conn) func() {
			return func() {
				for _, c := range conns {
					_, _ = sys.Write(c.core().FD(), frame)
				}
			}
		}
		var ours, same, broadcast, bare, bareBroadcast time.Duration
		measure := func(sum *time.Duration, send func()) {
			begin := cpuTime()
			send()
			s.settled()
			*sum += cpuTime() - begin
			time.Sleep(10 * time.Millisecond) // the clients catch up
		}
		for b.Loop() {
			measure(&ours, func() { _, _ = s.Publish(Publication{Topic: "hot", Format: FormatBinary, Payload: payload}) })
			measure(&same, func() { _, _ = s.Publish(Publication{Topic: "same", Format: FormatBinary, Payload: payload}) })
			measure(&bare, write(some))
			measure(&bareBroadcast, write(crowd))
			measure(&broadcast, func() { _ = s.Broadcast("/broadcast", Binary, payload) })
		}
		b.ReportMetric(float64(ours)/float64(b.N*hot), "cpu-ns/subscriber")
		b.ReportMetric(float64(broadcast)/float64(b.N*hot), "broadcast-ns/conn")
		b.ReportMetric(float64(ours)/float64(broadcast), "ratio")
		b.ReportMetric(float64(bare)/float64(bareBroadcast), "ratio-bare")
		b.ReportMetric(float64(same)/float64(broadcast), "ratio-same-conns")
		b.ReportMetric(float64(topicHeap-before)/topicCount, "B/topic")
		b.ReportMetric(float64(thinHeap-topicHeap)/(conns*each), "B/first-subscription")
		b.ReportMetric(float64(crowdHeap-thinHeap)/(conns*each), "B/subscription")
	})
}

// A subscription to a topic that has others costs little compared with the connection, and so does a topic.
func TestSubscriptionMemory(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector changes what memory costs")
	}
	const conns, each, topicCount = 2000, 10, 20_000
	opts := topics()

	s := start(t, opts)
	startSwarm(t, s, swarmOrder{Path: "/ws", Conns: conns, Discard: true})
	all := connsAt(s, "/ws")
	subscribeAll(t, s, all, 1, func(int, int) string { return "first" })
	before := heapBytes()
	subscribeAll(t, s, all, each, func(_, i int) string { return fmt.Sprintf("crowd.%d", i) })
	// 16 B at the connection, 24 B in the audience, and the room into which both lists grow.
	if cost := (heapBytes() - before) / (conns * each); cost > 80 {
		t.Errorf("a subscription costs %d B, want at most 80", cost)
	}
	before = heapBytes()
	for i := range topicCount {
		mustPublish(t, s, fmt.Sprintf("topic.%d", i), "x")
	}
	if cost := (heapBytes() - before) / topicCount; cost > 400 {
		t.Errorf("a topic costs %d B, want at most 400", cost)
	}
}

// A publish allocates for the message, not for its receivers.
func TestPublishAllocations(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector allocates")
	}
	reactor.CheckOwner = false
	defer func() { reactor.CheckOwner = true }()
	const conns = 1000
	opts := topics()
	opts.Loops = 1
	s := start(t, opts)
	startSwarm(t, s, swarmOrder{Path: "/ws?topic=a", Conns: conns, Discard: true})
	subscribers(t, s, "a", conns)
	payload := numbered(0, 128)
	publish := func() {
		_, _ = s.Publish(Publication{Topic: "a", Format: FormatBinary, Payload: payload})
		for s.engine.BacklogBytes() != 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	publish()
	if n := testing.AllocsPerRun(200, publish); n > 10 {
		t.Errorf("a publish to %d takes %v allocations", conns, n)
	}
}

// A thousand messages that were missed are a few writes, not a thousand.
func TestResumeTakesFewWrites(t *testing.T) {
	const missed = 1000
	s := start(t, topics(TopicRule{Match: "log", History: missed}))
	epoch := fill(t, s, "log", missed).Epoch
	for _, how := range []string{"raw", "JSON", "events"} {
		t.Run(how, func(t *testing.T) {
			before := s.Stats()
			target := "/ws?topic=log&since=0&epoch=" + epoch
			switch how {
			case "raw":
				c := dial(t, s, target)
				for i := range missed {
					c.want(fmt.Sprint(i + 1))
				}
			case "JSON":
				c := dial(t, s, target, speakJSON)
				for range missed + 1 {
					c.said()
				}
			case "events":
				st := openStream(t, s, target)
				st.subscribed()
				for i := range missed {
					st.want("", fmt.Sprintf("%s:%d", epoch, i+1), fmt.Sprint(i+1))
				}
			}
			eventually(t, "it is counted", func() bool { return s.Stats().Deliveries == before.Deliveries+missed })
			if n := s.Stats().Writes - before.Writes; n > 5 {
				t.Errorf("%d messages took %d writes", missed, n)
			}
		})
	}
}

package server

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"carillon/codec"
)

// reloadStory is what the reload of some keys does on a running server. Begin comes before the reload and
// returns what must hold after it.
type reloadStory struct {
	keys   string
	opts   Options
	begin  func(t *testing.T, s *Server) (after func())
	change func(*Options)
}

func withoutPings(o Options) Options {
	if o.Endpoints == nil {
		o.Endpoints = append(echoAndBroadcast(), topicsEndpoint())
	}
	if o.Ping == (Ping{}) {
		o.Ping.Interval = -1
	}
	return o
}

func TestReload(t *testing.T) {
	for _, part := range [][]reloadStory{limitStories, timeStories, clientStories, endStories} {
		for _, story := range part {
			t.Run(story.keys, func(t *testing.T) {
				t.Parallel() // most of it is waiting
				s := withAPI(t, withoutPings(story.opts))
				after := story.begin(t, s)
				reloaded(t, s, story.keys, story.change)
				after()
			})
		}
	}
}

var limitStories = []reloadStory{
	{"limits.max_connections", Options{Limits: Limits{MaxConnections: 3}}, func(t *testing.T, s *Server) func() {
		alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
		wantStatus(t, s, 101, "/echo")
		return func() {
			wantStatus(t, s, 503, "/echo")
			alice.echoes("I stay")
			bob.echoes("so do I")
			if n := s.MaxConnections(); n != 1 {
				t.Errorf("the limit is %d", n)
			}
		}
	}, func(o *Options) { o.Limits.MaxConnections = 1 }},
	{"limits.max_head", Options{}, func(t *testing.T, s *Server) func() {
		large := "X-Padding: " + strings.Repeat("x", 500)
		wantStatus(t, s, 101, "/echo", large)
		return func() { wantStatus(t, s, 431, "/echo", large) }
	}, func(o *Options) { o.Limits.MaxHead = 300 }},
	{"limits.max_message", Options{}, func(t *testing.T, s *Server) func() {
		alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
		alice.echoes("hello, everybody")
		long := text("hello, everybody")
		bob.write(long[:12]) // what has begun keeps its limit
		eventually(t, "the half is there", func() bool { return s.Stats().BytesIn >= uint64(2*len(upgradeHead("/echo"))+len(long)+12) })
		return func() {
			bob.write(long[12:])
			bob.want("hello, everybody")
			bob.write(long)
			bob.wantClose(codec.CloseMessageTooBig, "")
			alice.write(long)
			alice.wantClose(codec.CloseMessageTooBig, "")
			if _, err := s.Publish(Publication{Topic: "a", Payload: []byte("hello, everybody")}); err != ErrTooLarge {
				t.Error(err)
			}
		}
	}, func(o *Options) { o.Limits.MaxMessage = 10 }},
	{"limits.max_fragments", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		halves := append(masked(0x01, []byte("hel")), masked(0x80, []byte("lo"))...)
		alice.write(halves)
		alice.want("hello")
		return func() {
			alice.write(halves)
			alice.wantClose(codec.ClosePolicyViolation, "")
		}
	}, func(o *Options) { o.Limits.MaxFragments = 1 }},
	{"limits.max_backlog", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/broadcast")
		if err := s.Broadcast("/broadcast", Text, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		alice.want("hello")
		return func() {
			if err := s.Broadcast("/broadcast", Text, []byte("hello")); err != ErrOverloaded {
				t.Error(err)
			}
			if err := onlyConn(t, s, "/broadcast").Send(Text, []byte("hello")); err != ErrOverloaded {
				t.Error(err)
			}
		}
	}, func(o *Options) { o.Limits.MaxBacklog = 1 }},
	{"limits.max_topics", Options{Topics: []TopicRule{{Match: ">", History: 1}}}, func(t *testing.T, s *Server) func() {
		mustPublish(t, s, "a", "1")
		mustPublish(t, s, "b", "1")
		return func() {
			mustPublish(t, s, "a", "2")
			if _, err := s.Publish(Publication{Topic: "c"}); err != ErrTooManyTopics {
				t.Error(err)
			}
		}
	}, func(o *Options) { o.Limits.MaxTopics = 2 }},
	{"limits.max_key_memory", Options{}, func(t *testing.T, s *Server) func() {
		publish := func(key string) uint64 {
			r, err := s.Publish(Publication{Topic: "a", Key: key})
			if err != nil {
				t.Fatal(err)
			}
			return r.Offset
		}
		if first, second, again := publish("1"), publish("2"), publish("1"); first != 1 || second != 2 || again != 1 {
			t.Error(first, second, again)
		}
		return func() {
			if third, again := publish("3"), publish("1"); third != 3 || again != 4 {
				t.Error(third, again)
			}
			if n := s.hub.Keys.Evicted.Load(); n != 3 {
				t.Errorf("%d keys were evicted", n)
			}
		}
	}, func(o *Options) { o.Limits.MaxKeyMemory = 1 }},
	{"limits.max_memory", Options{}, func(t *testing.T, s *Server) func() {
		wantReasons(t, s, "/readyz")
		return func() {
			eventually(t, "it is over the mark", func() bool { return len(s.unready()) > 0 })
			wantReasons(t, s, "/readyz", "memory")
			reloaded(t, s, "limits.max_memory", func(o *Options) { o.Limits.MaxMemory = -1 })
			wantReasons(t, s, "/readyz")
		}
	}, func(o *Options) { o.Limits.MaxMemory = 1 }},
	// Those who were there before do not count.
	{"limits.max_connections_per_address", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		return func() {
			bob := dial(t, s, "/echo")
			wantStatus(t, s, 429, "/echo")
			bob.leave(s)
			eventually(t, "only alice is left", func() bool { return s.engine.Sockets.Load() == 1 })
			bob = dial(t, s, "/echo")
			reloaded(t, s, "limits.max_connections_per_address", func(o *Options) { o.Limits.MaxConnectionsPerAddress = -1 })
			cathy := dial(t, s, "/echo")
			for _, c := range []*client{alice, bob, cathy} {
				c.leave(s)
			}
			eventually(t, "no address is counted", func() bool { return s.engine.Addresses.Len() == 0 })
		}
	}, func(o *Options) { o.Limits.MaxConnectionsPerAddress = 1 }},
	{"limits.handshakes_per_second", Options{}, func(t *testing.T, s *Server) func() {
		return func() { eventually(t, "there are too many", func() bool { return status(t, s, "/echo") == 503 }) }
	}, func(o *Options) { o.Limits.HandshakesPerSecond = 1 }},
	{"limits.handshakes_per_second_per_address", Options{}, func(t *testing.T, s *Server) func() {
		return func() { eventually(t, "there are too many", func() bool { return status(t, s, "/echo") == 429 }) }
	}, func(o *Options) { o.Limits.HandshakesPerSecondPerAddress = 1 }},
	{"limits.messages_per_second", Options{}, func(t *testing.T, s *Server) func() {
		alice, bob := dial(t, s, "/echo"), dial(t, s, "/echo")
		much := []byte(strings.Repeat(string(text("x")), 100))
		alice.write(much)
		for range 100 {
			alice.want("x")
		}
		return func() {
			alice.write(much)
			alice.wantClose(codec.ClosePolicyViolation, "limits.messages_per_second")
			reloaded(t, s, "limits.messages_per_second", func(o *Options) { o.Limits.MessagesPerSecond = -1 })
			bob.write(much)
			for range 100 {
				bob.want("x")
			}
			alice = dial(t, s, "/echo")
			reloaded(t, s, "limits.messages_per_second", func(o *Options) { o.Limits.MessagesPerSecond = 1 })
			for _, c := range []*client{alice, bob, dial(t, s, "/echo")} {
				c.write(much)
				c.wantClose(codec.ClosePolicyViolation, "limits.messages_per_second")
			}
		}
	}, func(o *Options) { o.Limits.MessagesPerSecond = 1 }},
	{"limits.bytes_per_second", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		alice.echoes(strings.Repeat("x", 200))
		return func() {
			alice.echoes(strings.Repeat("x", 200)) // more than there can ever be, granted once
			alice.send("more")
			alice.wantClose(codec.ClosePolicyViolation, "limits.bytes_per_second")
		}
	}, func(o *Options) { o.Limits.BytesPerSecond = 1 }},
	{"limits.decompressed_bytes_per_second", Options{Endpoints: compressing()}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo", offerHeader)
		zeros := strings.Repeat("\x00", 50<<10)
		bomb := masked(0xc2, deflated(t, zeros))
		return func() {
			alice.write(bomb) // more than there can ever be, granted once
			alice.wantDeflated(Binary, zeros)
			alice.write(bomb)
			alice.wantClose(codec.ClosePolicyViolation, "limits.decompressed_bytes_per_second")
		}
	}, func(o *Options) { o.Limits.DecompressedBytesPerSecond = 1 }},
	{"limits.max_tls_handshakes", Options{TLS: TLS{Config: testTLS()}}, func(t *testing.T, s *Server) func() {
		s.engine.TLSTable.SetGrace(time.Hour)
		hello := helloOf(t, &tls.Config{InsecureSkipVerify: true})
		begin := func(running, waiting int) {
			dialRaw(t, s).write(hello)
			eventually(t, "it has begun", func() bool { r, w := s.engine.TLSTable.Counts(); return r == running && w == waiting })
		}
		begin(1, 0)
		begin(2, 0)
		return func() { begin(2, 1) }
	}, func(o *Options) { o.Limits.MaxTLSHandshakes = 1 }},
	{"limits.publishes_per_second", Options{}, func(t *testing.T, s *Server) func() {
		alice, bob := dial(t, s, "/ws", speakJSON), dial(t, s, "/broadcast")
		publish := text(`{"id":1,"publish":{"topic":"a","data":1}}`)
		alice.write(repeat(publish, 100))
		for range 100 {
			if reply := alice.said(); reply.Published == nil {
				t.Fatal(reply.text)
			}
		}
		return func() {
			alice.write(repeat(publish, 100))
			eventually(t, "one is too much", func() bool { reply := alice.said(); return reply.Error != nil && reply.Error.Code == "rate_limited" })
			bob.write(repeat(text("x"), 100))
			bob.wantClose(codec.ClosePolicyViolation, "limits.publishes_per_second")
		}
	}, func(o *Options) { o.Limits.PublishesPerSecond = 1 }},
	{"limits.requests_per_second", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		history := text(`{"id":1,"history":{"topic":"a"}}`)
		alice.write(repeat(history, 100))
		for range 100 {
			if reply := alice.said(); reply.Error != nil {
				t.Fatal(reply.text)
			}
		}
		return func() {
			alice.write(repeat(history, 100))
			eventually(t, "one is too much", func() bool { reply := alice.said(); return reply.Error != nil && reply.Error.Code == "rate_limited" })
		}
	}, func(o *Options) { o.Limits.RequestsPerSecond = 1 }},
}

var timeStories = []reloadStory{
	{"limits.handshake_timeout", Options{Limits: Limits{HandshakeTimeout: -1}}, func(t *testing.T, s *Server) func() {
		silent := dialRaw(t, s)
		eventually(t, "it is accepted", func() bool { return s.Stats().Sockets == 1 })
		return func() {
			if resp := silent.response(); resp.StatusCode != 408 {
				t.Error(resp.Status)
			}
		}
	}, func(o *Options) { o.Limits.HandshakeTimeout = 20 * time.Millisecond }},
	{"cluster_optional", Options{Broker: newFakeNet(1).newBroker()}, func(t *testing.T, s *Server) func() {
		fakeOf(s).cut(true)
		eventually(t, "it is not ready", func() bool { return len(s.unready()) == 1 })
		return func() {
			if list := s.unready(); len(list) > 0 {
				t.Error(list)
			}
		}
	}, func(o *Options) { o.ClusterOptional = true }},
	{"ping.lb_idle_timeout", Options{}, func(t *testing.T, s *Server) func() {
		return func() {
			if list := s.Options().Warnings(); len(list) != 1 {
				t.Error(list)
			}
		}
	}, func(o *Options) { o.Ping.LBIdleTimeout = time.Second }},
	{"limits.idle_timeout", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		return func() { alice.wantClose(codec.CloseGoingAway, "no message for 20ms") }
	}, func(o *Options) { o.Limits.IdleTimeout = 20 * time.Millisecond }},
	{"limits.write_timeout", Options{Limits: Limits{WriteTimeout: -1}}, func(t *testing.T, s *Server) func() {
		dialFrozen(t, s, "/broadcast")
		for i := 0; s.Stats().QueuedBytes == 0; i++ {
			publish(t, s, "/broadcast", i)
			eventually(t, "it was handed out", func() bool { return s.engine.BacklogBytes() == 0 })
		}
		return func() {
			eventually(t, "the frozen one is cut off", func() bool { return s.Stats().Drops[DropWriteTimeout] > 0 })
		}
	}, func(o *Options) { o.Limits.WriteTimeout = 50 * time.Millisecond }},
	{"limits.body_timeout", pagesWithin(-1, -1, mirror), func(t *testing.T, s *Server) func() {
		before := dialRaw(t, s)
		before.write([]byte(requestHead("POST /before HTTP/1.1", "Content-Length: 10", "Expect: 100-continue")))
		if resp := before.response(); resp.StatusCode != 100 { // its handler reads, so its time has begun
			t.Fatal(resp.Status)
		}
		return func() {
			after := dialRaw(t, s)
			after.post("/after", 10)
			eventually(t, "it is cut off", func() bool { return s.Stats().HTTPCuts[PlainCutBodyTimeout] == 1 })
			before.write(make([]byte, 10))
			before.wantPage("/before")
		}
	}, func(o *Options) { o.Limits.BodyTimeout = 50 * time.Millisecond }},
	{"limits.close_timeout", Options{Limits: Limits{CloseTimeout: time.Hour}}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		_ = onlyConn(t, s, "/echo").Close(codec.CloseNormal, "")
		if op, _, err := alice.frame(); op != codec.OpClose || err != nil {
			t.Fatal(op, err)
		}
		return func() { eventually(t, "the socket is closed", func() bool { return s.Stats().Sockets == 0 }) }
	}, func(o *Options) { o.Limits.CloseTimeout = 20 * time.Millisecond }},
	{"ping.interval", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		return func() {
			if op, _, err := alice.frame(); op != codec.OpPing || err != nil {
				t.Error(op, err)
			}
		}
	}, func(o *Options) { o.Ping.Interval = 20 * time.Millisecond }},
	{"ping.timeout", Options{Ping: Ping{Interval: 20 * time.Millisecond, Timeout: -1}}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		if op, _, err := alice.frame(); op != codec.OpPing || err != nil {
			t.Fatal(op, err)
		}
		return func() { alice.wantClose(codec.CloseGoingAway, "no answer to a ping for 20ms") }
	}, func(o *Options) { o.Ping.Timeout = 20 * time.Millisecond }},
	{"ping.jitter", Options{Ping: Ping{Interval: time.Hour, Jitter: -1}}, func(t *testing.T, s *Server) func() {
		dial(t, s, "/echo")
		c := onlyConn(t, s, "/echo")
		if d := c.core().PingInterval(); d != time.Hour || s.engine.Settings().PingEarliest != time.Hour {
			t.Error(d)
		}
		return func() {
			if d := c.core().PingInterval(); d >= time.Hour || s.engine.Settings().PingEarliest != 0 {
				t.Error(d)
			}
		}
	}, func(o *Options) { o.Ping.Jitter = 1 }},
	{"connections.max_age", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		return func() { alice.wantClose(codec.CloseGoingAway, "connections.max_age") }
	}, func(o *Options) { o.Connections.MaxAge = time.Second }},
	{"connections.max_age_jitter", Options{Connections: Connections{MaxAge: 100 * time.Hour, MaxAgeJitter: -1}}, func(t *testing.T, s *Server) func() {
		dial(t, s, "/echo")
		c := onlyConn(t, s, "/echo")
		later := c.core().OpenedAt() + 99*3600
		if c.core().TooOld(later) {
			t.Error("too old already")
		}
		return func() {
			if !c.core().TooOld(later) {
				t.Error("its age is not shorter")
			}
		}
	}, func(o *Options) { o.Connections.MaxAgeJitter = 1 }},
}

// clientStories are about what clients may do, and how they are told from each other.
var clientStories = []reloadStory{
	{"public_url", Options{}, func(t *testing.T, s *Server) func() {
		wantStatus(t, s, 403, "/echo", "Origin: https://chat.example.com")
		return func() {
			if url := s.URL("/echo"); url != "wss://chat.example.com/echo" {
				t.Error(url)
			}
			wantStatus(t, s, 101, "/echo", "Origin: https://chat.example.com")
		}
	}, func(o *Options) { o.PublicURL = "https://chat.example.com" }},
	{"proxy_protocol.mode proxy_protocol.from", Options{Endpoints: []Endpoint{whoAmI()}}, func(t *testing.T, s *Server) func() {
		c := dialRaw(t, s)
		c.write([]byte(aliceV1 + upgradeHead("/who")))
		if resp := c.response(); resp.StatusCode != 400 {
			t.Error(resp.Status)
		}
		early := dialRaw(t, s) // is accepted before there are such headers
		eventually(t, "it is accepted", func() bool { return s.Stats().Accepted == 2 })
		return func() {
			c := dialRaw(t, s)
			c.write([]byte(aliceV1 + upgradeHead("/who")))
			if resp := c.response(); resp.StatusCode != 101 {
				t.Error(resp.Status)
			}
			c.want(aliceAt)
			early.write([]byte(upgradeHead("/who")))
			if resp := early.response(); resp.StatusCode != 101 {
				t.Error(resp.Status)
			}
		}
	}, func(o *Options) { o.ProxyProtocol.Mode, o.ProxyProtocol.From = ProxyRequired, []string{"127.0.0.1"} }},
	// A header that has begun when there are no more such headers has its time nevertheless.
	{"proxy_protocol.mode", Options{ProxyProtocol: ProxyProtocol{Mode: ProxyOptional, From: []string{"127.0.0.1"}}, Endpoints: []Endpoint{whoAmI()}}, func(t *testing.T, s *Server) func() {
		early := dialRaw(t, s)
		early.write([]byte(aliceV1[:20]))
		eventually(t, "it is accepted", func() bool { return s.Stats().Accepted == 1 })
		return func() {
			time.Sleep(4 * s.engine.Settings().Tick) // the sweeps look at it
			early.write([]byte(aliceV1[20:] + upgradeHead("/who")))
			if resp := early.response(); resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			early.want(aliceAt)
		}
	}, func(o *Options) { o.ProxyProtocol.Mode = ProxyOff }},
	{"proxy_protocol.from", Options{ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.1"}}}, func(t *testing.T, s *Server) func() {
		c := dialRaw(t, s)
		c.write([]byte(aliceV1 + upgradeHead("/echo")))
		if resp := c.response(); resp.StatusCode != 101 {
			t.Error(resp.Status)
		}
		return func() {
			dialRaw(t, s)
			eventually(t, "the balancer is turned away", func() bool { return s.Stats().Refusals[RefuseProxyPeer] == 1 })
			c.echoes("I was here before")
		}
	}, func(o *Options) { o.ProxyProtocol.From = []string{"127.0.0.9"} }},
	{"proxy_protocol.timeout", Options{ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.1"}, Timeout: time.Hour}, Limits: Limits{HandshakeTimeout: -1}},
		func(t *testing.T, s *Server) func() {
			dialRaw(t, s)
			eventually(t, "it is accepted", func() bool { return s.Stats().Sockets == 1 })
			return func() {
				eventually(t, "it is cut off", func() bool { return s.Stats().Refusals[RefuseProxyMissing] == 1 })
			}
		}, func(o *Options) { o.ProxyProtocol.Timeout = 20 * time.Millisecond }},
	// The connection that is accepted before counts for its own address, until its request says whose it is.
	{"trusted_proxies", Options{Endpoints: []Endpoint{whoAmI()}, Limits: Limits{MaxConnectionsPerAddress: 2}}, func(t *testing.T, s *Server) func() {
		early := dialRaw(t, s)
		eventually(t, "it is accepted", func() bool { return s.Stats().Accepted == 1 })
		return func() {
			head := []byte(upgradeHead("/who", "X-Forwarded-For: 192.0.2.1"))
			early.write(head)
			late := dialRaw(t, s)
			late.write(head)
			for _, c := range []*client{early, late} {
				if resp := c.response(); resp.StatusCode != 101 {
					t.Fatal(resp.Status)
				}
				c.want("192.0.2.1:0")
			}
			wantStatus(t, s, 429, "/who", "X-Forwarded-For: 192.0.2.1")
			if n := s.engine.Addresses.Len(); n != 1 {
				t.Errorf("%d addresses are counted", n)
			}
			early.leave(s)
			late.leave(s)
			eventually(t, "no address is counted", func() bool { return s.engine.Addresses.Len() == 0 })
		}
	}, func(o *Options) { o.TrustedProxies = []string{"127.0.0.1"} }},
	{"endpoints[0].origins", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		wantStatus(t, s, 403, "/echo", "Origin: https://x.example")
		return func() {
			wantStatus(t, s, 101, "/echo", "Origin: https://x.example")
			wantStatus(t, s, 403, "/broadcast", "Origin: https://x.example")
			alice.echoes("I was here before")
		}
	}, func(o *Options) { o.Endpoints[0].Origins = []string{"https://x.example"} }},
	{"endpoints[2].topics.subscribe", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		alice.subscribed("b.one")
		return func() {
			wantError(t, alice.ask(`{"id":1,"subscribe":{"topic":"b.two"}}`), "not_allowed")
			alice.subscribed("a")
			mustPublish(t, s, "b.one", "x") // what she had, she has
			if m := alice.said(); m.Topic != "b.one" {
				t.Error(m.text)
			}
			wantStatus(t, s, 403, "/ws?topic=b.one")
		}
	}, func(o *Options) { o.Endpoints[2].Topics.Subscribe = []string{"a"} }},
	{"endpoints[2].topics.publish", Options{}, func(t *testing.T, s *Server) func() {
		alice, bob := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws?topic=a")
		subscribers(t, s, "a", 1)
		if alice.ask(`{"id":1,"publish":{"topic":"a","data":1}}`).Published == nil {
			t.Error("alice may not publish")
		}
		bob.want("1")
		return func() {
			wantError(t, alice.ask(`{"id":1,"publish":{"topic":"a","data":1}}`), "not_allowed")
			bob.send("mine")
			bob.wantClose(codec.ClosePolicyViolation, "not in topics.publish of the endpoint")
		}
	}, func(o *Options) { o.Endpoints[2].Topics.Publish = nil }},
	{"endpoints[2].topics.patterns", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		alice.subscribed("a.*")
		return func() { wantError(t, alice.ask(`{"id":1,"subscribe":{"topic":"b.*"}}`), "not_allowed") }
	}, func(o *Options) { o.Endpoints[2].Topics.Patterns = false }},
	{"endpoints[2].topics.presence", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		if alice.ask(`{"id":1,"presence":{"topic":"a"}}`).Present == nil {
			t.Error("alice may not ask")
		}
		return func() { wantError(t, alice.ask(`{"id":1,"presence":{"topic":"a"}}`), "not_allowed") }
	}, func(o *Options) { o.Endpoints[2].Topics.Presence = false }},
	{"endpoints[2].topics.max_subscriptions", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		alice.subscribed("a")
		alice.subscribed("b")
		return func() { wantError(t, alice.ask(`{"id":1,"subscribe":{"topic":"c"}}`), "too_many_subscriptions") }
	}, func(o *Options) { o.Endpoints[2].Topics.MaxSubscriptions = 1 }},
	{"endpoints[2].topics.max_patterns", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/ws", speakJSON)
		alice.subscribed("a.*")
		alice.subscribed("b.*")
		return func() {
			wantError(t, alice.ask(`{"id":1,"subscribe":{"topic":"c.*"}}`), "too_many_subscriptions")
			alice.subscribed("d")
		}
	}, func(o *Options) { o.Endpoints[2].Topics.MaxPatterns = 1 }},
	{"endpoints[0].compression.threshold", Options{Endpoints: compressing()}, func(t *testing.T, s *Server) func() {
		long := strings.Repeat("carillon ", 100)
		alice := dial(t, s, "/echo", offerHeader)
		alice.send(long)
		alice.wantDeflated(Text, long)
		return func() { alice.echoes(long) }
	}, func(o *Options) { o.Endpoints[0].Compression.Threshold = 10_000 }},
	{"endpoints[0].compression.level", Options{Endpoints: compressing()}, func(t *testing.T, s *Server) func() {
		var b strings.Builder
		for i := range 5000 {
			b.WriteString(words(i * i))
		}
		alice := dial(t, s, "/echo", offerHeader)
		size := func() int {
			alice.send(b.String())
			_, payload, err := alice.frame()
			if err != nil {
				t.Fatal(err)
			}
			return len(payload)
		}
		fast := size()
		return func() {
			if small := size(); small >= fast {
				t.Errorf("%d bytes, and were %d", small, fast)
			}
		}
	}, func(o *Options) { o.Endpoints[0].Compression.Level = 9 }},
	{"endpoints[0].slow_consumer.policy", Options{Endpoints: policy(SlowConsumer{MaxQueue: 64 << 10})}, func(t *testing.T, s *Server) func() {
		dialFrozen(t, s, "/broadcast")
		return func() { freezeUntilDropped(t, s, DropNewest) }
	}, func(o *Options) { o.Endpoints[0].SlowConsumer.Policy = PolicyDropNewest }},
	{"endpoints[0].slow_consumer.max_queue", Options{Endpoints: policy(SlowConsumer{Policy: PolicyDropOldest, MaxQueue: -1})}, func(t *testing.T, s *Server) func() {
		dialFrozen(t, s, "/broadcast")
		return func() {
			freezeUntilDropped(t, s, DropOldest)
			if n := s.Stats().QueuedBytes; n > 64<<10 {
				t.Errorf("%d bytes wait", n)
			}
		}
	}, func(o *Options) { o.Endpoints[0].SlowConsumer.MaxQueue = 64 << 10 }},
	{"endpoints[0].slow_consumer.close_code", Options{Endpoints: policy(SlowConsumer{MaxQueue: 64 << 10})}, func(t *testing.T, s *Server) func() {
		cathy := dialFrozen(t, s, "/broadcast")
		return func() {
			freezeUntilDropped(t, s, DropSlowConsumer)
			cathy.readUntilClose(codec.ClosePolicyViolation, "slow consumer: more than 64KiB queued")
		}
	}, func(o *Options) { o.Endpoints[0].SlowConsumer.CloseCode = 1008 }},
	{"topics", Options{Topics: []TopicRule{{Match: "a", History: 10, MaxAge: -1}, {Match: "gone", History: 10}}}, func(t *testing.T, s *Server) func() {
		for _, topic := range []string{"a", "b", "gone"} {
			fill(t, s, topic, 5)
		}
		return func() {
			// What is there is trimmed at once. What was not kept does not come back.
			if n, _ := s.hub.MessageCount(); n != 2 {
				t.Errorf("%d messages are kept", n)
			}
			mustPublish(t, s, "b", "6")
			for topic, want := range map[string]int{"a": 2, "b": 1, "gone": 0} {
				if info, _ := s.Topic(topic); info.History != want {
					t.Errorf("%s keeps %d messages, want %d", topic, info.History, want)
				}
			}
			alice := dial(t, s, "/ws?topic=b") // which has become one with latest
			alice.want("6")
		}
	}, func(o *Options) {
		o.Topics = []TopicRule{{Match: "a", History: 2, MaxAge: -1}, {Match: "b", Latest: true}}
	}},
}

// endStories are about operators: what they reach, and the end.
var endStories = []reloadStory{
	{"health_path", Options{}, func(t *testing.T, s *Server) func() {
		wantHealth(t, s, 200, "ok")
		return func() {
			if code, _ := probe(t, s, "GET /up HTTP/1.1"); code != 200 {
				t.Error(code)
			}
			if code, _ := probe(t, s, "GET /healthz HTTP/1.1"); code != 404 {
				t.Error(code)
			}
		}
	}, func(o *Options) { o.HealthPath = "/up" }},
	{"internal.token", Options{}, func(t *testing.T, s *Server) func() {
		const bearer = "Authorization: Bearer "
		call(t, s, "GET", "/v1/topics", "").is(t, 200)
		call(t, s, "GET", "/v1/topics", "", "Host: elsewhere.example").is(t, 421)
		return func() {
			call(t, s, "GET", "/v1/topics", "").is(t, 401)
			call(t, s, "GET", "/v1/topics", "", bearer+"hush-hush-hush-hush", "Host: elsewhere.example").is(t, 200)
			reloaded(t, s, "internal.token", func(o *Options) { o.Internal.Token = "" })
			call(t, s, "GET", "/v1/topics", "").is(t, 200)
			call(t, s, "GET", "/v1/topics", "", "Host: elsewhere.example").is(t, 421)
			call(t, s, "POST", "/v1/broadcast", "x", "Sec-Fetch-Site: cross-site", "Content-Type: text/plain").is(t, 403)
		}
	}, func(o *Options) { o.Internal.Token = "hush-hush-hush-hush" }},
	{"drain.delay drain.deadline", Options{}, func(t *testing.T, s *Server) func() {
		return func() {
			call(t, s, "POST", "/v1/drain", "").is(t, 202)
			dial(t, s, "/echo").echoes("still served")
			if err := s.CallOffDrain(); err != nil {
				t.Error(err)
			}
			s.Shutdown(t.Context())
		}
	}, func(o *Options) { o.Drain.Delay, o.Drain.Deadline = time.Hour, 2*time.Hour }},
	{"drain.deadline", Options{Limits: Limits{CloseTimeout: time.Hour}, Drain: Drain{Duration: -1, Deadline: time.Hour}}, func(t *testing.T, s *Server) func() {
		dial(t, s, "/echo") // never answers a close
		return func() {
			s.StartDrain("test", 0)
			eventually(t, "it has ended", func() bool { return s.State() == StateStopped })
		}
	}, func(o *Options) { o.Drain.Deadline = 50 * time.Millisecond }},
	{"drain.duration drain.deadline", Options{}, func(t *testing.T, s *Server) func() {
		return func() {
			if p := s.newDrainSchedule(time.Now(), 100_000, false); p.Pace != time.Minute {
				t.Errorf("connections are closed over %v", p.Pace)
			}
			s.Shutdown(t.Context())
		}
	}, func(o *Options) { o.Drain.Duration, o.Drain.Deadline = time.Minute, 2*time.Minute }},
	{"drain.order", Options{}, func(t *testing.T, s *Server) func() {
		return func() {
			if p := s.newDrainSchedule(time.Now(), 1, false); !p.Random {
				t.Errorf("%+v", p)
			}
		}
	}, func(o *Options) { o.Drain.Order = OrderRandom }},
	{"drain.close_code", Options{}, func(t *testing.T, s *Server) func() {
		alice := dial(t, s, "/echo")
		return func() {
			s.StartDrain("test", 0)
			if _, code, _, _ := alice.goodbye(); code != codec.CloseServiceRestart {
				t.Error(code)
			}
		}
	}, func(o *Options) { o.Drain.CloseCode = 1012 }},
}

func wantError(t testing.TB, m said, code string) {
	t.Helper()
	if m.Error == nil || m.Error.Code != code {
		t.Fatalf("%s, want the error %s", m.text, code)
	}
}

// freezeUntilDropped publishes to a client that does not read until something is dropped for it.
func freezeUntilDropped(t testing.TB, s *Server, why DropReason) {
	t.Helper()
	for i := 0; s.Stats().Drops[why] == 0; i++ {
		if i > 10_000 {
			t.Fatal("nothing is dropped")
		}
		publish(t, s, "/broadcast", i)
		eventually(t, "it was handed out", func() bool { return s.engine.BacklogBytes() == 0 })
	}
}

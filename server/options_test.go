package server

import (
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/option"
)

func one(e Endpoint) Options {
	if e.Path == "" {
		e.Path = "/echo"
	}
	if e.Mode == "" && e.Handler.empty() {
		e.Mode = ModeEcho
	}
	return Options{Endpoints: []Endpoint{e}}
}

func TestOptionErrors(t *testing.T) {
	for _, row := range []struct {
		name string
		opts Options
		keys string
	}{
		{"an address without a port", Options{Listen: "localhost"}, "listen"},
		{"a port that is a name", Options{Listen: ":http"}, "listen"},
		{"a port out of range", Options{Listen: ":65536"}, "listen"},
		{"a unix socket that has no path from the root", Options{Listen: "unix:carillon.sock"}, "listen"},
		{"a unix socket without a path", Options{Listen: "unix:"}, "listen"},
		{"a path with dots in it", Options{Listen: "unix:/run/../tmp/s"}, "listen"},
		{"a path that no socket can have", Options{Listen: "unix:/" + strings.Repeat("x", 107)}, "listen"},
		{"an abstract socket without a name", Options{Listen: "unix:@"}, "listen"},
		{"permissions that there are not", Options{Listen: "unix:/s", ListenMode: 0o1777}, "listen_mode"},
		{"a listener without an address", Options{Listeners: []Listener{{}}}, "listeners[0].listen"},
		{"a listener whose settings make no sense", Options{Listeners: []Listener{{Listen: ":1"}, {Listen: ":2", Mode: 0o1000,
			ProxyProtocol: ProxyProtocol{Mode: "on", From: []string{"unix", "unicorn"}, Timeout: -1}}}},
			"listeners[1].mode listeners[1].proxy_protocol.timeout listeners[1].proxy_protocol.from[1] listeners[1].proxy_protocol.mode"},
		{"an address twice", Options{Listeners: []Listener{{Listen: "127.0.0.1:8080"}, {Listen: "unix:/s"}, {Listen: "unix:/s"}}},
			"listeners[0].listen listeners[2].listen"},
		{"an address that the internal interface has, and one that agent checks have", Options{Listeners: []Listener{{Listen: "127.0.0.1:1"}, {Listen: "127.0.0.1:2"}},
			Internal: Internal{Listen: "127.0.0.1:1"}, Agent: Agent{Listen: "127.0.0.1:2"}}, "internal.listen agent.listen"},
		{"a public URL that is none", Options{PublicURL: "chat.example.com"}, "public_url"},
		{"a public URL without a host", Options{PublicURL: "https://:443/"}, "public_url"},
		{"a public URL of another scheme", Options{PublicURL: "ftp://chat.example.com"}, "public_url"},
		{"a public URL with a port out of range", Options{PublicURL: "https://chat.example.com:65536"}, "public_url"},
		{"a public URL with a user", Options{PublicURL: "https://me@chat.example.com"}, "public_url"},
		{"a public URL with a query", Options{PublicURL: "https://chat.example.com/?a=b"}, "public_url"},
		{"a public URL with a fragment", Options{PublicURL: "https://chat.example.com/#a"}, "public_url"},
		{"a negative number of loops", Options{Loops: -1}, "loops"},
		{"more loops than gnet can have", Options{Loops: 256}, "loops"},
		{"a negative number of connections", Options{Limits: Limits{MaxConnections: -1}}, "limits.max_connections"},
		{"a head without limit", Options{Limits: Limits{MaxHead: -1}}, "limits.max_head"},
		{"a head too small for any request", Options{Limits: Limits{MaxHead: 255}}, "limits.max_head"},
		{"a head larger than any client needs", Options{Limits: Limits{MaxHead: 1<<20 + 1}}, "limits.max_head"},
		{"a time-out shorter than the clock can tell", Options{Limits: Limits{HandshakeTimeout: time.Microsecond}}, "limits.handshake_timeout"},
		{"an idle time-out longer than the clock can tell", Options{Limits: Limits{IdleTimeout: option.Longest + 1}}, "limits.idle_timeout"},
		{"a write time-out longer than the clock can tell", Options{Limits: Limits{WriteTimeout: math.MaxInt64}}, "limits.write_timeout"},
		{"a close that may take for ever", Options{Limits: Limits{CloseTimeout: -1}}, "limits.close_timeout"},
		{"a shutdown that may take for ever", Options{Drain: Drain{Deadline: -1}}, "drain.deadline"},
		{"a ping interval that is no time", Options{Ping: Ping{Interval: 1}}, "ping.interval"},
		{"a ping time-out that is no time", Options{Ping: Ping{Timeout: 1}}, "ping.timeout"},
		{"a balancer that cuts at once", Options{Ping: Ping{LBIdleTimeout: 1}}, "ping.lb_idle_timeout"},
		{"more jitter than there is interval", Options{Ping: Ping{Jitter: 1.01}}, "ping.jitter"},
		{"jitter that is no number", Options{Ping: Ping{Jitter: math.NaN()}}, "ping.jitter"},
		{"a path without a slash", one(Endpoint{Path: "echo"}), "endpoints[0].path"},
		{"a path with a query", one(Endpoint{Path: "/echo?x"}), "endpoints[0].path"},
		{"the same path twice", Options{Endpoints: append(echoAndBroadcast(), echoAndBroadcast()[0])}, "endpoints[2].path"},
		{"no mode and no handler", Options{Endpoints: []Endpoint{{Path: "/"}}}, "endpoints[0].mode"},
		{"an unknown mode", one(Endpoint{Mode: "ekko"}), "endpoints[0].mode"},
		{"a mode and a message handler", one(Endpoint{Mode: ModeEcho, Handler: Handler{Message: func(*Conn, codec.Opcode, []byte) {}}}), "endpoints[0].mode"},
		{"a subprotocol that is no token", one(Endpoint{Subprotocols: []string{"a", "b c"}}), "endpoints[0].subprotocols[1]"},
		{"a subprotocol twice", one(Endpoint{Subprotocols: []string{"a", "a"}}), "endpoints[0].subprotocols[1]"},
		{"too many subprotocols", one(Endpoint{Subprotocols: manyProtocols(255)}), "endpoints[0].subprotocols"},
		{"a compression level too low", one(Endpoint{Compression: Compression{Level: -1}}), "endpoints[0].compression.level"},
		{"a compression level too high", one(Endpoint{Compression: Compression{Level: 10}}), "endpoints[0].compression.level"},
		{"an unknown policy", one(Endpoint{SlowConsumer: SlowConsumer{Policy: "pray"}}), "endpoints[0].slow_consumer.policy"},
		{"a close code for other things", one(Endpoint{SlowConsumer: SlowConsumer{CloseCode: 1000}}), "endpoints[0].slow_consumer.close_code"},
		{"an unknown mode of the PROXY protocol", Options{ProxyProtocol: ProxyProtocol{Mode: "on"}}, "proxy_protocol.mode"},
		{"a PROXY header from nowhere", Options{ProxyProtocol: ProxyProtocol{Mode: ProxyRequired}}, "proxy_protocol.from"},
		{"a PROXY header from no network", Options{ProxyProtocol: ProxyProtocol{From: []string{"::1", "balancer"}}}, "proxy_protocol.from[1]"},
		{"a PROXY header that may take for ever", Options{ProxyProtocol: ProxyProtocol{Timeout: -1}}, "proxy_protocol.timeout"},
		{"a network with bits beyond its length", Options{TrustedProxies: []string{"10.0.0.1/8"}}, "trusted_proxies[0]"},
		{"a network of IPv4 written as IPv6", Options{TrustedProxies: []string{"10.0.0.1", "::ffff:10.0.0.0/104"}}, "trusted_proxies[1]"},
		{"a network of one interface", Options{TrustedProxies: []string{"fe80::1%eth0"}}, "trusted_proxies[0]"},
		{"rates out of range", Options{Limits: Limits{HandshakesPerSecond: 100_001, HandshakesPerSecondPerAddress: 100_001, MessagesPerSecond: 1_000_001, BytesPerSecond: 101 << 30, DecompressedBytesPerSecond: 101 << 30}},
			"limits.handshakes_per_second limits.handshakes_per_second_per_address limits.messages_per_second limits.bytes_per_second limits.decompressed_bytes_per_second"},
		{"origins that are none", one(Endpoint{Origins: []string{"https://example.com", "example.com", "https://", "https://example.com/", "https://*", "https://a.*.com",
			"https://*.*.com", "https://u@example.com", "https://example.com:x", "*.example.com", "https://bücher.example", "https://[::1", "null", "*", "app://x", "https://[::1]:8443", "http://*.localhost:80"}}),
			"endpoints[0].origins[1] endpoints[0].origins[2] endpoints[0].origins[3] endpoints[0].origins[4] endpoints[0].origins[5] endpoints[0].origins[6] endpoints[0].origins[7] endpoints[0].origins[8] endpoints[0].origins[9] endpoints[0].origins[10] endpoints[0].origins[11]"},
		{"everything at once", Options{Listen: "x", Loops: -1, Limits: Limits{MaxHead: -1}, Endpoints: []Endpoint{{}}},
			"listen loops limits.max_head endpoints[0].path endpoints[0].mode"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := New(row.opts)
			if err == nil || s != nil {
				t.Fatal("New takes it")
			}
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok {
				t.Fatalf("%T does not join", err)
			}
			var keys []string
			for _, e := range joined.Unwrap() {
				var o *OptionError
				if !errors.As(e, &o) || o.Problem == "" || !strings.HasPrefix(e.Error(), o.Key+": ") {
					t.Fatalf("%v is no OptionError", e)
				}
				keys = append(keys, o.Key)
			}
			if got := strings.Join(keys, " "); got != row.keys {
				t.Errorf("errors for %s, want %s: %v", got, row.keys, err)
			}
		})
	}
}

func manyProtocols(n int) (all []string) {
	for i := range n {
		all = append(all, "p"+strings.Repeat("x", i))
	}
	return all
}

// What the comments of Options call the default is the default.
func TestOptionDefaults(t *testing.T) {
	given := one(Endpoint{})
	o, err := given.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	wantLimits := Limits{MaxHead: 8 << 10, HandshakeTimeout: 10 * time.Second, MaxTLSHandshakes: 1024, BodyTimeout: 30 * time.Second, MaxMessage: 1 << 20, MaxFragments: 1024,
		IdleTimeout: -1, WriteTimeout: 30 * time.Second, CloseTimeout: 5 * time.Second, MaxBacklog: 64 << 20, MaxTopics: 1_000_000, MaxKeyMemory: 64 << 20,
		MaxConnectionsPerAddress: -1, HandshakesPerSecond: -1, HandshakesPerSecondPerAddress: -1, MessagesPerSecond: -1, BytesPerSecond: -1,
		DecompressedBytesPerSecond: 1 << 20,
		PublishesPerSecond:         -1, RequestsPerSecond: -1}
	if o.Limits != wantLimits {
		t.Errorf("limits: %+v", o.Limits)
	}
	if want := (Ping{Interval: 25 * time.Second, Jitter: 0.2, Timeout: 10 * time.Second, LBIdleTimeout: -1}); o.Ping != want {
		t.Errorf("ping: %+v", o.Ping)
	}
	e := o.Endpoints[0]
	if want := (SlowConsumer{Policy: PolicyClose, MaxQueue: 1 << 20, CloseCode: int(codec.CloseTryAgainLater)}); e.SlowConsumer != want {
		t.Errorf("slow consumer: %+v", e.SlowConsumer)
	}
	if want := (Compression{Threshold: 512, Level: 1}); e.Compression != want {
		t.Errorf("compression: %+v", e.Compression)
	}
	if p := o.ProxyProtocol; p.Mode != ProxyOff || p.Timeout != 5*time.Second || p.From != nil || o.TrustedProxies != nil {
		t.Errorf("proxies: %+v, %v", p, o.TrustedProxies)
	}
	if o.Listen != ":8080" || o.Drain != (Drain{Delay: -1, Duration: 10 * time.Second, Deadline: 25 * time.Second, Order: OrderOldest, CloseCode: 1001}) || o.Logger != slog.Default() {
		t.Errorf("listen %q, drain %v", o.Listen, o.Drain)
	}
	if given.Endpoints[0].SlowConsumer.Policy != "" {
		t.Error("the caller's endpoints were changed")
	}
	again, err := o.Resolve()
	if err != nil || again.Limits != o.Limits || again.Ping != o.Ping || again.Endpoints[0].SlowConsumer != e.SlowConsumer {
		t.Errorf("resolved again, options change: %+v, %v", again, err)
	}
	if s, err := New(given); err != nil || s.Options().Loops < 1 || s.MaxConnections() != 0 || s.Addr() != nil {
		t.Errorf("New: %v; a server knows its loops at once and its address later", err)
	}
}

// Everything that can be off is off for any negative value, and stays so.
func TestOptionsOff(t *testing.T) {
	e := Endpoint{Path: "/", Mode: ModeEcho, Compression: Compression{Threshold: -5}, SlowConsumer: SlowConsumer{MaxQueue: -5}}
	o, err := Options{
		Limits:    Limits{HandshakeTimeout: -5, MaxMessage: -5, MaxFragments: -5, IdleTimeout: -5, WriteTimeout: -5, MaxBacklog: -5},
		Ping:      Ping{Interval: -5, Timeout: -5, Jitter: -5, LBIdleTimeout: -5},
		Endpoints: []Endpoint{e},
	}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	e = o.Endpoints[0]
	for _, v := range []int64{int64(o.Limits.HandshakeTimeout), int64(o.Limits.MaxMessage), int64(o.Limits.MaxFragments),
		int64(o.Limits.IdleTimeout), int64(o.Limits.WriteTimeout), int64(o.Limits.MaxBacklog), int64(o.Ping.Interval),
		int64(o.Ping.Timeout), int64(o.Ping.Jitter), int64(o.Ping.LBIdleTimeout), int64(e.Compression.Threshold), int64(e.SlowConsumer.MaxQueue)} {
		if v >= 0 {
			t.Errorf("%d is not off: %+v", v, o)
		}
	}
}

// The clock's tick is fine enough for the shortest time-out, and no finer than 5 ms.
func TestTick(t *testing.T) {
	limits, ping := off()
	for _, row := range []struct {
		close, write, tick time.Duration
	}{
		{time.Minute, -1, time.Second},
		{4 * time.Second, -1, 500 * time.Millisecond},
		{4 * time.Second, 400 * time.Millisecond, 50 * time.Millisecond},
		{4 * time.Second, time.Millisecond, 5 * time.Millisecond},
	} {
		limits.CloseTimeout, limits.WriteTimeout = row.close, row.write
		s, err := New(Options{Limits: limits, Ping: ping})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.engine.Settings().Tick; got != row.tick {
			t.Errorf("close_timeout %v and write_timeout %v: tick %v, want %v", row.close, row.write, got, row.tick)
		}
	}
}

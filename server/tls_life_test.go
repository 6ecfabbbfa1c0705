package server

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/certs"
	"carillon/server/internal/reactor"
)

// What is true of connections is true of those over TLS. These are the tests of what could be different:
// slow consumers, order, the way to net/http and back, and ends.
func TestOverTLS(t *testing.T) {
	if allOverTLS {
		t.Skip("they are all over TLS")
	}
	allOverTLS = true
	t.Cleanup(func() { allOverTLS = false }) // when those that run in parallel have ended
	for name, test := range map[string]func(*testing.T){
		"FrozenReader":                     TestFrozenReader,
		"FrozenReaderIsClosed":             TestFrozenReaderIsClosed,
		"FrozenReaderGetsTimeToClose":      TestFrozenReaderGetsTimeToClose,
		"FrozenReaderOfSends":              TestFrozenReaderOfSends,
		"MessageLargerThanQueue":           TestMessageLargerThanQueue,
		"QueueWithoutLimit":                TestQueueWithoutLimit,
		"FrozenPinger":                     TestFrozenPinger,
		"SlowEchoOfLargeMessages":          TestSlowEchoOfLargeMessages,
		"WriteTimeout":                     TestWriteTimeout,
		"WriteTimeoutSparesTheSlow":        TestWriteTimeoutSparesTheSlow,
		"CloseTimeout":                     TestCloseTimeout,
		"OneOrderForAll":                   TestOneOrderForAll,
		"SenderOrder":                      TestSenderOrder,
		"MembersChangeDuringWalks":         TestMembersChangeDuringWalks,
		"PublishersOutrunTheWalk":          TestPublishersOutrunTheWalk,
		"CloseWhenThePeerIsDone":           TestCloseWhenThePeerIsDone,
		"PlainRequestsAreServed":           TestPlainRequestsAreServed,
		"PlainRequestsOfRawClients":        TestPlainRequestsOfRawClients,
		"APlainRequestMayArriveByteByByte": TestAPlainRequestMayArriveByteByByte,
		"AStreamedAnswer":                  TestAStreamedAnswer,
		"AHijackedConnectionHasEverything": TestAHijackedConnectionHasEverything,
		"NothingIsLeftOfPlainConnections":  TestNothingIsLeftOfPlainConnections,
		"FramesBehindALaterHead":           TestFramesBehindALaterHead,
		"EndpointsRefuseOnKeptConnections": TestEndpointsRefuseOnKeptConnections,
		"ReturnsAreSpread":                 TestReturnsAreSpread,
		"EventsWithEnvelope":               TestEventsWithEnvelope,
		"SlowEvents":                       TestSlowEvents,
		"EventsWriteTimeout":               TestEventsWriteTimeout,
		"DrainIsCalledOff":                 TestDrainIsCalledOff,
		"MaxAge":                           TestMaxAge,
	} {
		t.Run(name, test)
	}
}

// Certificates are renewed while connections are open: new ones get the new certificate, the others stay, and
// tickets from before are still good.
func TestTLSReload(t *testing.T) {
	a := newAuthority(t)
	pair := a.pair("old.test")
	var s *Server
	s, log := startChanged(t, Options{Endpoints: echoAndBroadcast(), TLS: TLS{Certificates: []Certificate{pair}}},
		func(s *Server) { s.ops.lookEvery = 5 * time.Millisecond })
	config := a.client()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	name := func(c *client) string { return c.state().PeerCertificates[0].Subject.CommonName }
	alice := dialTLS(t, s, config, "/echo")
	alice.send("hello")
	alice.want("hello") // and her ticket has come
	if name(alice) != "old.test" {
		t.Error(name(alice))
	}

	a.renew(pair, "new.test")
	eventually(t, "the new one is shown", func() bool { return name(shakeTLS(t, s, a.client())) == "new.test" })
	alice.send("still here")
	alice.want("still here")
	if !dialTLS(t, s, config, "/echo").state().DidResume {
		t.Error("a ticket from before is not good any more")
	}
	if s.Stats().TLSResumed != 1 {
		t.Errorf("%d resumed, want 1", s.Stats().TLSResumed)
	}

	// Files that cannot be used change nothing, and are told once.
	a.put(pair.CertFile, []byte("nonsense"))
	eventually(t, "it was noticed", func() bool { return s.engine.Listeners[0].Certs.Failures() > 0 })
	if err := s.ReloadTLS(); err == nil || !strings.Contains(err.Error(), pair.CertFile) {
		t.Errorf("ReloadTLS: %v", err)
	}
	if got := name(shakeTLS(t, s, a.client())); got != "new.test" {
		t.Error(got)
	}
	failures := s.engine.Listeners[0].Certs.Failures()
	time.Sleep(50 * time.Millisecond) // many looks
	if now := s.engine.Listeners[0].Certs.Failures(); now != failures {
		t.Errorf("%d failures were counted for files that have not changed", now-failures)
	}
	if !strings.Contains(log.String(), "could not reload certificates") {
		t.Error("the log does not say it")
	}
	a.renew(pair, "third.test")
	if err := s.ReloadTLS(); err != nil {
		t.Fatal(err)
	}
	if got := name(shakeTLS(t, s, a.client())); got != "third.test" {
		t.Error(got)
	}
}

// A client that was let in by an authority that is not trusted any more cannot come back with a ticket.
func TestTLSReloadOfAuthorities(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		clients := newAuthority(t)
		opts := a.overTLS(Options{Endpoints: echoAndBroadcast()})
		opts.TLS.ClientAuth, opts.TLS.ClientCAFile = ClientAuthRequire, clients.file()
		s := start(t, opts)
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		clients.shows(config, "alice")
		for i := range 2 {
			c := dialTLS(t, s, config, "/echo")
			c.send("hello")
			c.want("hello")
			if c.state().DidResume != (i == 1) {
				t.Errorf("connection %d: resumed is %v", i, c.state().DidResume)
			}
		}
		clients.put(opts.TLS.ClientCAFile, newAuthority(t).pem())
		if err := s.ReloadTLS(); err != nil {
			t.Fatal(err)
		}
		wantTLSError(t, s, config, "", RefuseTLSCertificate)
	})
}

// The time for a handshake is for TLS and the request together, however far it has come.
func TestTLSHandshakeTimeout(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	limits, ping := off()
	limits.HandshakeTimeout = 2 * time.Second
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping}))
	alice := dialTLS(t, s, a.client(), "/echo")

	silent := dialRaw(t, s)
	half := dialRaw(t, s) // of the first message
	hello := helloOf(t, a.client())
	half.write(hello[:len(hello)/2])
	deaf := dialRaw(t, s) // to what the server answers
	deaf.write(hello)
	late := shakeTLS(t, s, a.client()) // and no request
	for _, c := range []*client{silent, half} {
		c.wantEOF()
	}
	_ = deaf.conn.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(deaf.r); err != nil || len(answer) == 0 || answer[0] != certs.RecordHandshake {
		t.Errorf("%x, %v; want a handshake and the end", answer, err)
	}
	late.wantRefusal(408, "2s")
	if st := s.Stats(); st.Refusals[RefuseTLSTimeout] != 3 || st.Refusals[RefuseTimeout] != 1 {
		t.Errorf("%d and %d refusals counted, want 3 and 1", st.Refusals[RefuseTLSTimeout], st.Refusals[RefuseTimeout])
	}
	eventually(t, "no goroutine is left", func() bool { running, waiting := s.engine.TLSTable.Counts(); return running+waiting == 0 })
	alice.send("a handshake that is done has no time-out")
	alice.want("a handshake that is done has no time-out")
}

// helloOf is a client's first message.
func helloOf(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go tls.Client(far, config).Handshake()
	b := make([]byte, 16<<10)
	n, err := near.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// No more handshakes than that many are under way: the others wait, and get their turn.
func TestTLSHandshakeLimit(t *testing.T) {
	a := newAuthority(t)
	s, _ := startChanged(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxTLSHandshakes: 2}}), func(s *Server) {
		s.engine.TLSTable.SetGrace(time.Hour)
	})
	hello := helloOf(t, a.client())
	var stuck []*client
	for range 2 {
		c := dialRaw(t, s)
		c.write(hello)
		stuck = append(stuck, c)
	}
	counts := func(running, waiting int) func() bool {
		return func() bool { r, w := s.engine.TLSTable.Counts(); return r == running && w == waiting }
	}
	eventually(t, "two are under way", counts(2, 0))
	gone := dialRaw(t, s)
	gone.write(hello)
	eventually(t, "one waits", counts(2, 1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := dialTLS(t, s, a.client(), "/echo")
		c.send("patience")
		c.want("patience")
	}()
	eventually(t, "two wait", counts(2, 2))
	_ = gone.conn.Close()
	eventually(t, "one went away", counts(2, 1))
	_ = stuck[0].conn.Close() // in the middle of its handshake
	<-done
	_ = stuck[1].conn.Close()
	eventually(t, "no handshake is left", counts(0, 0))
	eventually(t, "they are counted", func() bool { return s.Stats().Refusals[RefuseLost] == 3 })
}

// A client cannot make the server keep what it sends instead of its handshake: its socket is not read until it is its
// turn.
func TestTLSUnread(t *testing.T) {
	a := newAuthority(t)
	s, _ := startChanged(t, a.overTLS(Options{Endpoints: echoAndBroadcast(), Limits: Limits{MaxTLSHandshakes: 1}}), func(s *Server) {
		s.engine.TLSTable.SetGrace(time.Hour)
	})
	first, second := dialRaw(t, s), dialRaw(t, s)
	hello := helloOf(t, a.client())
	first.write(hello) // and keeps the line waiting
	eventually(t, "it is under way", func() bool { n, _ := s.engine.TLSTable.Counts(); return n == 1 })
	go func() { _, _ = second.conn.Write(append(hello, make([]byte, 4<<20)...)) }()
	eventually(t, "much has come", func() bool { return s.engine.TLSUnread.Load() > reactor.MaxUnread })
	time.Sleep(100 * time.Millisecond)
	if n := s.engine.TLSUnread.Load(); n > reactor.MaxUnread+reactor.ClearSize {
		t.Errorf("%d bytes are kept", n)
	}
	_ = first.conn.Close()
	eventually(t, "it is refused", func() bool { return s.Stats().Refusals[RefuseTLSHello] == 1 }) // zeros are no record
	eventually(t, "nothing is kept", func() bool { return s.engine.TLSUnread.Load() == 0 })
}

// gathering keeps what is written, until it is let go.
type gathering struct {
	net.Conn
	on   bool
	kept []byte
}

func (g *gathering) Write(b []byte) (int, error) {
	if !g.on {
		return g.Conn.Write(b)
	}
	g.kept = append(g.kept, b...)
	return len(b), nil
}

// What comes over TLS waits for its turn before it is decrypted: where the loop has served sockets for long enough
// already, and where it takes longer than a turn, as with many small records. Nothing is lost by that, and the order
// stays.
func TestSealedInputWaits(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		opts := a.overTLS(Options{Loops: 1, Endpoints: echoAndBroadcast()})
		s := start(t, opts)
		for _, row := range []struct {
			name    string
			crowded bool
		}{{"on a crowded loop", true}, {"for longer than a turn", false}} {
			t.Run(row.name, func(t *testing.T) {
				raw := dialRaw(t, s)
				g := &gathering{Conn: raw.conn}
				raw.conn = g
				raw.startTLS(config)
				raw.open("/echo")
				conn := theConn(t, s)
				const messages = 2000
				g.on = true
				for i := range messages {
					for _, b := range text(fmt.Sprint(i)) { // each in a record of its own
						_, _ = raw.conn.Write([]byte{b})
					}
				}
				g.on = false
				type state struct {
					records         uint32
					waits, suspends bool
				}
				seen := make(chan state, 1)
				_ = conn.Do(func() {
					sh, session := conn.shard(), conn.core().Session()
					before := session.Records.Count
					if row.crowded {
						sh.Round = 2 * reactor.MaxRound
					}
					sh.Began = s.engine.Uptime()
					conn.core().Received(g.kept)
					seen <- state{session.Records.Count - before, session.Unread, conn.core().IsSuspended()}
				})
				st := <-seen
				if !st.waits || !st.suspends || st.records >= 4*messages || row.crowded && st.records > 0 {
					t.Errorf("%d records were decrypted at once, %+v", st.records, st)
				}
				for i := range messages {
					raw.want(fmt.Sprint(i))
				}
				left := make(chan bool, 1)
				_ = conn.Do(func() { left <- conn.core().Session().Unread || conn.core().Session().Waiting != nil })
				if <-left {
					t.Error("something waits still")
				}
				_ = raw.conn.Close()
				eventually(t, "it is gone", func() bool { return s.Count() == 0 })
			})
		}
	})
}

// A proxy's header comes before TLS, in the same segment or byte by byte.
func TestTLSBehindProxyProtocol(t *testing.T) {
	a := newAuthority(t)
	for _, mode := range []ProxyMode{ProxyRequired, ProxyOptional} {
		s := start(t, a.overTLS(behindBalancers(mode)))
		for _, header := range []string{aliceV1, aliceV2} {
			for how, wrap := range map[string]func(net.Conn) net.Conn{
				"by itself":            func(c net.Conn) net.Conn { _, _ = io.WriteString(c, header); return c },
				"before what follows":  func(c net.Conn) net.Conn { return &prefixed{c, []byte(header)} },
				"a byte at a time too": func(c net.Conn) net.Conn { return &prefixed{&trickle{c}, []byte(header)} },
			} {
				t.Run(fmt.Sprintf("%s, version %d, %s", mode, 1+header[0]%2, how), func(t *testing.T) {
					c := dialRaw(t, s)
					c.conn = wrap(c.conn)
					c.startTLS(a.client())
					c.open("/who")
					c.want(aliceAt)
				})
			}
		}
		if mode == ProxyOptional {
			c := dialTLS(t, s, a.client(), "/who")
			c.want(c.conn.LocalAddr().String())
		}
	}
}

// prefixed puts something before the first write.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	_, err := p.Conn.Write(append(p.first, b...))
	p.first = nil
	return len(b), err
}

// Pages know that they were asked for over TLS, and by whom; a connection comes back from them.
func TestTLSPages(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		opts := a.overTLS(withPages(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s over %x for %s", r.URL.Path, r.TLS.Version, r.TLS.PeerCertificates[0].Subject.CommonName)
		}))
		opts.TLS.ClientAuth, opts.TLS.ClientCAFile = ClientAuthRequire, a.file()
		s := start(t, opts)
		c := shakeTLS(t, s, a.shows(config, "alice"))
		for i := range 3 {
			path := fmt.Sprintf("/page/%d", i)
			c.write([]byte(requestHead("GET " + path + " HTTP/1.1")))
			c.wantPage(fmt.Sprintf("%s over %x for alice", path, config.MinVersion))
		}
		c.open("/echo")
		c.send("and now a WebSocket")
		c.want("and now a WebSocket")
		if st := s.Stats(); st.PlainHTTP != 1 || st.Returned != 1 || st.TLSHandshakes != 1 {
			t.Errorf("%d handed over, %d returned, %d handshakes; want one of each", st.PlainHTTP, st.Returned, st.TLSHandshakes)
		}
		c.write(masked(0x88, []byte{0x03, 0xe8}))
		c.wantClose(codec.CloseNormal, "")
		_ = c.conn.Close()

		large := bytes.Repeat([]byte("a body of many records "), 100_000)
		opts.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		big := start(t, opts)
		b := &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: patience}
		defer b.CloseIdleConnections()
		resp, err := b.Post("https://"+big.Addr().String()+"/", "text/plain", bytes.NewReader(large))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); !bytes.Equal(got, large) || err != nil {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
		_ = resp.Body.Close()
	})
}

// An application's own configuration is used but for the protocol, and may decide for each client. Its
// mistakes are its own.
func TestTLSConfigOfTheApplication(t *testing.T) {
	a := newAuthority(t)
	pair, err := tls.X509KeyPair(a.issue("mine.test"))
	if err != nil {
		t.Fatal(err)
	}
	s, log := startLogged(t, Options{Endpoints: echoAndBroadcast(), TLS: TLS{Config: &tls.Config{
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.Conn.RemoteAddr() == nil || hello.Conn.LocalAddr() == nil {
				t.Error("the connection has no address")
			}
			if hello.ServerName == "panic.test" {
				panic("at the disco")
			}
			return &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}, nil
		},
	}}})
	config := a.client()
	config.NextProtos = []string{"h2", "http/1.1"}
	c := dialTLS(t, s, config, "/echo")
	c.send("hello")
	c.want("hello")
	if got := c.state().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("the protocol is %q", got)
	}
	config.ServerName = "panic.test"
	if err := tls.Client(dialRaw(t, s).conn, config).Handshake(); err == nil {
		t.Error("a handshake went well that panicked")
	}
	eventually(t, "it is counted", func() bool { return s.Stats().Refusals[RefusePanic] == 1 })
	if !strings.Contains(log.String(), "at the disco") {
		t.Error("the log does not say it")
	}
	c.send("still here")
	c.want("still here")
}

// The internal interface speaks TLS as well, also with a certificate that is renewed.
func TestTLSInternal(t *testing.T) {
	a := newAuthority(t)
	pair := a.pair("internal.test")
	s := start(t, Options{Endpoints: echoAndBroadcast(), Internal: Internal{Listen: "127.0.0.1:0", TLS: TLS{Certificates: []Certificate{pair}}}})
	for _, name := range []string{"internal.test", "renewed.test"} {
		a.renew(pair, name)
		if err := s.ReloadTLS(); err != nil {
			t.Fatal(err)
		}
		b := &http.Client{Transport: &http.Transport{TLSClientConfig: a.client()}, Timeout: patience}
		resp, err := b.Get("https://" + s.InternalAddr().String() + "/livez")
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.TLS.PeerCertificates[0].Subject.CommonName; resp.StatusCode != 200 || got != name {
			t.Errorf("%s as %s, want %s", resp.Status, got, name)
		}
		_ = resp.Body.Close()
		b.CloseIdleConnections()
	}
}

// What is wrong with a pair is said with the key and the file.
func TestTLSOptions(t *testing.T) {
	a := newAuthority(t)
	good, other := a.pair("a.test"), a.pair("b.test")
	for _, row := range []struct {
		sentence string
		tls      TLS
		want     []string
	}{
		{"a key may be in the file of its certificate", TLS{Certificates: []Certificate{a.together("c.test")}}, nil},
		{"a key must fit", TLS{Certificates: []Certificate{good, {good.CertFile, other.KeyFile}}},
			[]string{"tls.certificates[1].cert_file", good.CertFile, other.KeyFile, "does not match"}},
		{"a key must be there", TLS{Certificates: []Certificate{{good.CertFile, "/nowhere"}}}, []string{"tls.certificates[0].key_file", "/nowhere", "no such file"}},
		{"a certificate must be named", TLS{Certificates: []Certificate{{}}}, []string{"tls.certificates[0].cert_file", "is missing"}},
		{"an authority must be one", TLS{Certificates: []Certificate{good}, ClientAuth: ClientAuthRequire, ClientCAFile: good.KeyFile},
			[]string{"tls.client_ca_file", good.KeyFile, "no PEM certificate"}},
		{"an authority must be named", TLS{Certificates: []Certificate{good}, ClientAuth: ClientAuthRequest}, []string{"tls.client_ca_file", "is missing"}},
		{"an authority is for something", TLS{Certificates: []Certificate{good}, ClientCAFile: a.file()}, []string{"tls.client_ca_file", "client_auth is off"}},
		{"a mode must be known", TLS{Certificates: []Certificate{good}, ClientAuth: "maybe"}, []string{"tls.client_auth", "maybe"}},
		{"a Config has certificates", TLS{Config: &tls.Config{}}, []string{"tls.certificates", "the Config has none"}},
		{"a Config stands alone", TLS{Config: testTLS(), Certificates: []Certificate{good}}, []string{"tls.certificates", "exclude"}},
	} {
		_, err := Options{TLS: row.tls}.Resolve()
		if err == nil && row.want != nil || err != nil && row.want == nil {
			t.Errorf("%s: %v", row.sentence, err)
		}
		for _, want := range row.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v does not say %q", row.sentence, err, want)
			}
		}
	}
}

// together writes a certificate and its key into one file.
func (a *authority) together(name string) Certificate {
	cert, key := a.issue(name)
	file := a.dir + "/" + name + ".both"
	a.put(file, append(cert, key...))
	return Certificate{CertFile: file}
}

// An echo over TLS allocates only what crypto/tls itself does to read a record, here and at the client: a reader
// that knows how much is missing, and there twice.
func TestTLSAllocations(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector allocates")
	}
	reactor.CheckOwner = false
	defer func() { reactor.CheckOwner = true }()
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Loops: 1, Endpoints: echoAndBroadcast(), Ping: Ping{Interval: -1}}))
	c := dialTLS(t, s, a.client(), "/echo")
	request, answer := masked(0x82, make([]byte, 128)), make([]byte, 132)
	echo := func() {
		if _, err := c.conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.r, answer); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	if n := testing.AllocsPerRun(2000, echo); n > 3 {
		t.Errorf("an echo takes %v allocations", n)
	}
}

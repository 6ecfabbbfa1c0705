package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
)

// changed reloads the server with a change of its options.
func changed(s *Server, change func(*Options)) (Changes, error) {
	return s.Reload(func() (Options, error) {
		o := s.Options()
		change(&o)
		return o, nil
	})
}

// reloaded is changed where it must succeed and change these keys.
func reloaded(t testing.TB, s *Server, keys string, change func(*Options)) {
	t.Helper()
	ch, err := changed(s, change)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ch.Applied, " "); got != keys || len(ch.Restart) > 0 {
		t.Fatalf("changed %q, and %v need a restart; want %q", got, ch.Restart, keys)
	}
}

// status asks for a connection and returns what was answered.
func status(t testing.TB, s *Server, path string, headers ...string) int {
	t.Helper()
	c := dialRaw(t, s)
	defer c.conn.Close()
	c.write([]byte(upgradeHead(path, headers...)))
	return c.response().StatusCode
}

func wantStatus(t testing.TB, s *Server, want int, path string, headers ...string) {
	t.Helper()
	if got := status(t, s, path, headers...); got != want {
		t.Fatalf("%s %q is answered %d, want %d", path, headers, got, want)
	}
}

func (c *client) echoes(words string) {
	c.t.Helper()
	c.send(words)
	c.want(words)
}

// A reload without changes changes nothing, not even the keys that are held.
func TestReloadOfTheSame(t *testing.T) {
	i := newIssuer(t)
	s := start(t, Options{Endpoints: append(echoAndBroadcast(), i.endpoint("HS256")), Topics: []TopicRule{{Match: ">", History: 3}}})
	before := s.settings()
	mustPublish(t, s, "a", "1")
	reloaded(t, s, "", func(*Options) {})
	now := s.settings()
	for i := range now.endpoints {
		if now.endpoints[i].auth != before.endpoints[i].auth || now.endpoints[i].deflater != before.endpoints[i].deflater {
			t.Errorf("endpoint %d was made anew", i)
		}
	}
	if now.loops.MaxSockets != before.loops.MaxSockets || s.MaxConnections() == 0 || len(s.reloads.watched) != 1 {
		t.Errorf("%d connections, %d keyrings", s.MaxConnections(), len(s.reloads.watched))
	}
	if info, _ := s.Topic("a"); info.History != 1 {
		t.Errorf("%+v", info)
	}
}

// What a caller does to the options that it gave or got changes nothing.
func TestOptionsInForceAreNobodyElses(t *testing.T) {
	given := Options{Endpoints: []Endpoint{{Path: "/", Mode: ModeEcho, Origins: []string{"null"}}}, TrustedProxies: []string{"::1"}}
	s, err := New(given)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Options()
	for _, o := range []Options{given, got} {
		o.Endpoints[0].Origins[0], o.Endpoints[0].Path, o.TrustedProxies[0] = "*", "/x", "10.0.0.1"
	}
	if o := s.opts(); o.Endpoints[0].Origins[0] != "null" || o.Endpoints[0].Path != "/" || o.TrustedProxies[0] != "::1" {
		t.Errorf("%+v", o)
	}
}

// Reload comes before Run: the server begins with the new options.
func TestReloadBeforeRun(t *testing.T) {
	s, err := New(Options{Listen: "127.0.0.1:0", Endpoints: echoAndBroadcast(), Logger: silent(), Drain: Drain{Duration: -1}})
	if err != nil {
		t.Fatal(err)
	}
	reloaded(t, s, "limits.max_connections limits.max_message", func(o *Options) { o.Limits.MaxConnections, o.Limits.MaxMessage = 7, 4 })
	run(t, s)
	if n := s.MaxConnections(); n != 7 {
		t.Errorf("%d connections", n)
	}
	alice := dial(t, s, "/echo")
	alice.send("too long")
	alice.wantClose(codec.CloseMessageTooBig, "")
}

// An operator's file has changes of both kinds: what can be applied is, and the rest is named, each time
// until there is a restart.
func TestReloadNamesWhatNeedsARestart(t *testing.T) {
	opts := Options{Loops: 1, Endpoints: append(echoAndBroadcast(), topicsEndpoint())}
	opts.Endpoints[0].Origins = []string{"null"}
	s := withAPI(t, opts)
	alice := dial(t, s, "/echo")
	for _, row := range []struct {
		sentence         string
		change           func(*Options)
		applied, restart string
	}{
		{"another port", func(o *Options) { o.Listen = "127.0.0.1:1" }, "", "listen"},
		{"no internal interface", func(o *Options) { o.Internal.Listen = optionOff }, "", "internal.listen"},
		{"a port for agents", func(o *Options) { o.Agent.Listen = "127.0.0.1:2" }, "", "agent.listen"},
		{"more loops", func(o *Options) { o.Loops = 3 }, "", "loops"},
		{"takeover", func(o *Options) { o.Takeover = true }, "", "takeover"},
		{"another mode", func(o *Options) { o.Endpoints[0].Mode = ModeBroadcast }, "", "endpoints[0].mode"},
		{"subprotocols", func(o *Options) { o.Endpoints[1].Subprotocols = []string{"chat"} }, "", "endpoints[1].subprotocols"},
		{"compression", func(o *Options) { o.Endpoints[2].Compression.Enabled = true }, "", "endpoints[2].compression.enabled"},
		{"an endpoint more", func(o *Options) { o.Endpoints = slices.Insert(o.Endpoints, 0, Endpoint{Path: "/new", Mode: ModeEcho}) }, "", "endpoints[0]"},
		{"one less", func(o *Options) { o.Endpoints = o.Endpoints[1:] }, "", "endpoints"},
		{"one that is called otherwise", func(o *Options) { o.Endpoints[1].Path = "/b" }, "", "endpoints[1] endpoints"},
		{"another order is no change", func(o *Options) { slices.Reverse(o.Endpoints) }, "", ""},
		{"some of each", func(o *Options) {
			o.Listen, o.Ping.Interval = "127.0.0.1:1", time.Hour
			slices.Reverse(o.Endpoints)
			o.Endpoints[2].Mode, o.Endpoints[2].Origins = ModeTopics, []string{"*"}
		}, "ping.interval endpoints[2].origins", "listen endpoints[2].mode"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			for range 2 {
				ch, err := changed(s, row.change)
				if applied, restart := strings.Join(ch.Applied, " "), strings.Join(ch.Restart, " "); err != nil || applied != row.applied || restart != row.restart {
					t.Fatalf("applied %q, restart %q, %v; want %q and %q", applied, restart, err, row.applied, row.restart)
				}
				row.applied = ""
			}
		})
	}
	alice.echoes("still here")
	wantStatus(t, s, 101, "/echo", "Origin: https://x.example") // the last of the rows
	wantStatus(t, s, 404, "/new")
	if o := s.Options(); o.Listen != "127.0.0.1:0" || o.Loops != 1 || o.Endpoints[0].Mode != ModeEcho || o.Ping.Interval != time.Hour {
		t.Errorf("%+v", o)
	}
}

// Nothing at all of a file with mistakes is applied, and each of them is told.
func TestReloadRefusesAsAWhole(t *testing.T) {
	i := newIssuer(t)
	broken := newJWKSServer(t)
	broken.broken.Store(true)
	for _, row := range []struct {
		sentence string
		change   func(*Options)
		problems []string
	}{
		{"two mistakes", func(o *Options) { o.Ping.Jitter, o.Endpoints[0].Origins = 2, []string{"x"} },
			[]string{"ping.jitter: 2 is out of range", `endpoints[0].origins[0]: "x" is not an origin`}},
		{"more connections than descriptors", func(o *Options) { o.Limits.MaxConnections = 1 << 30 }, []string{"limits.max_connections is 1073741824, but the descriptor limit"}},
		{"a key file that is not there", func(o *Options) {
			slices.Reverse(o.Endpoints)
			o.Endpoints[2].Auth.JWT = JWT{Algorithms: []string{"HS256"}, KeyFile: filepath.Join(t.TempDir(), "none")}
		}, []string{"endpoints[2].auth.jwt.key_file: ", "no such file"}},
		{"a key file of another kind", func(o *Options) {
			o.Endpoints[0].Auth.JWT = JWT{Algorithms: []string{"HS256"}, KeyFile: i.File("ES256")}
		}, []string{"endpoints[0].auth.jwt.key_file: ", "is PEM"}},
		{"an issuer that is away, and one that does not answer", func(o *Options) {
			o.Endpoints[0].Auth.JWT = JWT{Algorithms: []string{"ES256"}, JWKSURL: broken.URL}
			o.Endpoints[1].Auth.JWT = JWT{Algorithms: []string{"ES256"}, JWKSURL: "http://127.0.0.1:1/"}
		}, []string{"endpoints[0].auth.jwt.jwks_url: no keys could be fetched: the response is 500", "endpoints[1].auth.jwt.jwks_url: no keys could be fetched: "}},
		{"no token for an address that others reach, which would only be right after a restart",
			func(o *Options) { o.Internal = Internal{Listen: "127.0.0.1:1"} }, []string{"internal.listen: ", "is reachable from other machines"}},
		{"a health check in the place of an endpoint that is still served",
			func(o *Options) { o.HealthPath, o.Endpoints = "/echo", o.Endpoints[1:] }, []string{"health_path: /echo is the path of endpoints[0]"}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			s := start(t, Options{Endpoints: append(echoAndBroadcast(), topicsEndpoint()), Internal: Internal{Listen: "0.0.0.0:0", Token: "hush-hush-hush-hush"}})
			alice, before := dial(t, s, "/echo"), s.settings()
			ch, err := changed(s, func(o *Options) {
				o.Limits.MaxMessage = 1
				row.change(o)
			})
			if err == nil || ch.Applied != nil || ch.Restart != nil {
				t.Fatalf("%+v, %v", ch, err)
			}
			for _, words := range row.problems {
				if !strings.Contains(err.Error(), words) {
					t.Errorf("%v; want %s", err, words)
				}
			}
			if s.settings() != before {
				t.Error("the settings are others")
			}
			alice.echoes("as before")
		})
	}
}

// localhost is an address of other machines here. So a token that was there from the start cannot go.
func TestReloadKeepsATokenThatIsNeeded(t *testing.T) {
	s := withAPI(t, Options{Internal: Internal{Token: "hush-hush-hush-hush"}})
	s.reloads.exposed = true
	if _, err := changed(s, func(o *Options) { o.Internal.Token = "" }); err == nil || !strings.Contains(err.Error(), "internal.token: is missing") {
		t.Error(err)
	}
	reloaded(t, s, "internal.token", func(o *Options) { o.Internal.Token = "quiet-quiet-quiet" })
}

// When a file cannot be read, the caller of Reload gets the error. The metrics count it.
func TestReloadsAreCounted(t *testing.T) {
	s := withAPI(t, Options{})
	began := scrape(t, s)
	want := func(success, failure, good float64) {
		t.Helper()
		scrape(t, s).want(t, map[string]float64{`config_reloads_total{result="success"}`: success,
			`config_reloads_total{result="failure"}`: failure, "config_last_reload_successful": good})
	}
	want(0, 0, 1)
	gone := errors.New("gone")
	if _, err := s.Reload(func() (Options, error) { return Options{}, gone }); !errors.Is(err, gone) {
		t.Error(err)
	}
	want(0, 1, 0)
	reloaded(t, s, "ping.interval", func(o *Options) { o.Ping.Interval = time.Hour })
	want(1, 1, 1)
	if at := "carillon_config_last_reload_success_timestamp_seconds"; scrape(t, s)[at] < began[at] || began[at] < float64(time.Now().Unix()-60) {
		t.Errorf("%v, then %v", began[at], scrape(t, s)[at])
	}
	s.StartDrain("test", time.Hour)
	if _, err := changed(s, func(*Options) {}); err != ErrDraining {
		t.Error(err)
	}
	want(1, 1, 1)
	if err := s.CallOffDrain(); err != nil {
		t.Fatal(err)
	}
	reloaded(t, s, "ping.interval", func(o *Options) { o.Ping.Interval = time.Minute })
}

// Handlers stay those of the start, and the caller of a reload need not know endpoints without a mode.
func TestReloadKeepsHandlers(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{whoAmI()}, HTTP: http.HandlerFunc(mirror)})
	reads := func() (Options, error) {
		return Options{Listen: s.Options().Listen, Endpoints: []Endpoint{{Path: "/who", Origins: []string{"*"}}}, Drain: s.Options().Drain}, nil
	}
	ch, err := s.Reload(reads)
	if err != nil || strings.Join(ch.Applied, " ") != "endpoints[0].origins" || ch.Restart != nil {
		t.Fatalf("%+v, %v", ch, err)
	}
	alice := dial(t, s, "/who", "Origin: https://x.example")
	if _, _, err := alice.frame(); err != nil {
		t.Error(err)
	}
	alice.echoes("hello")
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET /page HTTP/1.1")))
	c.wantPage("GET /page")
}

// Pages follow the limits for heads: connections that are open keep theirs, and are served on.
func TestReloadRenewsPlainHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, withPages(mirror))
	old := dialRaw(t, s)
	old.write([]byte(requestHead("GET /1 HTTP/1.1")))
	old.wantPage("GET /1 ")
	large := "X-Padding: " + strings.Repeat("x", 16<<10)
	for range 3 {
		reloaded(t, s, "limits.max_head", func(o *Options) { o.Limits.MaxHead = 32 << 10 })
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET /2 HTTP/1.1", large)))
		c.wantPage("GET /2 ")
		c.write([]byte(requestHead("GET /3 HTTP/1.1", large)))
		c.wantPage("GET /3 ")
		_ = c.conn.Close()
		eventually(t, "it is closed", func() bool { return s.Stats().Sockets == 1 })
		reloaded(t, s, "limits.max_head", func(o *Options) { o.Limits.MaxHead = 8 << 10 })
		c = dialRaw(t, s)
		c.write([]byte(requestHead("GET /4 HTTP/1.1")))
		c.wantPage("GET /4 ")
		c.write([]byte(requestHead("GET /5 HTTP/1.1", large)))
		if resp := c.response(); resp.StatusCode != 431 {
			t.Errorf("answered %s, want 431", resp.Status)
		}
		_ = c.conn.Close()
		eventually(t, "it is closed", func() bool { return s.Stats().Sockets == 1 })
	}
	old.write([]byte(requestHead("GET /6 HTTP/1.1")))
	old.wantPage("GET /6 ")
	s.plain.mu.Lock()
	if n := len(s.plain.servers); n > 3 {
		t.Errorf("%d http.Servers are kept for one connection of an old one", n)
	}
	s.plain.mu.Unlock()
	old.write([]byte(upgradeHead("/echo")))
	if resp := old.response(); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	old.echoes("from page to socket")
}

// A stream becomes one of values that are replaced, such as prices, and back, again and again, while cathy
// does not read. She gets what was published before the first change, and then the newest, and nothing twice.
// From then on she gets all again.
func TestReloadOfLatestWhileAReaderIsFrozen(t *testing.T) {
	opts := topics(TopicRule{Match: "price"})
	opts.Endpoints[0].SlowConsumer.MaxQueue = -1
	opts.Limits.WriteTimeout = -1
	s := start(t, opts)
	cathy := dialFrozen(t, s, "/ws?topic=price")
	subscribers(t, s, "price", 1)
	published := uint64(freezeOn(t, s, "price"))
	for i := range 25 {
		if i > 0 && i%5 == 0 {
			reloaded(t, s, "topics", func(o *Options) { o.Topics[0].Latest = i/5%2 == 1 })
		}
		mustPublish(t, s, "price", fmt.Sprint("number ", i))
		published++
		eventually(t, "it was handed out", func() bool { return s.Stats().Deliveries == published })
	}
	var got []int
	for i := 0; i < 27; {
		_, payload, err := cathy.frame()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(payload), "number %d", &i); err != nil {
			continue // what froze her
		}
		if got = append(got, i); i == 24 {
			eventually(t, "nothing waits for her", func() bool { return s.Stats().QueuedBytes == 0 })
			for i := range 3 {
				mustPublish(t, s, "price", fmt.Sprint("number ", 25+i))
			}
		}
	}
	if want := []int{0, 1, 2, 3, 4, 24, 25, 26, 27}; !slices.Equal(got, want) {
		t.Errorf("cathy got %v, want %v", got, want)
	}
}

// With shorter time-outs the loops look for them more often.
func TestReloadOfTheTick(t *testing.T) {
	t.Parallel()
	s := withAPI(t, Options{Limits: Limits{CloseTimeout: time.Hour}, Ping: Ping{Timeout: time.Hour}})
	dial(t, s, "/echo")
	turns := func() float64 { return scrape(t, s)["carillon_loop_turn_seconds_count"] }
	reloaded(t, s, "limits.close_timeout", func(o *Options) { o.Limits.CloseTimeout = 10 * time.Millisecond })
	before := turns()
	eventually(t, "a hundred turns have gone by", func() bool { return turns() > before+100 })
}

// Options change all the time while clients come and go, subscribe, publish and are broadcast to. Alice,
// whom none of it concerns, misses nothing.
func TestReloadsUnderLoad(t *testing.T) {
	i := newIssuer(t)
	keys := i.File("HS256")
	opts := Options{Loops: 2, Endpoints: append(echoAndBroadcast(), topicsEndpoint()), HTTP: http.HandlerFunc(mirror)}
	s := start(t, opts)
	token := withToken(i.Token("HS256", alice()))
	watching := dial(t, s, "/broadcast")
	stop := make(chan struct{})
	var crowd sync.WaitGroup
	ongoing := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	for n := range 3 {
		crowd.Go(func() {
			for ongoing() {
				c := dialRaw(t, s)
				_, _ = c.conn.Write([]byte(upgradeHead("/ws?topic=t", token, speakJSON)))
				_, _ = c.conn.Write(text(fmt.Sprintf(`{"publish":{"topic":"t%d","data":1}}`, n)))
				_, _ = c.conn.Read(make([]byte, 100))
				_ = c.conn.Close()
				if resp, err := http.Get(s.page("/page")); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}
		})
	}
	crowd.Go(func() {
		for n := 0; ongoing(); n++ {
			if err := s.Broadcast("/broadcast", Text, []byte(words(n))); err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Publish(Publication{Topic: "t", Payload: []byte("x")}); err != nil {
				t.Error(err)
			}
			_, _ = s.Topics(">")
			time.Sleep(time.Millisecond)
		}
	})
	for n := range 2 {
		crowd.Go(func() {
			for round := range 20 {
				_, err := changed(s, func(o *Options) {
					odd := (round+n)%2 == 1
					o.Limits = Limits{MaxConnections: 100 + round, MaxHead: Size(4096 + round), MessagesPerSecond: -1}
					o.Topics, o.TrustedProxies, o.Endpoints[2].Auth = nil, nil, Auth{}
					if odd {
						o.Limits.MessagesPerSecond, o.Limits.MaxConnectionsPerAddress = 1000, 1000
						o.Topics = []TopicRule{{Match: ">", History: 5, Latest: n == 0}}
						o.TrustedProxies = []string{"127.0.0.1"}
						o.Endpoints[2].Auth.JWT = JWT{Algorithms: []string{"HS256"}, KeyFile: keys}
					}
					o.Ping.Interval = time.Duration(round+1) * time.Minute
				})
				if err != nil {
					t.Error(err)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for n := range 150 {
		watching.want(words(n))
	}
	close(stop)
	crowd.Wait()
	http.DefaultClient.CloseIdleConnections()
	_ = watching.conn.Close()
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 })
	if n := s.engine.Addresses.Len(); n != 0 {
		t.Errorf("%d addresses are still counted", n)
	}
}

// A key that begins to be read is in the table of what a reload does.
func optionKeys(t reflect.Type, prefix string) (keys []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("yaml")
		switch list := f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct; {
		case name == "-":
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, optionKeys(f.Type, prefix+name+".")...)
		case list && name == "endpoints":
			keys = append(keys, optionKeys(f.Type.Elem(), prefix+name+"[].")...)
		default:
			keys = append(keys, prefix+name)
		}
	}
	return keys
}

// Every key that does not need a restart has a story that shows what changes, and no other has.
func TestEveryKeyThatReloadsHasAStory(t *testing.T) {
	told := map[string]bool{}
	for _, story := range slices.Concat(limitStories, timeStories, clientStories, endStories) {
		for key := range strings.FieldsSeq(story.keys) {
			told[listIndex.ReplaceAllString(key, "[]")] = true
		}
	}
	for _, story := range gateStories {
		for key := range strings.FieldsSeq(story.keys) {
			told["endpoints[].auth."+key] = true
		}
	}
	for _, key := range optionKeys(reflect.TypeFor[Options](), "") {
		if told[key] == NeedsRestart(key) {
			t.Errorf("%s: told %v, needs a restart %v", key, told[key], NeedsRestart(key))
		}
		delete(told, key)
	}
	for key := range told {
		t.Errorf("%s is no key", key)
	}
}

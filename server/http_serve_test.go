package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

func port(s *Server) string {
	_, port, _ := net.SplitHostPort(s.Addr().String())
	return port
}

// withPages has endpoints, and a handler for everything else.
func withPages(pages http.HandlerFunc) Options {
	return Options{Endpoints: echoAndBroadcast(), HTTP: pages}
}

// mirror tells what was asked for.
func mirror(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Remote", r.RemoteAddr)
	fmt.Fprintf(w, "%s %s %s, upgrade %q, body %x", r.Method, r.RequestURI, r.Proto, r.Header.Get("Upgrade"), short(body))
}

// short stands for a body that may be long.
func short(body []byte) []byte {
	if len(body) > 64 {
		sum := sha256.Sum256(body)
		return sum[:8]
	}
	return body
}

// browser is a client of net/http with connections of its own.
func browser(t *testing.T) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 100, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func (s *Server) page(path string) string {
	if s.engine.Listeners[0].Certs != nil {
		return "https://" + s.Addr().String() + path
	}
	return "http://" + s.Addr().String() + path
}

// fetch reads a whole answer.
func fetch(t *testing.T, b *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := b.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// wantPage reads an answer to a raw client and leaves the connection open.
func (c *client) wantPage(says string) *http.Response {
	c.t.Helper()
	resp := c.response()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), says) {
		c.t.Fatalf("%s %q, %v; want 200 and %q", resp.Status, body, err, says)
	}
	return resp
}

func requestHead(line string, headers ...string) string {
	return line + "\r\n" + hostLine + strings.Join(append(headers, "", ""), "\r\n")
}

func TestPlainRequestsAreServed(t *testing.T) {
	t.Parallel()
	s := start(t, withPages(mirror))
	b := browser(t)
	large := bytes.Repeat([]byte("a body of several megabytes, "), 200_000)
	for _, test := range []struct {
		sentence, method, path string
		body                   io.Reader
		want                   string
	}{
		{"a page", "GET", "/", nil, `GET / HTTP/1.1, upgrade "", body `},
		{"a path with escapes and a query", "GET", "/a%2Fb?c=d&e", nil, "GET /a%2Fb?c=d&e HTTP/1.1"},
		{"a path that only begins like an endpoint's", "GET", "/echo/", nil, "GET /echo/ "},
		{"a short body", "POST", "/api", strings.NewReader("abc"), "body 616263"},
		{"a body of several megabytes", "PUT", "/api", bytes.NewReader(large), fmt.Sprintf("body %x", short(large))},
		{"a body in chunks", "POST", "/api", io.MultiReader(bytes.NewReader(large)), fmt.Sprintf("body %x", short(large))},
		{"a body that comes byte by byte", "POST", "/api", iotest.OneByteReader(strings.NewReader("abc")), "body 616263"},
		{"any method", "DELETE", "/api/7", nil, "DELETE /api/7 "},
		{"OPTIONS", "OPTIONS", "/api", nil, "OPTIONS /api "},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			req, _ := http.NewRequest(test.method, s.page(test.path), test.body)
			resp, body := fetch(t, b, req)
			if resp.StatusCode != 200 || !strings.Contains(body, test.want) {
				t.Errorf("%s, %q; want %q", resp.Status, body, test.want)
			}
		})
	}
	if st := s.Stats(); st.PlainHTTP != 1 || st.Accepted != 1 {
		t.Errorf("%d connections were handed over, of %d; want one for all", st.PlainHTTP, st.Accepted)
	}
}

func TestPlainRequestsOfRawClients(t *testing.T) {
	t.Parallel()
	s := start(t, withPages(mirror))
	for _, test := range []struct {
		sentence string
		requests []string
		want     []string
	}{
		{"requests may come one behind the other",
			[]string{requestHead("GET /1 HTTP/1.1") + requestHead("POST /2 HTTP/1.1", "Content-Length: 3") + "abc" + requestHead("GET /3 HTTP/1.1")},
			[]string{"GET /1 ", "POST /2 HTTP/1.1, upgrade \"\", body 616263", "GET /3 "}},
		{"more may come than net/http reads at once",
			[]string{strings.Repeat(requestHead("GET /"+strings.Repeat("a", 1000)+" HTTP/1.1"), 30)},
			slices.Repeat([]string{"GET /aaa"}, 30)},
		{"the connection is kept",
			[]string{requestHead("GET /1 HTTP/1.1"), requestHead("GET /2 HTTP/1.1"), requestHead("GET /3 HTTP/1.1")},
			[]string{"GET /1 ", "GET /2 ", "GET /3 "}},
		{"an empty line may come first", []string{"\r\n" + requestHead("GET /1 HTTP/1.1")}, []string{"GET /1 HTTP/1.1"}},
		{"HTTP/1.0 is understood", []string{requestHead("GET /old HTTP/1.0")}, []string{"GET /old HTTP/1.0"}},
		{"HTTP/1.0 needs no Host", []string{"GET /old HTTP/1.0\r\n\r\n"}, []string{"GET /old HTTP/1.0"}},
		{"HTTP/1.0 may keep the connection", []string{requestHead("GET /1 HTTP/1.0", "Connection: keep-alive"), requestHead("GET /2 HTTP/1.0")},
			[]string{"GET /1 HTTP/1.0", "GET /2 HTTP/1.0"}},
		{"a target may be absolute", []string{requestHead("GET http://example.com/a?b HTTP/1.1")}, []string{"GET http://example.com/a?b "}},
		{"a WebSocket handshake for no endpoint is the handler's", []string{upgradeHead("/chat")}, []string{`GET /chat HTTP/1.1, upgrade "websocket"`}},
		{"an upgrade to something else is too", []string{change(t, "GET /echo", "GET /h2")}, []string{"GET /h2 "}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			for i, r := range test.requests {
				c.write([]byte(r))
				if len(test.requests) == len(test.want) {
					c.wantPage(test.want[i])
				}
			}
			if len(test.requests) < len(test.want) {
				for _, w := range test.want {
					c.wantPage(w)
				}
			}
		})
	}
}

func TestAPlainRequestMayArriveByteByByte(t *testing.T) {
	s := start(t, withPages(mirror))
	c := dialRaw(t, s)
	head := requestHead("POST /slow HTTP/1.1", "Content-Length: 3")
	for i, b := range []byte(head) {
		c.write([]byte{b})
		s.arrived(t, i+1)
	}
	eventually(t, "the connection is handed over", func() bool { return s.Stats().PlainHTTP == 1 })
	for _, b := range []byte("abc") {
		c.write([]byte{b})
	}
	resp := c.wantPage("body 616263")
	if got, want := resp.Header.Get("X-Remote"), c.conn.LocalAddr().String(); got != want {
		t.Errorf("the handler saw the client at %s, want %s", got, want)
	}
}

// The body is sent only when the handler has begun to read, and the client was told to go on.
func TestExpectContinue(t *testing.T) {
	s := start(t, withPages(mirror))
	c := dialRaw(t, s)
	c.write([]byte(requestHead("POST /a HTTP/1.1", "Content-Length: 3", "Expect: 100-continue")))
	if resp := c.response(); resp.StatusCode != http.StatusContinue {
		t.Fatalf("answered %s", resp.Status)
	}
	c.write([]byte("abc"))
	c.wantPage("body 616263")
}

func TestHeadOfAPage(t *testing.T) {
	s := start(t, withPages(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "a page") }))
	c := dialRaw(t, s)
	c.write([]byte(requestHead("HEAD / HTTP/1.1", "Connection: close")))
	answer, err := io.ReadAll(c.r)
	if err != nil || !strings.Contains(string(answer), "Content-Length: 6\r\n") || !strings.HasSuffix(string(answer), "\r\n\r\n") {
		t.Errorf("%q, %v", answer, err)
	}
}

// Some send one request and end their side of the connection at once.
func TestAClientThatHasNoMoreToSayIsAnswered(t *testing.T) {
	s := start(t, withPages(mirror))
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET /last HTTP/1.1")))
	if err := c.tcp().CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.wantPage("GET /last")
	c.wantEOF()
}

// Events are flushed one by one, each when the last has arrived.
func TestAStreamedAnswer(t *testing.T) {
	t.Parallel()
	next := make(chan string)
	s := start(t, withPages(func(w http.ResponseWriter, r *http.Request) {
		for event := range next {
			_, _ = io.WriteString(w, event+"\n")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}
	}))
	go func() { next <- words(0) }()
	resp, err := browser(t).Get(s.page("/events"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 10 {
		line := make([]byte, len(words(i))+1)
		if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != words(i)+"\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if i < 9 {
			next <- words(i + 1)
		}
	}
	close(next)
}

// What is for an endpoint, and what is no HTTP, is answered as if there were no pages.
func TestEndpointsAnswerForThemselves(t *testing.T) {
	s := start(t, withPages(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the handler got %s %s", r.Method, r.RequestURI)
	}))
	for _, test := range refusals(t) {
		if test.why == RefuseNotFound {
			continue
		}
		t.Run(test.sentence, func(t *testing.T) {
			before := s.Stats().Refusals
			c := dialRaw(t, s)
			c.write([]byte(test.head))
			c.wantRefusal(test.status, test.says)
			s.wantRefused(t, before, test.why)
		})
	}
	if n := s.Stats().PlainHTTP; n != 0 {
		t.Errorf("%d connections were handed over", n)
	}
	c := dial(t, s, "/echo")
	c.send("hello")
	c.want("hello")
}

// A handler that blocks until an echo has come back would block for ever if it ran on the loop, of
// which there is one.
func TestASlowHandlerDoesNotDelayTheLoop(t *testing.T) {
	echoed := make(chan struct{})
	serving := make(chan struct{}, 10)
	opts := withPages(func(w http.ResponseWriter, r *http.Request) {
		serving <- struct{}{}
		<-echoed
	})
	opts.Loops = 1
	s := start(t, opts)
	b := browser(t)
	answered := make(chan error, 10)
	for range 10 {
		go func() {
			resp, err := b.Get(s.page("/slow"))
			if err == nil {
				err = resp.Body.Close()
			}
			answered <- err
		}()
	}
	for range 10 {
		<-serving
	}
	c := dial(t, s, "/echo")
	c.send("hello")
	c.want("hello")
	close(echoed)
	for range 10 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
}

// Two thousand requests over a few kept connections, with a broadcast from each, while alice echoes and
// bob listens.
func TestPagesAndSocketsShareOnePort(t *testing.T) {
	const visitors, visits = 4, 500
	var at atomic.Pointer[Server] // requests come in goroutines that were there before the server was known
	opts := withPages(func(w http.ResponseWriter, r *http.Request) {
		if err := at.Load().Broadcast("/broadcast", Text, []byte(r.URL.RawQuery)); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, r.URL.RawQuery)
	})
	opts.Limits.MaxBacklog = -1
	s := start(t, opts)
	at.Store(s)
	alice, bob := dial(t, s, "/echo"), dial(t, s, "/broadcast")
	eventually(t, "both are open", func() bool { return s.Count() == 2 })
	b := browser(t)
	done := make(chan error, visitors)
	for v := range visitors {
		go func() {
			for i := range visits {
				want := fmt.Sprintf("%d-%d", v, i)
				resp, err := b.Get(s.page("/publish?" + want))
				if err != nil {
					done <- err
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || string(body) != want {
					done <- fmt.Errorf("%q, %w", body, errors.Join(err, errors.New("want "+want)))
					return
				}
			}
			done <- nil
		}()
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for range visitors * visits {
			if op, _, err := bob.frame(); op != Text || err != nil {
				t.Errorf("bob got %v, %v", op, err)
				return
			}
		}
	}()
	for i, running := 0, visitors; running > 0; i++ {
		alice.send(words(i))
		alice.want(words(i))
		select {
		case err := <-done:
			running--
			if err != nil {
				t.Error(err)
			}
		default:
		}
	}
	<-heard
	// A browser may open a connection and then use another one that has become free meanwhile, and the new one later.
	if st := s.Stats(); st.PlainHTTP > 2*visitors || st.Accepted > 2*visitors+2 {
		t.Errorf("%d connections were accepted and %d handed over, for %d visitors", st.Accepted, st.PlainHTTP, visitors)
	}
}

// What a handler panics with may come from a client. It is logged, on one line, and does no harm.
func TestAPanicInAPageIsLogged(t *testing.T) {
	s, log := startLogged(t, withPages(func(w http.ResponseWriter, r *http.Request) { panic(r.Header.Get("X-Word")) }))
	bystander := dial(t, s, "/echo")
	req, _ := http.NewRequest("GET", s.page("/"), nil)
	req.Header.Set("X-Word", "alas \x80\u202e")
	if resp, err := browser(t).Do(req); err == nil {
		t.Errorf("answered %s", resp.Status)
		_ = resp.Body.Close()
	}
	eventually(t, "the panic is logged", func() bool { return strings.Contains(log.String(), "panic serving 127.0.0.1:") })
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "alas") && (!strings.HasPrefix(line, "time=") || !strings.Contains(line, "level=ERROR") ||
			!strings.Contains(line, `alas \x80\u202e`) || !strings.Contains(line, "http_serve_test.go")) {
			t.Errorf("logged as %q", line)
		}
	}
	bystander.send("still here")
	bystander.want("still here")
	eventually(t, "the connection is closed", func() bool { return s.Stats().Sockets == 1 })
}

// The limits of a handshake hold for every request, not only for a connection's first.
func TestLimitsOfPlainRequests(t *testing.T) {
	opts := withPages(mirror)
	opts.Limits.HandshakeTimeout = 200 * time.Millisecond
	s := start(t, opts)
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET /1 HTTP/1.1")))
	c.wantPage("GET /1 ")
	time.Sleep(300 * time.Millisecond) // between requests there is more time
	c.write([]byte(requestHead("GET /2 HTTP/1.1")))
	c.wantPage("GET /2 ")
	c.write([]byte("GET /3 HTTP/1.1\r\n")) // and no more
	c.wantEOF()

	c = dialRaw(t, s)
	c.write([]byte(requestHead("GET /1 HTTP/1.1")))
	c.wantPage("GET /1 ")
	c.write([]byte(requestHead("GET /2 HTTP/1.1", "X-Padding: "+strings.Repeat("x", 16<<10))))
	if resp := c.response(); resp.StatusCode != 431 {
		t.Errorf("a head of 16 KiB is answered %s, want 431", resp.Status)
	}
}

// A handler that hijacks a connection gets all bytes that have arrived on it, whether the loop had read them or not.
func TestAHijackedConnectionHasEverything(t *testing.T) {
	all := make(chan string, 1)
	s := start(t, withPages(func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		var got strings.Builder
		_, _ = io.CopyN(&got, buffered, int64(buffered.Reader.Buffered()))
		_, _ = io.Copy(&got, conn)
		all <- got.String()
	}))
	c := dialRaw(t, s)
	before, after := strings.Repeat("read by the loop, ", 1000), "read later"
	c.write([]byte(requestHead("GET /tunnel HTTP/1.1", "Upgrade: x", "Connection: Upgrade") + before))
	if resp := c.response(); resp.StatusCode != 101 {
		t.Fatalf("answered %s", resp.Status)
	}
	c.write([]byte(after))
	_ = c.tcp().CloseWrite()
	if got := <-all; got != before+after {
		t.Errorf("got %d bytes, want %d", len(got), len(before+after))
	}
	c.wantEOF()
	eventually(t, "the socket is closed", func() bool { return s.Stats().Sockets == 0 })
}

// The context of a request ends when its client goes away.
func TestAVisitorLeaves(t *testing.T) {
	serving, left := make(chan struct{}), make(chan struct{})
	s := start(t, withPages(func(w http.ResponseWriter, r *http.Request) {
		close(serving)
		<-r.Context().Done()
		close(left)
	}))
	ctx, leave := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", s.page("/"), nil)
	go func() { <-serving; leave() }()
	if _, err := browser(t).Do(req); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-left
	eventually(t, "the socket is closed", func() bool { return s.Stats().Sockets == 0 })
}

// "/" may be left out of an absolute target.
func TestPageOfAnAbsoluteTargetWithoutPath(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "the page %q", r.URL.RawQuery) })
	s := start(t, Options{HTTP: mux, Endpoints: echoAndBroadcast()})
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET http://example.com HTTP/1.1")))
	c.wantPage(`the page ""`)
	c.write([]byte(requestHead("GET http://example.com?a=b HTTP/1.1")))
	c.wantPage(`the page "a=b"`)
}

package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"carillon/server/internal/admin"
)

func TestInternalOptions(t *testing.T) {
	for _, row := range []struct {
		name   string
		listen string
		in     Internal
		key    string // of the error, if there is one
		words  string
	}{
		{"nothing opens no port", "", Internal{}, "", ""},
		{"off opens no port", "", Internal{Listen: "off"}, "", ""},
		{"loopback needs no token", "", Internal{Listen: "127.0.0.1:8081"}, "", ""},
		{"another loopback needs no token", "", Internal{Listen: "127.1.2.3:8081"}, "", ""},
		{"IPv6 loopback needs no token", "", Internal{Listen: "[::1]:8081"}, "", ""},
		{"localhost needs no token", "", Internal{Listen: "localhost:8081"}, "", ""},
		{"every address needs a token", "", Internal{Listen: "0.0.0.0:8081"}, "internal.listen", "0.0.0.0:8081 is reachable from other machines: expected internal.token"},
		{"no host is every address", "", Internal{Listen: ":8081"}, "internal.listen", "other machines"},
		{"every IPv6 address needs a token", "", Internal{Listen: "[::]:8081"}, "internal.listen", "other machines"},
		{"an address in the network needs a token", "", Internal{Listen: "10.1.2.3:8081"}, "internal.listen", "other machines"},
		{"a name needs a token", "", Internal{Listen: "example.com:8081"}, "internal.listen", "other machines"},
		{"with a token any address will do", "", Internal{Listen: ":8081", Token: "0123456789abcdef"}, "", ""},
		{"a token that can be guessed is none", "", Internal{Token: "x"}, "internal.token", "shorter than 16 characters: generate one, for example with openssl rand -hex 16"},
		{"nor does one character less do", "", Internal{Listen: ":8081", Token: "0123456789abcde"}, "internal.token", "shorter than 16 characters"},
		{"a port alone is no address", "", Internal{Listen: "8081"}, "internal.listen", "host:port, such as 127.0.0.1:8081, unix:/path, or off"},
		{"a port is a number", "", Internal{Listen: "127.0.0.1:http"}, "internal.listen", "no port from 0 to 65535"},
		{"the public address is taken", "127.0.0.1:8081", Internal{Listen: "127.0.0.1:8081"}, "internal.listen", "already the address of listen"},
		{"the public port is taken, on any address", ":8081", Internal{Listen: "127.0.0.1:8081"}, "internal.listen", "already the address of listen"},
		{"two free ports differ", "127.0.0.1:0", Internal{Listen: "127.0.0.1:0"}, "", ""},
		{"what is printed for a token is none", "", Internal{Token: "(set)"}, "internal.token", "CARILLON_INTERNAL_TOKEN"},
	} {
		t.Run(row.name, func(t *testing.T) {
			o, err := Options{Listen: row.listen, Internal: row.in}.Resolve()
			switch {
			case row.key == "" && err != nil:
				t.Error(err)
			case row.key != "" && (err == nil || !strings.HasPrefix(err.Error(), row.key+": ") || !strings.Contains(err.Error(), row.words) || strings.Contains(err.Error(), "\n")):
				t.Errorf("got %v, want %s with %q", err, row.key, row.words)
			case row.in.Listen == "" && o.Internal.Listen != "off":
				t.Errorf("it listens on %q", o.Internal.Listen)
			}
		})
	}
}

// Only a client that has the token is let in, whatever it asks for.
func TestInternalToken(t *testing.T) {
	s := start(t, Options{Internal: Internal{Listen: "127.0.0.1:0", Token: "open-sesame-to-all"}, Endpoints: echoAndBroadcast()})
	for _, row := range []struct {
		name, header string
		status       int
	}{
		{"the token", "Authorization: Bearer open-sesame-to-all", 200},
		{"the scheme in other letters", "Authorization: bearer open-sesame-to-all", 200},
		{"the token with a name of any host", "Host: example.com", 401},
		{"no token", "X: y", 401},
		{"an empty token", "Authorization: Bearer ", 401},
		{"half of the token", "Authorization: Bearer open", 401},
		{"more than the token", "Authorization: Bearer open-sesame-to-all!", 401},
		{"another scheme", "Authorization: Basic open-sesame-to-all", 401},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, path := range []string{"/v1/topics", "/v1/openapi.json"} {
				a := call(t, s, "GET", path, "", row.header).is(t, row.status)
				if row.status == 401 && a.isProblem(t, 401, "unauthorized", "").header.Get("WWW-Authenticate") != "Bearer" {
					t.Error("without WWW-Authenticate")
				}
			}
		})
	}
	call(t, s, "GET", "/nowhere", "").isProblem(t, 401, "unauthorized", "")
	call(t, s, "GET", "/v1/topics", "", "Host: example.com", "Authorization: Bearer open-sesame-to-all").is(t, 200)
}

// A page from elsewhere makes a browser on this machine send requests to the interface. They are refused
// where no token does that.
func TestInternalForeignPages(t *testing.T) {
	s := withAPI(t, Options{})
	const at = "/v1/broadcast"
	call(t, s, "POST", at, "x", "Sec-Fetch-Site: cross-site").isProblem(t, 403, "foreign-origin", "")
	call(t, s, "POST", at, "x", "Origin: https://evil.example").isProblem(t, 403, "foreign-origin", "")
	call(t, s, "POST", at, "x", "Origin: null").isProblem(t, 403, "foreign-origin", "")
	call(t, s, "POST", at, "x", "Host: evil.example").isProblem(t, 421, "misdirected", `"evil.example"`)
	call(t, s, "GET", "/v1/connections", "", "Host: evil.example:8081").isProblem(t, 421, "misdirected", "token")
	for _, host := range []string{"localhost:8081", "LOCALHOST", "127.0.0.1", "127.9.9.9:1", "[::1]:8081", "[::1]"} {
		call(t, s, "POST", at, "x", "Host: "+host).is(t, 200)
	}
	call(t, s, "POST", at, "x", "Sec-Fetch-Site: same-origin").is(t, 200)
}

// The port of the internal interface is taken: the server does not start, and frees its public port.
func TestInternalPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(Options{Listen: "127.0.0.1:0", Internal: Internal{Listen: l.Addr().String()}, Endpoints: echoAndBroadcast()})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	if want := "internal.listen: listen tcp " + l.Addr().String() + ": bind: address already in use"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	select {
	case <-s.Started():
		t.Error("it says that it has started")
	default:
	}
	public, err := net.Listen("tcp", s.engine.Listeners[0].Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = public.Close()
}

// It answers from the moment when the server has started, and has no address when it is off.
func TestInternalAddr(t *testing.T) {
	s := withAPI(t, Options{})
	if a := s.InternalAddr(); a == nil || a.String() == s.Addr().String() {
		t.Errorf("%v", a)
	}
	call(t, s, "GET", "/v1/openapi.json", "").is(t, 200)
	if a := start(t, Options{Endpoints: echoAndBroadcast()}).InternalAddr(); a != nil {
		t.Errorf("off, but at %v", a)
	}
	idle, err := New(Options{Internal: Internal{Listen: "127.0.0.1:0"}})
	if err != nil || idle.InternalAddr() != nil {
		t.Errorf("not started, but at %v, %v", idle.InternalAddr(), err)
	}
}

// A service has sent half of a message when the server is told to end. While alice is there the interface answers all
// requests. Then no new connection is accepted, and idle ones are not waited for; the service sends the rest and is
// answered.
func TestInternalShutdown(t *testing.T) {
	s := withAPI(t, Options{Drain: Drain{Duration: -1, Deadline: patience}, Limits: Limits{CloseTimeout: patience}})
	alice := dial(t, s, "/ws?topic=a")
	eventually(t, "she is subscribed", func() bool { return len(s.Subscribers("a")) == 1 })
	quiet := dialInternal(t, s)
	quiet.write([]byte("GET /v1/topics HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	if _, err := io.ReadAll(quiet.response().Body); err != nil {
		t.Fatal(err)
	}
	c := dialInternal(t, s)
	c.write([]byte("POST /v1/topics/b/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhello"))
	eventually(t, "its request runs", func() bool { return s.internal.open.Load() == 2 })
	time.Sleep(20 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s.Shutdown(ctx)
	eventually(t, "it says so", func() bool {
		var st admin.Drain
		call(t, s, "GET", "/v1/drain", "").is(t, 200).into(t, &st)
		return State(st.State) == StateDraining && st.Remaining == 0 // alice was asked to go
	})
	alice.wantClose(1001, "shutting down")
	_ = alice.conn.Close()
	quiet.wantEOF()
	if conn, err := net.Dial("tcp", s.InternalAddr().String()); err == nil {
		_ = conn.Close()
		t.Error("a new connection is accepted")
	}
	c.write([]byte("world"))
	resp := c.response()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"offset":1`) {
		t.Errorf("%s %s, %v", resp.Status, body, err)
	}
	c.wantEOF()
}

// A request that never ends does not keep the server from ending.
func TestInternalShutdownIsBounded(t *testing.T) {
	s := withAPI(t, Options{Drain: Drain{Duration: -1, Deadline: 100 * time.Millisecond}})
	c := dialInternal(t, s)
	c.write([]byte("POST /v1/topics/b/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhello"))
	eventually(t, "its request runs", func() bool { return s.internal.open.Load() == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	s.Shutdown(ctx)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("it is answered")
	}
}

// The server ends because of an error: its internal port is free.
func TestInternalEndsWithTheServer(t *testing.T) {
	s, err := New(Options{Listen: "127.0.0.1:0", Internal: Internal{Listen: freeAddress(t)}, Endpoints: echoAndBroadcast()})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	<-s.Started()
	s.engine.Fail(errors.New("broken"))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("it ends with %v", err)
	}
	l, err := net.Listen("tcp", s.InternalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// No more is read of a message than it may have, whether or not it says how long it is.
func TestInternalReadsNoMoreThanIsAllowed(t *testing.T) {
	s := withAPI(t, Options{Limits: Limits{MaxMessage: 1000}})
	for _, length := range []int64{-1, 1 << 30} {
		for _, path := range []string{"/v1/topics/a/messages", "/v1/broadcast"} {
			body := &endless{}
			w := newRecorder()
			r, _ := http.NewRequest("POST", "http://localhost"+path, body)
			r.ContentLength = length
			s.API().ServeHTTP(w, r)
			answer{w.status, w.header, w.body.Bytes()}.isProblem(t, 413, "too-large", "limits.max_message")
			if body.read > 1001 {
				t.Errorf("%s, length %d: %d bytes are read", path, length, body.read)
			}
		}
	}
}

// endless is a body that ends only because no test should run for ever.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	if e.read += len(b); e.read > 1<<24 {
		return 0, io.EOF
	}
	return len(b), nil
}

// A body that does not arrive is answered; one that ends early is too, if the client can still read.
func TestInternalSlowBody(t *testing.T) {
	s := withAPI(t, Options{})
	h := s.API()
	for _, row := range []struct {
		err     error
		status  int
		problem string
	}{
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, 408, "request-timeout"},
		{os.ErrDeadlineExceeded, 408, "request-timeout"},
		{io.ErrUnexpectedEOF, 400, "bad-request"},
	} {
		for _, path := range []string{"/v1/topics/a/messages", "/v1/broadcast"} {
			w := newRecorder()
			r, _ := http.NewRequest("POST", "http://localhost"+path, io.NopCloser(io.MultiReader(strings.NewReader("half"), broken{row.err})))
			h.ServeHTTP(w, r)
			answer{w.status, w.header, w.body.Bytes()}.isProblem(t, row.status, row.problem, "")
		}
		w := newRecorder()
		r, _ := http.NewRequest("POST", "http://localhost/v1/messages", io.MultiReader(strings.NewReader(`{"topic":"b","data":1}`+"\n{"), broken{row.err}))
		r.Header.Set("Content-Type", "application/x-ndjson")
		h.ServeHTTP(w, r)
		if got := w.body.String(); w.status != 200 || !strings.Contains(got, `"offset":`) || !strings.Contains(got, "/problems/"+row.problem) {
			t.Errorf("%d %s", w.status, got)
		}
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// Of more connections than the interface may have, the one goes that has carried no request for longest, and none
// that carries one.
func TestInternalConnections(t *testing.T) {
	s := withAPI(t, Options{})
	most := s.opts().Internal.most()
	if s.internal.most != int64(most) || most < 4 || most > maxInternalConns {
		t.Fatalf("%d connections", most)
	}
	var all []*client
	for range most {
		all = append(all, dialInternal(t, s))
	}
	eventually(t, "all are there", func() bool { return s.internal.open.Load() == int64(most) })
	extra := dialInternal(t, s)
	extra.write([]byte("GET /v1/topics HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	if resp := extra.response(); resp.StatusCode != 200 {
		t.Errorf("the newcomer is answered %s", resp.Status)
	}
	all[0].wantEOF()
	eventually(t, "one has gone", func() bool { return s.internal.open.Load() == int64(most) })
	for _, c := range append(all, extra) {
		_ = c.conn.Close()
	}
	eventually(t, "they are gone", func() bool { return s.internal.open.Load() == 0 })
	call(t, s, "GET", "/v1/topics", "").is(t, 200)
}

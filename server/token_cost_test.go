package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/internal/testenv"
	"carillon/server/internal/fair"
)

// costly is an endpoint whose tokens are checked with two keys, as they name neither.
func (i *issuer) costly() Endpoint {
	ep := i.endpoint("ES256")
	ep.Auth.JWT.KeyFile = i.File("ES256", "ES256")
	return ep
}

// holdTokens has tokens wait that take long to check, until it is called off.
func holdTokens(s *Server) (release func()) {
	hold := make(chan struct{})
	for range s.engine.TokenChecks.Parallel {
		s.engine.TokenChecks.Add(new(fair.Usage), 0, 0, &fair.Job{Do: func() { <-hold }})
	}
	return func() { close(hold) }
}

// pendingTokens is how many tokens wait.
func pendingTokens(s *Server) int { return s.engine.TokenChecks.Waiting() }

// Tokens that take long to check are not checked on the loop: it serves bob while alice, mallory, whose token is not
// good, and an event stream wait. Then each gets the answer, and alice's first message, which came early, its reply.
func TestCostlyTokensAreCheckedElsewhere(t *testing.T) {
	i := newIssuer(t)
	s := start(t, Options{Loops: 1, Endpoints: append(echoAndBroadcast(), i.costly())})
	release := holdTokens(s)
	token := i.Token("ES256", alice())
	a, m, e := dialRaw(t, s), dialRaw(t, s), dialRaw(t, s)
	a.write(append([]byte(upgradeHead("/ws?topic=a", speakJSON, withToken(token))), text(`{"id":1,"ping":{}}`)...))
	m.write([]byte(upgradeHead("/ws", withToken(newIssuer(t).Token("ES256", alice())))))
	e.write([]byte(requestHead("GET /ws?topic=a HTTP/1.1", "Accept: text/event-stream", withToken(token))))
	eventually(t, "their tokens wait", func() bool { return pendingTokens(s) == 3 })
	bob := dial(t, s, "/echo")
	bob.send("hello")
	bob.want("hello")
	if s.Count() != 1 {
		t.Errorf("%d are open", s.Count())
	}
	release()
	if resp := a.response(); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	if got := a.said(); got.text == "" || !strings.Contains(got.text, "subscribed") {
		t.Errorf("alice got %s", got.text)
	}
	if got := a.said(); got.text != `{"id":1,"pong":{}}` {
		t.Errorf("alice got %s", got.text)
	}
	m.wantRefusal(http.StatusUnauthorized, "the signature of the token is invalid")
	if resp := e.response(); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if n := s.Stats().Refusals[RefuseTokenSignature]; n != 1 {
		t.Errorf("%d refusals count", n)
	}
}

// A hook and the application, which may take its time, too, decide after the token.
func TestCostlyTokenBeforeHookAndDefer(t *testing.T) {
	i := newIssuer(t)
	asked := make(chan string, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- "hook"
		_, _ = w.Write([]byte(`{"allow":true}`))
	}))
	defer hook.Close()
	ep := i.costly()
	ep.Auth.Hook.URL = hook.URL
	ep.Handler.Upgrade = func(r *Request) error {
		asked <- "upgrade"
		r.Defer(func(_ context.Context, r *Request) error {
			asked <- "deferred for " + r.token.Subject
			return nil
		})
		return nil
	}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	c := dial(t, s, "/ws?topic=a", speakJSON, withToken(i.Token("ES256", alice())))
	c.said()
	for _, want := range []string{"hook", "upgrade", "deferred for alice"} {
		if got := <-asked; got != want {
			t.Errorf("%s was asked, want %s", got, want)
		}
	}
	refused(t, s, 401, RefuseTokenExpired, "/ws", withToken(i.Token("ES256", jwt.MapClaims{"exp": in(-time.Minute)})))
	if len(asked) > 0 {
		t.Errorf("%s was asked about an expired token", <-asked)
	}
}

// A client that waits for its token to be checked has limits.handshake_timeout, and may leave. Those that come when too
// many wait are told so.
func TestCostlyTokensThatWaitTooLong(t *testing.T) {
	t.Parallel() // most of it is waiting
	i := newIssuer(t)
	limits, ping := off()
	limits.HandshakeTimeout = time.Second
	s := start(t, Options{Loops: 1, Limits: limits, Ping: ping, Endpoints: []Endpoint{i.costly()}})
	release := holdTokens(s)
	head := []byte(upgradeHead("/ws", withToken(i.Token("ES256", alice()))))
	late, gone := dialRaw(t, s), dialRaw(t, s)
	late.write(head)
	gone.write(head)
	eventually(t, "two wait", func() bool { return pendingTokens(s) == 2 })
	_ = gone.conn.Close()
	late.wantRefusal(http.StatusServiceUnavailable, "not decided in time")
	s.engine.TokenChecks.Add(new(fair.Usage), 0, 0, &fair.Job{Size: fair.MaxQueued, Do: func() {}})
	tooMany := dialRaw(t, s)
	tooMany.write(head)
	tooMany.wantRefusal(http.StatusServiceUnavailable, "not decided in time")
	release()
	eventually(t, "none wait", func() bool { return pendingTokens(s) == 0 })
	if n := s.Stats().Refusals; n[RefuseLost] != 1 || n[RefuseUndecided] != 2 {
		t.Error(n)
	}
}

// A client renews its token, and what it asks for behind that waits, but not what others ask for. It is renewed before
// new connections are decided about that came in the same moment.
func TestCostlyRefresh(t *testing.T) {
	i := newIssuer(t)
	s, _ := startChanged(t, Options{Loops: 1, Endpoints: append(echoAndBroadcast(), i.costly())}, func(s *Server) {
		s.engine.TokenChecks.Parallel = 1
	})
	c := dial(t, s, "/ws?topic=a", speakJSON, withToken(i.Token("ES256", alice())))
	c.said()
	release := holdTokens(s)
	expires := in(2 * time.Hour)
	newcomer := dialRaw(t, s)
	newcomer.write([]byte(upgradeHead("/ws", withToken(i.Token("ES256", alice())))))
	eventually(t, "the newcomer waits", func() bool { return pendingTokens(s) == 1 })
	c.send(`{"id":1,"refresh":{"token":"` + i.Token("ES256", jwt.MapClaims{"sub": "alice", "exp": expires}) + `"}}`)
	c.send(`{"id":2,"ping":{}}`)
	eventually(t, "both wait", func() bool { return pendingTokens(s) == 2 })
	behind := make(chan int, 1)
	s.engine.TokenChecks.Add(new(fair.Usage), s.engine.Uptime(), 0, &fair.Job{Do: func() { behind <- s.engine.TokenChecks.Waiting() }})
	bob := dial(t, s, "/echo")
	bob.send("hello")
	bob.want("hello")
	release()
	if n := <-behind; n != 1 {
		t.Errorf("%d wait behind the open connection's, and should be the newcomer's", n)
	}
	for _, want := range []string{fmt.Sprintf(`{"id":1,"refreshed":{"expires":%d}}`, expires*1000), `{"id":2,"pong":{}}`} {
		if got := c.said(); got.text != want {
			t.Errorf("got %s, want %s", got.text, want)
		}
	}
	if resp := newcomer.response(); resp.StatusCode != 101 {
		t.Error(resp.Status)
	}
	time.Sleep(time.Second) // a token sooner than that is refused unseen
	c.send(`{"id":3,"refresh":{"token":"` + newIssuer(t).Token("ES256", alice()) + `"}}`)
	if got := c.said(); errorCodeOf(got) != "invalid_token" {
		t.Errorf("a wrong token: %s", got.text)
	}
}

// How long an echo waits while clients come with tokens that are dear to check and wrong, as fast as they can.
func BenchmarkEchoBesideCostlyTokens(b *testing.B) {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "keys")
	if err := os.WriteFile(file, bytes.Repeat(testenv.PublicPEM(b, key), 8), 0o600); err != nil {
		b.Fatal(err)
	}
	ep := topicsEndpoint()
	ep.Auth.JWT = JWT{Algorithms: []string{"RS256"}, KeyFile: file}
	s := start(b, Options{Loops: 1, Endpoints: append(echoAndBroadcast(), ep)})
	head := []byte(upgradeHead("/ws", withToken(newIssuer(b).Token("RS256", alice()))))
	var attack sync.WaitGroup
	over := make(chan struct{})
	for range 16 {
		attack.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if conn, err := net.Dial("tcp", s.Addr().String()); err == nil {
					_, _ = conn.Write(head)
					_, _ = io.Copy(io.Discard, conn)
					_ = conn.Close()
				}
			}
		})
	}
	c := dial(b, s, "/echo")
	var times []time.Duration
	for b.Loop() {
		time.Sleep(time.Millisecond)
		sent := time.Now()
		c.send("hello")
		c.want("hello")
		times = append(times, time.Since(sent))
	}
	b.StopTimer()
	close(over)
	attack.Wait()
	slices.Sort(times)
	b.ReportMetric(times[len(times)/2].Seconds()*1e3, "p50-ms")
	b.ReportMetric(times[len(times)*99/100].Seconds()*1e3, "p99-ms")
	b.ReportMetric(times[len(times)-1].Seconds()*1e3, "max-ms")
	b.ReportMetric(float64(s.Stats().Refusals[RefuseTokenSignature])/b.Elapsed().Seconds(), "refused/s")
}

package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/auth"
)

// jwksServer publishes keys by name.
type jwksServer struct {
	*httptest.Server
	mu      sync.Mutex
	keys    map[string]any // private ones
	fetches atomic.Int64
	broken  atomic.Bool
}

func newJWKSServer(t testing.TB) *jwksServer {
	s := &jwksServer{keys: map[string]any{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fetches.Add(1)
		if s.broken.Load() {
			http.Error(w, "broken", 500)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		list := []map[string]string{{"kty": "oct", "k": "c2VjcmV0", "kid": "never"}}
		for id, key := range s.keys {
			k := testenv.PublicJWK(key)
			k["kid"], k["use"] = id, "sig"
			list = append(list, k)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": list})
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *jwksServer) set(id string, key any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = map[string]any{id: key}
}

// startFetching starts a server that fetches keys at other times than a real one.
func startFetching(t testing.TB, interval, pause time.Duration, opts Options) (*Server, *logBuffer) {
	t.Helper()
	return startChanged(t, opts, func(s *Server) { s.keyFetches = auth.FetchTimes{Interval: interval, Pause: pause} })
}

func jwksEndpoint(url string) Endpoint {
	ep := topicsEndpoint()
	ep.Auth.JWT = JWT{Algorithms: []string{"RS256", "ES256", "EdDSA"}, JWKSURL: url, Leeway: -1}
	return ep
}

// The issuer changes its key again and again while clients connect. Each gets in, at the latest with its
// second try or its third.
func TestJWKSRotation(t *testing.T) {
	published := newJWKSServer(t)
	i := newIssuer(t)
	published.set("RS256-0", i.RSA)
	s, _ := startFetching(t, time.Hour, time.Millisecond, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL)}})
	dial(t, s, "/ws", withToken(i.Token("RS256", alice(), "kid", "RS256-0")))
	for round, algorithm := range []string{"ES256", "EdDSA", "RS256", "ES256"} {
		i := newIssuer(t)
		id := fmt.Sprintf("%s-%d", algorithm, round+1)
		published.set(id, i.Private(algorithm))
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				token := withToken(i.Token(algorithm, alice(), "kid", id))
				for try := 0; ; try++ {
					c := dialRaw(t, s)
					c.write([]byte(upgradeHead("/ws", token)))
					resp := c.response()
					if resp.StatusCode == 101 {
						return
					}
					if resp.StatusCode != 503 && resp.StatusCode != 401 || try > 200 {
						t.Errorf("%s, try %d: %s", id, try, resp.Status)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		clients.Wait()
		if t.Failed() {
			return
		}
	}
	if refusals := s.Stats().Refusals; refusals[RefuseTokenKey] == 0 || refusals[RefuseTokenSignature] != 0 {
		t.Error(refusals)
	}
}

// Mallory names keys that do not exist, many times. The issuer is asked once.
func TestUnknownKeysDoNotFloodTheIssuer(t *testing.T) {
	const pause = 2 * time.Second
	published := newJWKSServer(t)
	i := newIssuer(t)
	published.set("1", i.ECDSA)
	s, _ := startFetching(t, time.Hour, pause, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL)}})
	if n := published.fetches.Load(); n != 1 {
		t.Fatalf("%d fetches at the start", n)
	}
	refused(t, s, 401, RefuseTokenKey, "/ws", withToken(i.Token("ES256", alice(), "kid", "2"))) // fetched just now
	time.Sleep(pause + 100*time.Millisecond)
	resp := refused(t, s, 503, RefuseTokenKey, "/ws", withToken(i.Token("ES256", alice(), "kid", "3")))
	if resp.Header.Get("Retry-After") != "1" {
		t.Error(resp.Header)
	}
	begin := time.Now()
	for n := range 50 {
		c := dialRaw(t, s)
		c.write([]byte(upgradeHead("/ws", withToken(i.Token("ES256", alice(), "kid", fmt.Sprint("x", n))))))
		c.response()
	}
	eventually(t, "the issuer is asked", func() bool { return published.fetches.Load() > 1 })
	most := 3 + int64(time.Since(begin)/pause)
	if n := published.fetches.Load(); n > most {
		t.Errorf("%d fetches", n)
	}
	dial(t, s, "/ws", withToken(i.Token("ES256", alice(), "kid", "1")))
	dial(t, s, "/ws", withToken(i.Token("ES256", alice()))) // it does not name its key, and there is one that fits
}

// The issuer is away when the server starts: it starts, refuses politely, and serves as soon as it can. When
// the issuer is away later, its keys are still good.
func TestIssuerIsAway(t *testing.T) {
	t.Parallel()
	published := newJWKSServer(t)
	published.broken.Store(true)
	i := newIssuer(t)
	published.set("1", i.Ed25519)
	s, log := startFetching(t, 10*time.Millisecond, time.Millisecond, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL), {Path: "/echo", Mode: ModeEcho}}})
	token := withToken(i.Token("EdDSA", alice(), "kid", "1"))
	refused(t, s, 503, RefuseNoKeys, "/ws", token)
	dial(t, s, "/echo")
	if !strings.Contains(log.String(), "could not read token keys") {
		t.Error("it is not logged")
	}
	published.broken.Store(false)
	eventually(t, "there are keys", func() bool { return status(t, s, "/ws", token) == 101 })
	published.broken.Store(true)
	n := published.fetches.Load()
	eventually(t, "it was asked again", func() bool { return published.fetches.Load() > n+1 })
	dial(t, s, "/ws", token)
}

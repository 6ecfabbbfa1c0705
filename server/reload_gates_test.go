package server

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// gateStories are about who may come in at /ws: the status before and after the change of keys below auth.
var gateStories = []struct {
	keys   string
	before func(*gateWorld) Auth
	change func(*gateWorld, *Auth)
	header func(*gateWorld) string
	status [2]int
}{
	{"jwt.algorithms jwt.key_file", withSecret, func(w *gateWorld, a *Auth) { a.JWT.Algorithms, a.JWT.KeyFile = []string{"ES256"}, w.File("ES256") }, secretToken, [2]int{101, 401}},
	{"jwt.key_file", withSecret, func(w *gateWorld, a *Auth) { a.JWT.KeyFile = newIssuer(w.t).File("HS256") }, secretToken, [2]int{101, 401}},
	{"jwt.algorithms", func(w *gateWorld) Auth {
		return Auth{JWT: JWT{Algorithms: []string{"RS256", "ES256"}, JWKSURL: w.published.URL}}
	}, func(_ *gateWorld, a *Auth) { a.JWT.Algorithms = []string{"RS256"} },
		func(w *gateWorld) string { return withToken(w.Token("ES256", alice(), "kid", "k")) }, [2]int{101, 401}},
	{"jwt.jwks_url", func(w *gateWorld) Auth {
		return Auth{JWT: JWT{Algorithms: []string{"ES256"}, JWKSURL: w.published.URL}}
	}, func(w *gateWorld, a *Auth) {
		other := newJWKSServer(w.t)
		other.set("other", newIssuer(w.t).ECDSA)
		a.JWT.JWKSURL = other.URL
	}, func(w *gateWorld) string { return withToken(w.Token("ES256", alice(), "kid", "k")) }, [2]int{101, 401}},
	{"jwt.issuer", withSecret, func(_ *gateWorld, a *Auth) { a.JWT.Issuer = "us" }, secretToken, [2]int{101, 401}},
	{"jwt.audience", withSecret, func(_ *gateWorld, a *Auth) { a.JWT.Audience = "us" }, secretToken, [2]int{101, 401}},
	{"jwt.leeway", withSecret, func(_ *gateWorld, a *Auth) { a.JWT.Leeway = time.Hour },
		func(w *gateWorld) string { return withToken(w.Token("HS256", jwt.MapClaims{"exp": in(-time.Minute)})) }, [2]int{401, 101}},
	{"jwt.from", withSecret, func(_ *gateWorld, a *Auth) { a.JWT.From = []string{"query"} }, secretToken, [2]int{101, 401}},
	{"jwt.optional", withSecret, func(_ *gateWorld, a *Auth) { a.JWT.Optional = true }, func(*gateWorld) string { return "X-Nothing: here" }, [2]int{401, 101}},
	{"hook.url", withHook, func(w *gateWorld, a *Auth) { a.Hook.URL = w.hook.URL + "/open" }, func(*gateWorld) string { return "X-Nothing: here" }, [2]int{403, 101}},
	{"hook.headers", withHook, func(_ *gateWorld, a *Auth) { a.Hook.Headers = []string{"X-Pass"} }, func(*gateWorld) string { return "X-Pass: yes" }, [2]int{403, 101}},
	{"hook.timeout", withHook, func(_ *gateWorld, a *Auth) { a.Hook.Timeout = time.Millisecond }, func(*gateWorld) string { return "Cookie: slow" }, [2]int{101, 503}},
	{"hook.max_in_flight", withHook, func(_ *gateWorld, a *Auth) { a.Hook.MaxInFlight = 1 }, func(w *gateWorld) string {
		if w.asked.Add(1); w.reloaded { // the hook is already being asked about a client
			w.stays = dialRaw(w.t, w.s)
			w.stays.write([]byte(upgradeHead("/ws", "Cookie: stays")))
			eventually(w.t, "the only slot is taken", func() bool { return w.s.settings().endpoints[0].auth.PendingHookRequests() == 1 })
		}
		return "Cookie: slow"
	}, [2]int{101, 503}},
}

type gateWorld struct {
	*issuer
	published *jwksServer
	hook      *httptest.Server
	s         *Server
	asked     counter
	reloaded  bool
	stays     *client
}

type counter struct{ n int }

func (c *counter) Add(n int) int { c.n += n; return c.n }

func withSecret(w *gateWorld) Auth {
	return Auth{JWT: JWT{Algorithms: []string{"HS256"}, KeyFile: w.File("HS256"), Leeway: -1}}
}

func withHook(w *gateWorld) Auth { return Auth{Hook: Hook{URL: w.hook.URL, Timeout: patience}} }

func secretToken(w *gateWorld) string { return withToken(w.Token("HS256", alice())) }

func TestReloadOfGates(t *testing.T) {
	t.Parallel()
	leave := make(chan struct{})
	answers := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, _ := io.ReadAll(r.Body)
		switch {
		case strings.Contains(string(q), "stays"):
			<-leave
		case strings.Contains(string(q), "slow"):
			time.Sleep(200 * time.Millisecond)
		}
		fmt.Fprintf(w, `{"allow":%v}`, r.URL.Path == "/open" || strings.Contains(string(q), "yes") || strings.Contains(string(q), "slow"))
	})
	for _, story := range gateStories {
		t.Run(story.keys, func(t *testing.T) {
			w := &gateWorld{issuer: newIssuer(t), published: newJWKSServer(t), hook: httptest.NewServer(answers)}
			w.published.set("k", w.ECDSA)
			t.Cleanup(w.hook.Close)
			ep := topicsEndpoint()
			ep.Auth = story.before(w)
			w.s = start(t, Options{Endpoints: []Endpoint{ep}})
			wantStatus(t, w.s, story.status[0], "/ws", story.header(w))
			var keys []string
			for key := range strings.FieldsSeq(story.keys) {
				keys = append(keys, "endpoints[0].auth."+key)
			}
			reloaded(t, w.s, strings.Join(keys, " "), func(o *Options) { story.change(w, &o.Endpoints[0].Auth) })
			w.reloaded = true
			wantStatus(t, w.s, story.status[1], "/ws", story.header(w))
			if w.stays != nil {
				close(leave)
				if code := w.stays.response().StatusCode; code != 403 {
					t.Errorf("the client that was asked about is answered %d", code)
				}
			}
		})
	}
}

// The hook that is asked no more still decides about those of whom it was asked.
func TestReloadLeavesOpenQuestions(t *testing.T) {
	answer := make(chan struct{})
	ep := hookEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		<-answer
		fmt.Fprint(w, `{"allow":true,"subject":"alice"}`)
	})
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	waits := dialRaw(t, s)
	waits.write([]byte(upgradeHead("/ws")))
	eventually(t, "the hook is asked", func() bool { return s.settings().endpoints[0].auth.PendingHookRequests() == 1 })
	reloaded(t, s, "endpoints[0].auth.hook.url endpoints[0].auth.hook.timeout", func(o *Options) { o.Endpoints[0].Auth = Auth{} })
	wantStatus(t, s, 101, "/ws")
	close(answer)
	if resp := waits.response(); resp.StatusCode != 101 {
		t.Error(resp.Status)
	}
	eventually(t, "alice is known", func() bool {
		for c := range s.Conns() {
			if c.Subject() == "alice" {
				return true
			}
		}
		return false
	})
}

// Each set of keys is looked after by one goroutine for as long as it is in force, and no longer.
func TestReloadedKeysAreWatched(t *testing.T) {
	t.Parallel()
	i, one, two := newIssuer(t), newJWKSServer(t), newJWKSServer(t)
	one.set("a", i.ECDSA)
	two.set("b", i.Ed25519)
	s, _ := startFetching(t, 5*time.Millisecond, time.Hour, Options{Endpoints: []Endpoint{jwksEndpoint(one.URL), {Path: "/echo", Mode: ModeEcho}}})
	tokenOne, tokenTwo := withToken(i.Token("ES256", alice(), "kid", "a")), withToken(i.Token("EdDSA", alice(), "kid", "b"))
	bob := dial(t, s, "/ws", speakJSON, tokenOne)
	reloaded(t, s, "endpoints[0].auth.jwt.jwks_url", func(o *Options) { o.Endpoints[0].Auth.JWT.JWKSURL = two.URL })
	wantStatus(t, s, 101, "/ws", tokenTwo)
	if bob.ask(`{"ping":{},"id":1}`).Pong == nil {
		t.Error("bob, who came with the old key, is gone")
	}
	eventually(t, "the old keys are looked after no more", func() bool {
		was, other := one.fetches.Load(), two.fetches.Load()
		eventually(t, "the new ones are", func() bool { return two.fetches.Load() > other+5 })
		return one.fetches.Load() == was
	})
	reloaded(t, s, "endpoints[0].auth.jwt.algorithms endpoints[0].auth.jwt.jwks_url endpoints[0].auth.jwt.leeway", func(o *Options) { o.Endpoints[0].Auth = Auth{} })
	wantStatus(t, s, 101, "/ws")
	eventually(t, "the keys are not fetched any more", func() bool {
		was := two.fetches.Load()
		time.Sleep(50 * time.Millisecond)
		return two.fetches.Load() == was
	})
	reloaded(t, s, "endpoints[1].auth.jwt.algorithms endpoints[1].auth.jwt.key_file", func(o *Options) {
		o.Endpoints[1].Auth.JWT = JWT{Algorithms: []string{"HS256"}, KeyFile: i.File("HS256")}
	})
	wantStatus(t, s, 101, "/echo", withToken(i.Token("HS256", alice())))
	file := s.Options().Endpoints[1].Auth.JWT.KeyFile
	i.Secret = []byte(strings.Repeat("another", 8))
	i.Write(file, "HS256")
	eventually(t, "the file is read again", func() bool {
		return status(t, s, "/echo", withToken(i.Token("HS256", jwt.MapClaims{}))) == 101
	})
}

// Connections to a hook that is asked no more are not kept.
func TestReloadLeavesTheOldHook(t *testing.T) {
	var open atomic.Int64
	hook := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"allow":true}`) }))
	hook.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	hook.Start()
	t.Cleanup(hook.Close)
	ep := topicsEndpoint()
	ep.Auth.Hook.URL = hook.URL
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	wantStatus(t, s, 101, "/ws")
	if open.Load() != 1 {
		t.Errorf("%d connections to the hook", open.Load())
	}
	reloaded(t, s, "endpoints[0].topics.patterns", func(o *Options) { o.Endpoints[0].Topics.Patterns = false })
	wantStatus(t, s, 101, "/ws")
	if open.Load() != 1 {
		t.Errorf("a change of something else has made it %d", open.Load())
	}
	reloaded(t, s, "endpoints[0].auth.hook.url", func(o *Options) { o.Endpoints[0].Auth.Hook.URL = "" })
	eventually(t, "none is open", func() bool { return open.Load() == 0 })
}

// What a token file says stays out of errors and changes alike.
func TestReloadTellsNoSecrets(t *testing.T) {
	s := withAPI(t, Options{Internal: Internal{Token: "hush-hush-hush-hush"}})
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("short-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := changed(s, func(o *Options) {
		o.Internal.Token = "another-long-secret"
		o.Endpoints[0].Auth.JWT = JWT{Algorithms: []string{"HS256"}, KeyFile: file}
	})
	if err == nil || strings.Contains(err.Error(), "-secret") || strings.Contains(err.Error(), "hush-hush-hush-hush") {
		t.Error(err)
	}
	ch, err := changed(s, func(o *Options) { o.Internal.Token = "another-long-secret" })
	if err != nil || strings.Join(ch.Applied, " ") != "internal.token" {
		t.Errorf("%+v, %v", ch, err)
	}
	call(t, s, "GET", "/v1/topics", "", "Authorization: Bearer another-long-secret").is(t, 200)
	call(t, s, "GET", "/v1/topics", "", "Authorization: Bearer hush-hush-hush-hush").is(t, 401)
}

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

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
)

func hookEndpoint(t testing.TB, answer http.HandlerFunc) Endpoint {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	ep := topicsEndpoint()
	ep.Auth.Hook = Hook{URL: s.URL + "/connect", Timeout: patience}
	return ep
}

// hookRequest is what docs/security.md says that a hook is asked.
type hookRequest struct {
	Path    string            `json:"path"`
	Query   string            `json:"query"`
	Remote  string            `json:"remote"`
	Subject string            `json:"subject"`
	Headers map[string]string `json:"headers"`
}

// Alice's session cookie is known to the hook, which says what she may do. Bob has none.
func TestHookDecides(t *testing.T) {
	var last atomic.Pointer[hookRequest]
	ep := hookEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		q := &hookRequest{}
		if err := json.NewDecoder(r.Body).Decode(q); err != nil || r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" {
			t.Error(r.Method, r.Header, err)
		}
		last.Store(q)
		if !strings.Contains(q.Headers["Cookie"], "session=alice") {
			fmt.Fprint(w, `{"allow":false,"status":401,"reason":"log in\r\nfirst"}`)
			return
		}
		fmt.Fprint(w, `{"allow":true,"subject":"alice","subscribe":["prices.>"],"publish":[]}`)
	})
	ep.Auth.Hook.Headers = []string{"Cookie", "X-Device"}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	alice := dial(t, s, "/ws?a=%20b", speakJSON, "Cookie: a=b", "cookie: session=alice", "X-Device: phone", "Authorization: Bearer secret")
	remote := alice.conn.LocalAddr().String()
	if q := last.Load(); q.Path != "/ws" || q.Query != "a=%20b" || q.Remote != remote || len(q.Headers) != 2 ||
		q.Headers["Cookie"] != "a=b; session=alice" || q.Headers["X-Device"] != "phone" {
		t.Errorf("asked %+v", q)
	}
	if name := onlyConn(t, s, "/ws").Subject(); name != "alice" {
		t.Error(name)
	}
	alice.send(`{"id":1,"subscribe":{"topic":"prices.eu"}}`)
	if m := alice.said(); m.Subscribed == nil {
		t.Errorf("%+v", m)
	}
	for _, request := range []string{`"subscribe":{"topic":"news"}`, `"publish":{"topic":"prices.eu","data":1}`} {
		alice.send(`{"id":2,` + request + `}`)
		if m := alice.said(); m.Error == nil || m.Error.Code != "not_allowed" {
			t.Errorf("%s: %+v", request, m)
		}
	}
	refused(t, s, 401, RefuseHook, "/ws")
	refused(t, s, 403, RefuseTopic, "/ws?topic=news", "Cookie: session=alice")
	if r := httpGet(t, s, "/ws?topic=prices.eu", "text/event-stream"); r.StatusCode != 401 {
		t.Error(r.Status)
	}
}

// Whatever is no clear yes is a no.
func TestHookFailsClosed(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"allow":true}`)
	}))
	t.Cleanup(elsewhere.Close)
	for what, answer := range map[string]http.HandlerFunc{
		"an error": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"allow":true}`, 500) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		},
		"no content":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"no JSON":                func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "yes") },
		"an empty object":        func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") },
		"a yes in words":         func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"allow":"true"}`) },
		"a pattern that is none": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"allow":true,"subscribe":[""]}`) },
		"an expiry that is past": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"allow":true,"expires":1}`) },
		"an endless answer": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"allow":true}`, strings.Repeat(" ", 64<<10))
		},
		"a connection that breaks": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(what, func(t *testing.T) {
			s, log := startLogged(t, Options{Endpoints: []Endpoint{hookEndpoint(t, answer)}})
			resp := refused(t, s, 503, RefuseHookFailed, "/ws", "Cookie: session=secret-of-alice")
			if resp.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if l := log.String(); !strings.Contains(l, "connect hook failing") || strings.Contains(l, "secret-of-alice") {
				t.Error(l)
			}
		})
	}
	t.Run("nothing listens", func(t *testing.T) {
		ep := topicsEndpoint()
		ep.Auth.Hook = Hook{URL: "http://127.0.0.1:1/"}
		refused(t, start(t, Options{Endpoints: []Endpoint{ep}}), 503, RefuseHookFailed, "/ws")
	})
	t.Run("too slow", func(t *testing.T) {
		held := make(chan struct{})
		ep := hookEndpoint(t, func(http.ResponseWriter, *http.Request) { <-held })
		t.Cleanup(func() { close(held) })
		ep.Auth.Hook.Timeout = 50 * time.Millisecond
		s := start(t, Options{Endpoints: []Endpoint{ep}, Limits: Limits{HandshakeTimeout: time.Hour}})
		refused(t, s, 503, RefuseHookFailed, "/ws")
	})
}

// The hook is slow, and a crowd comes. As many wait as may, the others are told at once to come back; those
// who leave make room for others. When the hook answers, those who waited get in.
func TestHookFlooded(t *testing.T) {
	var asked, most, now atomic.Int64
	held := make(chan struct{})
	ep := hookEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		asked.Add(1)
		select {
		case <-held:
			fmt.Fprint(w, `{"allow":true}`)
		case <-r.Context().Done():
		}
	})
	ep.Auth.Hook.MaxInFlight = 4
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{ep, {Path: "/echo", Mode: ModeEcho}}})
	first := make([]*client, 4)
	for n := range first {
		first[n] = dialRaw(t, s)
		first[n].write([]byte(upgradeHead("/ws")))
	}
	eventually(t, "four are asked about", func() bool { return asked.Load() == 4 })
	for range 20 {
		resp := refused(t, s, 503, RefuseHookBusy, "/ws")
		if resp.Header.Get("Retry-After") != "1" {
			t.Error("no Retry-After")
		}
	}
	bob := dial(t, s, "/echo")
	bob.send("hello")
	bob.want("hello")

	_ = first[0].conn.Close()
	eventually(t, "there is room", func() bool { return s.settings().endpoints[0].auth.PendingHookRequests() == 3 })
	first[0] = dialRaw(t, s)
	first[0].write([]byte(upgradeHead("/ws")))
	eventually(t, "five were asked about", func() bool { return asked.Load() == 5 })
	close(held)
	for _, c := range first {
		if resp := c.response(); resp.StatusCode != 101 {
			t.Error(resp.Status)
		}
	}
	if s.settings().endpoints[0].auth.PendingHookRequests() != 0 {
		t.Error("slots are lost")
	}
}

// Many come, some go, the hook says yes to half of them: every client is accounted for.
func TestHookUnderLoad(t *testing.T) {
	var n atomic.Int64
	ep := hookEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"allow":%v}`, n.Add(1)%2 == 0)
	})
	ep.Auth.Hook.MaxInFlight = 8
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	var all sync.WaitGroup
	var opened, no, busy atomic.Uint64
	for who := range 8 {
		all.Go(func() {
			for try := range 40 {
				c := dialRaw(t, s)
				c.write([]byte(upgradeHead("/ws", speakJSON)))
				c.write(text(`{"id":1,"ping":{}}`))
				if (who+try)%5 == 0 {
					_ = c.conn.Close()
					continue
				}
				switch resp := c.response(); resp.StatusCode {
				case 101:
					opened.Add(1)
					c.want(`{"id":1,"pong":{}}`)
				case 403:
					no.Add(1)
				case 503:
					busy.Add(1)
				default:
					t.Error(resp.Status)
				}
				_ = c.conn.Close()
			}
		})
	}
	all.Wait()
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 })
	st := s.Stats()
	if opened.Load() == 0 || no.Load() == 0 || st.Refusals[RefuseHookFailed] != 0 {
		t.Errorf("%d opened, %d no, %d busy, %v", opened.Load(), no.Load(), busy.Load(), st.Refusals)
	}
	eventually(t, "all slots are free", func() bool { return s.settings().endpoints[0].auth.PendingHookRequests() == 0 })
}

// With a token and a hook both have to agree: the hook is told whose token it is, and what both allow holds.
// The application is asked last.
func TestTokenAndHookAndUpgrade(t *testing.T) {
	i := newIssuer(t)
	var subject atomic.Value
	ep := hookEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
		q := hookRequest{}
		_ = json.NewDecoder(r.Body).Decode(&q)
		subject.Store(q.Subject)
		fmt.Fprintf(w, `{"allow":true,"subject":"somebody else","subscribe":["*.b"],"expires":%d}`, in(time.Minute))
	})
	ep.Auth.JWT = i.endpoint("ES256").Auth.JWT
	d := newSlowDesk()
	ep.Handler.Upgrade = func(r *Request) error {
		if id := r.Identity(); id.Subject != "alice" || time.Until(id.Expires) > time.Minute {
			t.Errorf("%+v", id)
		}
		return d.upgrade(r)
	}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	refused(t, s, 401, RefuseNoToken, "/ws")
	if subject.Load() != nil {
		t.Error("the hook is asked about a client without a token")
	}
	c := dialRaw(t, s)
	token := i.Token("ES256", jwt.MapClaims{"sub": "alice", "carillon": map[string]any{"subscribe": []string{"a.*"}}})
	c.write(append([]byte(upgradeHead("/ws", speakJSON, withToken(token))), text(`{"id":1,"subscribe":{"topic":"a.b"}}`)...))
	if err := d.wait(t).Identify(Identity{Publish: []string{"a.b"}}); err != nil {
		t.Error(err)
	}
	d.answers <- nil
	if resp := c.response(); resp.StatusCode != 101 || subject.Load() != "alice" {
		t.Fatal(resp.Status, subject.Load())
	}
	if m := c.said(); m.Subscribed == nil {
		t.Errorf("%+v", m)
	}
	for _, request := range []string{`"subscribe":{"topic":"a.c"}`, `"subscribe":{"topic":"c.b"}`, `"publish":{"topic":"a.c","data":1}`} {
		c.send(`{"id":2,` + request + `}`)
		if m := c.said(); m.Error == nil || m.Error.Code != "not_allowed" {
			t.Errorf("%s: %+v", request, m)
		}
	}
}

// A token of an hour does not last longer than the session behind it.
func TestHookExpiry(t *testing.T) {
	ep := hookEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"allow":true,"subject":"alice","expires":%d}`, in(30*time.Minute))
	})
	wall := &clock{}
	s := startAt(t, wall, Options{Endpoints: []Endpoint{ep}})
	c := dial(t, s, "/ws")
	wall.jump(45 * time.Minute)
	c.wantClose(closeExpired, "token expired")
	if s.Stats().Cuts[CutExpired] != 1 || s.Stats().Closes[codec.CloseCode(0)] != 1 {
		t.Errorf("%+v", s.Stats())
	}
}

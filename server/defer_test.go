package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
)

// slowDesk decides about requests when the test says so.
type slowDesk struct {
	asked   chan *Request
	answers chan error
	ended   chan error // how the context of each ended
}

func newSlowDesk() *slowDesk {
	return &slowDesk{asked: make(chan *Request, 100), answers: make(chan error), ended: make(chan error, 100)}
}

func (d *slowDesk) upgrade(r *Request) error {
	r.Defer(func(ctx context.Context, r *Request) error {
		d.asked <- r
		select {
		case err := <-d.answers:
			return err
		case <-ctx.Done():
			d.ended <- ctx.Err()
			return ctx.Err()
		}
	})
	return nil
}

func (d *slowDesk) endpoint() Endpoint {
	return Endpoint{Path: "/echo", Mode: ModeEcho, Handler: Handler{Upgrade: d.upgrade}}
}

func (d *slowDesk) wait(t testing.TB) *Request {
	t.Helper()
	select {
	case r := <-d.asked:
		return r
	case <-time.After(patience):
		t.Fatal("the application is not asked")
		return nil
	}
}

// Alice has to wait for a decision. Bob, on the same loop, is served meanwhile, and the request that the
// desk looks at does not change for that. Then alice gets in, with what the desk has noted about her, and
// what she has sent early is answered, in order.
func TestDeferredDecision(t *testing.T) {
	d := newSlowDesk()
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{d.endpoint(), {Path: "/free", Mode: ModeEcho}}})
	alice := dialRaw(t, s)
	alice.write(append([]byte(upgradeHead("/echo?who=alice", "Cookie: a=1")), text("one")...))
	r := d.wait(t)
	alice.write(text("two")[:3])
	bob := dial(t, s, "/free?who=somebody_else_with_a_longer_name", "Cookie: b=2")
	bob.send("hello")
	bob.want("hello")
	alice.write(text("two")[3:])
	if string(r.Query) != "who=alice" || string(r.Header("Cookie")) != "a=1" {
		t.Errorf("the request has become %s %s", r.Query, r.Header("Cookie"))
	}
	if s.Count() != 1 {
		t.Errorf("%d are open", s.Count())
	}
	r.Value = "alice's"
	r.ResponseHeader = [][2]string{{"X-Desk", "3"}}
	if err := r.Identify(Identity{Subject: "alice"}); err != nil {
		t.Fatal(err)
	}
	d.answers <- nil
	if resp := alice.response(); resp.StatusCode != 101 || resp.Header.Get("X-Desk") != "3" {
		t.Fatal(resp.Status, resp.Header)
	}
	alice.want("one")
	alice.want("two")
	alice.send("three")
	alice.want("three")
	if c := onlyConn(t, s, "/echo"); c.Value() != "alice's" || c.Subject() != "alice" {
		t.Error(c.Value(), c.Subject())
	}
}

func TestDeferredRefusals(t *testing.T) {
	t.Parallel() // most of it is waiting
	for _, test := range []struct {
		what   string
		err    error
		status int
		why    RefuseReason
	}{
		{"a rejection is the answer", &codec.Rejection{Status: 402, Reason: "pay first"}, 402, RefuseHandler},
		{"any other error is a 403", errors.New("no"), 403, RefuseHandler},
	} {
		t.Run(test.what, func(t *testing.T) {
			d := newSlowDesk()
			s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}})
			go func() { d.answers <- test.err }()
			refused(t, s, test.status, test.why, "/echo")
		})
	}
	t.Run("a panic is a 500", func(t *testing.T) {
		s := start(t, Options{Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, Handler: Handler{Upgrade: func(r *Request) error {
			r.Defer(func(context.Context, *Request) error { panic("desk") })
			return nil
		}}}}})
		refused(t, s, 500, RefusePanic, "/echo")
		if s.Stats().Panics != 1 {
			t.Error("not counted")
		}
	})
	t.Run("an error of Upgrade refuses at once", func(t *testing.T) {
		s := start(t, Options{Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, Handler: Handler{Upgrade: func(r *Request) error {
			r.Defer(func(context.Context, *Request) error { t.Error("called"); return nil })
			return errors.New("no")
		}}}}})
		refused(t, s, 403, RefuseHandler, "/echo")
	})
	t.Run("too late", func(t *testing.T) {
		d := newSlowDesk()
		s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}, Limits: Limits{HandshakeTimeout: 500 * time.Millisecond}})
		resp := refused(t, s, 503, RefuseUndecided, "/echo")
		if resp.Header.Get("Retry-After") == "" || <-d.ended == nil {
			t.Error("no Retry-After")
		}
	})
	t.Run("too late, and deaf to the context", func(t *testing.T) {
		hold := make(chan struct{})
		s := start(t, Options{Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, Handler: Handler{Upgrade: func(r *Request) error {
			r.Defer(func(context.Context, *Request) error { <-hold; return nil })
			return nil
		}}}}, Limits: Limits{HandshakeTimeout: 500 * time.Millisecond}})
		refused(t, s, 503, RefuseUndecided, "/echo")
		close(hold)
	})
	t.Run("the time for the decision begins with the decision", func(t *testing.T) {
		const limit = 4 * time.Second
		d := newSlowDesk()
		s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}, Limits: Limits{HandshakeTimeout: limit}})
		c := dialRaw(t, s)
		head := upgradeHead("/echo")
		c.write([]byte(head[:20]))
		time.Sleep(limit * 3 / 5) // twice that is more than the limit and a tick
		c.write([]byte(head[20:]))
		d.wait(t)
		time.Sleep(limit * 3 / 5)
		go func() { d.answers <- nil }() // for ever if it is not waited for any more
		if resp := c.response(); resp.StatusCode != 101 {
			t.Error(resp.Status)
		}
		conn := onlyConn(t, s, "/echo")
		conn.shard().Mu.Lock()
		defer conn.shard().Mu.Unlock()
		if conn.core().Extension() != nil {
			t.Error("a connection without an identity keeps what it needed in its handshake")
		}
	})
	t.Run("too much comes early", func(t *testing.T) {
		for _, pieces := range []int{1, 10} {
			d := newSlowDesk()
			s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}, Limits: Limits{MaxHead: 1024}})
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead("/echo")))
			d.wait(t)
			for range pieces {
				c.write([]byte(strings.Repeat("x", 1100/pieces)))
				time.Sleep(5 * time.Millisecond)
			}
			if resp := c.response(); resp.StatusCode != 400 || s.Stats().Refusals[RefuseEarly] != 1 {
				t.Error(resp.Status, s.Stats().Refusals)
			}
			if err := <-d.ended; err == nil {
				t.Error("the decision goes on")
			}
		}
	})
}

// A client leaves while its request is being decided, and the answer comes too late. Then many do, at
// random moments.
func TestClientLeavesWhileUndecided(t *testing.T) {
	t.Parallel()
	d := newSlowDesk()
	s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}})
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/echo")))
	d.wait(t)
	_ = c.conn.Close()
	select {
	case err := <-d.ended:
		if err != context.Canceled {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the decision is not reported")
	}
	eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 && s.Stats().Refusals[RefuseLost] == 1 })

	var all sync.WaitGroup
	for n := range 200 {
		all.Go(func() {
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead("/echo")))
			time.Sleep(time.Duration(n%5) * time.Millisecond)
			_ = c.conn.Close()
		})
	}
	decide := time.After(time.Second)
	for more := true; more; {
		select {
		case d.answers <- nil:
		case <-decide:
			more = false
		}
	}
	all.Wait()
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 && s.Stats().Open == 0 })
	if st := s.Stats(); st.Opened+st.Refusals[RefuseLost] != 201 {
		t.Errorf("%d opened, %v", st.Opened, st.Refusals)
	}
}

// The server shuts down while alice waits: she is told, and the shutdown does not wait for the desk.
func TestDrainWhileUndecided(t *testing.T) {
	d := newSlowDesk()
	s := start(t, Options{Endpoints: []Endpoint{d.endpoint()}, Drain: Drain{Duration: -1, Deadline: patience}})
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/echo")))
	d.wait(t)
	s.Shutdown(context.Background())
	if resp := c.response(); resp.StatusCode != http.StatusServiceUnavailable {
		t.Error(resp.Status)
	}
	if err := <-d.ended; err != context.Canceled {
		t.Error(err)
	}
	if s.Stats().Refusals[RefuseDraining] != 1 {
		t.Error(s.Stats().Refusals)
	}
}

// Thousands wait at once on one loop; each gets its own answer.
func TestManyDecisionsAtOnce(t *testing.T) {
	const clients = 500
	var open sync.WaitGroup
	open.Add(clients)
	s := start(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/echo", Mode: ModeEcho, Handler: Handler{Upgrade: func(r *Request) error {
		r.Defer(func(_ context.Context, r *Request) error {
			open.Done()
			open.Wait() // until all are asked
			return r.Identify(Identity{Subject: string(r.Query)})
		})
		return nil
	}}}}})
	conns := make([]*client, clients)
	for n := range conns {
		conns[n] = dialRaw(t, s)
		conns[n].write(append([]byte(upgradeHead(fmt.Sprintf("/echo?%d", n))), text(words(n))...))
	}
	for n, c := range conns {
		if resp := c.response(); resp.StatusCode != 101 {
			t.Fatal(resp.Status)
		}
		c.want(words(n))
	}
	seen := map[string]bool{}
	for c := range s.Conns() {
		seen[c.Subject()] = true
	}
	if len(seen) != clients {
		t.Errorf("%d subjects", len(seen))
	}
}

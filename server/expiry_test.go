package server

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/server/internal/reactor"
)

// A token runs out on a raw, a JSON and an events connection. Each is told, within a second or so, and not
// before.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	ep := i.endpoint("HS256")
	ep.Auth.JWT.From = []string{"header", "query"}
	wall := &clock{}
	s := startAt(t, wall, Options{Endpoints: []Endpoint{ep}})
	expires := wall.now().Add(10 * time.Minute).Truncate(time.Second)
	token := i.Token("HS256", jwt.MapClaims{"sub": "alice", "exp": expires.Unix()})
	raw, js := dial(t, s, "/ws?topic=a", withToken(token)), dial(t, s, "/ws?topic=a", speakJSON, withToken(token))
	events := bufio.NewReader(httpGet(t, s, "/ws?topic=a&token="+token, "text/event-stream").Body)
	stays := dial(t, s, "/ws?topic=a", withToken(i.Token("HS256", alice())))
	dial(t, s, "/ws?topic=b", withToken(i.Token("HS256", jwt.MapClaims{"sub": "bob", "exp": 1e15}))) // stays, too
	wall.jump(expires.Sub(wall.now()) - time.Second)
	for _, c := range []*client{raw, js} {
		c.wantClose(closeExpired, "token expired")
		if now := wall.now(); now.Before(expires) || now.Sub(expires) > patience/2 {
			t.Errorf("closed at %v, the token expired at %v", now, expires)
		}
	}
	text, err := io.ReadAll(events)
	if err != nil || !strings.Contains(string(text), "event: close\n") || !strings.Contains(string(text), `"code":4401`) {
		t.Errorf("%s %v", text, err)
	}
	if n := s.Stats().Cuts[CutExpired]; n != 3 {
		t.Errorf("%d expired", n)
	}
	eventually(t, "two are left", func() bool { return s.Count() == 2 })
	if _, err := s.Publish(Publication{Topic: "a", Payload: []byte("still")}); err != nil {
		t.Fatal(err)
	}
	stays.want("still")
	refused(t, s, 401, RefuseTokenExpired, "/ws", withToken(token))
}

// Alice renews her token in time, again and again, and her connection stays beyond the first one's end. Then
// she forgets it.
func TestTokenIsRenewed(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	wall := &clock{}
	s := startAt(t, wall, Options{Endpoints: []Endpoint{i.endpoint("ES256")}})
	token := func() (token string, expires int64) {
		expires = wall.now().Add(time.Hour).Unix()
		return i.Token("ES256", jwt.MapClaims{"sub": "alice", "exp": expires}), expires
	}
	first, _ := token()
	c := dial(t, s, "/ws?topic=a", speakJSON, withToken(first))
	c.said()
	for range 3 { // which is beyond the end of the first, and of the second
		wall.jump(40 * time.Minute)
		next, expires := token()
		renew := func() said { return c.ask(`{"id":9,"refresh":{"token":%q}}`, next) }
		reply := renew()
		for errorCodeOf(reply) == "overloaded" { // less than a second after the one before
			time.Sleep(100 * time.Millisecond)
			reply = renew()
		}
		if want := fmt.Sprintf(`{"id":9,"refreshed":{"expires":%d}}`, expires*1000); reply.text != want {
			t.Fatalf("got %s, want %s", reply.text, want)
		}
	}
	wall.jump(time.Hour)
	c.wantClose(closeExpired, "token expired")
}

// What an application or a token says of the time is never told as another one, however far away it is.
func TestExpiresAtTheEdges(t *testing.T) {
	i := newIssuer(t)
	endpoint := i.endpoint("HS256")
	endpoint.Handler.Upgrade = func(r *Request) error { return r.Identify(Identity{Expires: time.Unix(1<<61, 0)}) }
	s := start(t, Options{Endpoints: []Endpoint{endpoint}})
	claims := alice()
	claims["exp"] = int64(1<<53 - 1)
	token := i.Token("HS256", claims)
	c := dial(t, s, "/ws", speakJSON, withToken(token))
	if reply := c.ask(`{"id":9,"refresh":{"token":%q}}`, token); reply.text != `{"id":9,"refreshed":{}}` {
		t.Errorf("answered %s", reply.text)
	}
}

func TestRenewalsThatAreRefused(t *testing.T) {
	i := newIssuer(t)
	s := start(t, Options{Endpoints: []Endpoint{i.endpoint("HS256")}})
	claims := func(changes jwt.MapClaims) string {
		c := alice()
		maps.Copy(c, changes)
		return i.Token("HS256", c)
	}
	nameless := alice()
	delete(nameless, "sub")
	type m = map[string]any
	for _, test := range []struct{ what, token, code string }{
		{"another subject", claims(jwt.MapClaims{"sub": "bob"}), "not_allowed"},
		{"no subject", i.Token("HS256", nameless), "not_allowed"},
		{"an empty subject", claims(jwt.MapClaims{"sub": ""}), "invalid_token"},
		{"expired", claims(jwt.MapClaims{"exp": in(-time.Minute)}), "invalid_token"},
		{"signed by a stranger", newIssuer(t).Token("HS256", alice()), "invalid_token"},
		{"nothing", "", "invalid_token"},
		{"a topic less than it has", claims(jwt.MapClaims{"carillon": m{"subscribe": []string{"b"}}}), "not_allowed"},
		{"good", claims(jwt.MapClaims{"carillon": m{"subscribe": []string{"a"}}}), ""},
	} {
		c := dial(t, s, "/ws", speakJSON, withToken(claims(nil)))
		c.write(append(text(`{"id":1,"subscribe":{"topic":"a"}}`), text(`{"id":2,"ping":{}}`)...))
		for range 2 {
			c.said()
		}
		c.send(`{"id":9,"refresh":{"token":"` + test.token + `"}}`)
		c.send(`{"id":10,"refresh":{"token":"` + test.token + `"}}`)
		first, second := c.said(), c.said()
		got := ""
		if first.Error != nil {
			got = first.Error.Code
			if test.token != "" && strings.Contains(first.Error.Message, test.token) {
				t.Error("the token is in the answer")
			}
		}
		if got != test.code {
			t.Errorf("%s: %q, want %q", test.what, got, test.code)
		}
		if second.Error == nil || second.Error.Code != "overloaded" {
			t.Errorf("%s: the second at once: %+v", test.what, second)
		}
		c.send(`{"id":2,"publish":{"topic":"a","data":1}}`)
		for m := c.said(); m.Published == nil; m = c.said() {
		}
		_ = c.conn.Close()
	}
}

// A token is renewed by one that allows less, right behind a subscription that only the old one allows. What
// a client asks for is done in its order, so the subscription comes to be, and the renewal does not.
func TestRenewalBehindSubscription(t *testing.T) {
	i := newIssuer(t)
	s := start(t, Options{Endpoints: []Endpoint{i.endpoint("HS256")}})
	narrow := alice()
	narrow["carillon"] = map[string]any{"subscribe": []string{"b"}}
	c := dial(t, s, "/ws", speakJSON, withToken(i.Token("HS256", alice())))
	c.write(append(append(text(`{"id":1,"subscribe":{"topic":"a"}}`),
		text(`{"id":2,"refresh":{"token":"`+i.Token("HS256", narrow)+`"}}`)...), text(`{"id":3,"ping":{}}`)...))
	if m := c.said(); string(m.ID) != "1" || m.Subscribed == nil {
		t.Errorf("%+v", m)
	}
	if m := c.said(); string(m.ID) != "2" || m.Error == nil || m.Error.Code != "not_allowed" {
		t.Errorf("%+v", m)
	}
}

// Connections with tokens come, renew and go in any order; those whose time is up go, nearly all at once.
func TestDeadlinesInAnyOrder(t *testing.T) {
	const most = 400
	i := newIssuer(t)
	wall := &clock{}
	s := startAt(t, wall, Options{Loops: 1, Endpoints: []Endpoint{i.endpoint("HS256")}})
	soon, late := in(time.Hour), jwt.MapClaims{"sub": "alice", "exp": in(24 * time.Hour)}
	var short, long []*client
	for n := range most {
		exp := soon - int64(n%2)
		if n%4 == 3 {
			exp = in(24*time.Hour + time.Duration(rand.IntN(1000))*time.Second)
		}
		c := dial(t, s, "/ws", speakJSON, withToken(i.Token("HS256", jwt.MapClaims{"sub": "alice", "exp": exp})))
		switch {
		case n%4 == 3:
			long = append(long, c)
		case n%4 == 2:
			_ = c.conn.Close()
		case n%8 == 0:
			c.send(`{"id":1,"refresh":{"token":"` + i.Token("HS256", late) + `"}}`)
			c.said()
			long = append(long, c)
		default:
			short = append(short, c)
		}
	}
	eventually(t, "those who left are gone", func() bool { return s.Count() == len(short)+len(long) })
	wall.jump(2 * time.Hour)
	eventually(t, "those with a short token are gone", func() bool { return s.Count() == len(long) })
	for _, c := range short {
		c.wantClose(closeExpired, "token expired")
	}
	for _, c := range long {
		c.send(`{"id":2,"ping":{}}`)
		c.want(`{"id":2,"pong":{}}`)
		_ = c.conn.Close()
	}
	eventually(t, "all are gone", func() bool { return s.Count() == 0 })
	if n := s.Stats().Cuts[CutExpired]; int(n) != len(short) {
		t.Errorf("%d expired, want %d", n, len(short))
	}
	done := make(chan int)
	sh := s.engine.AllShards()[0]
	sh.Post(reactor.Command{Kind: reactor.CommandDo, Conn: reactor.Assemble(reactor.Parts{Shard: sh}), Do: func() { done <- sh.Deadlines.Heap.Len() }})
	if n := <-done; n != 0 {
		t.Errorf("%d deadlines are left", n)
	}
}

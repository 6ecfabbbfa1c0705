package server

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// clock is the system's time, which a test can move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) jump(d time.Duration) { c.ahead.Add(int64(d)) }

func startAt(t *testing.T, c *clock, opts Options) *Server {
	t.Helper()
	s, _ := startChanged(t, opts, func(s *Server) { s.engine.Wall = c.now })
	return s
}

// The system's time jumps by days, forth and back. Time-outs, pings, what topics keep and who is connected do
// not depend on it, and the citizen notices nothing. Only the times that messages tell are the new ones.
func TestClockJumps(t *testing.T) {
	wall := &clock{}
	opts := Options{Endpoints: besieged(), Logger: silent(), Topics: []TopicRule{{Match: "kept", History: 10, MaxAge: time.Hour}},
		Ping: Ping{Interval: 2 * time.Second}, Limits: Limits{HandshakeTimeout: time.Hour, IdleTimeout: time.Hour, WriteTimeout: time.Hour}}
	s := startAt(t, wall, opts)
	z := settle(t, s)
	before := footprintOf(s)
	slow := dialRaw(t, s) // its handshake takes its time, and may
	head := upgradeHead("/echo")
	slow.write([]byte(head[:20]))
	mustPublish(t, s, "kept", "before")
	for _, jump := range []time.Duration{48 * time.Hour, -96 * time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		wall.jump(jump)
		mustPublish(t, s, "kept", jump.String())
		sweepAll(s.hub)
		z.serves(20)
	}
	slow.write([]byte(head[20:]))
	if resp := slow.response(); resp.StatusCode != 101 {
		t.Errorf("the handshake is answered %s", resp.Status)
	}
	_ = slow.conn.Close()
	past, err := s.History("kept", Start{Last: 10}, 10)
	if err != nil || len(past.Messages) != 5 || !past.Recovered {
		t.Fatalf("%d messages are kept, want 5; %v", len(past.Messages), err)
	}
	if d := past.Messages[1].Time.Sub(past.Messages[0].Time); d < 47*time.Hour {
		t.Errorf("the message after the first jump is only %v younger", d)
	}
	if st := s.Stats(); st.Cuts[CutPingTimeout]+st.Cuts[CutIdle]+st.Cuts[CutMaxAge]+refusalsOf(st) != 0 {
		t.Errorf("clients were cut or refused: %v %v", st.Cuts, st.Refusals)
	}
	before.wantBack(t, s)
	z.serves(20)
	z.leave()
}

// What topics keep grows old by the time that passes, whatever the system's time says meanwhile.
func TestHistoryGrowsOldWithoutTheClock(t *testing.T) {
	wall := &clock{}
	s := startAt(t, wall, topics(TopicRule{Match: "kept", History: 10, MaxAge: 100 * time.Millisecond}))
	mustPublish(t, s, "kept", "one")
	wall.jump(-24 * time.Hour) // by the system's time it will be young for a day
	eventually(t, "it is too old", func() bool { sweepAll(s.hub); i, _ := s.Topic("kept"); return i.History == 0 })
}

// A token names a time of the system, so this is what counts: when that jumps beyond it, the connection is
// closed and the token is good for no other; before that, and when it jumps back, it is good. Those without a
// token are not concerned.
func TestTokensGoByTheClock(t *testing.T) {
	wall := &clock{}
	i := newIssuer(t)
	s := startAt(t, wall, Options{Endpoints: append(besieged(), Endpoint{Path: "/safe", Mode: ModeTopics, Auth: i.endpoint("HS256").Auth}), Logger: silent()})
	z := settle(t, s)
	token := withToken(i.Token("HS256", jwt.MapClaims{"sub": "alice", "exp": in(time.Hour)}))
	alice := dial(t, s, "/safe?topic=a", token)
	wall.jump(-30 * 24 * time.Hour)
	dial(t, s, "/safe?topic=a", token)
	z.serves(20)
	wall.jump(30*24*time.Hour + 2*time.Hour)
	alice.wantClose(closeExpired, "token expired")
	refused(t, s, 401, RefuseTokenExpired, "/safe?topic=a", token)
	z.serves(20)
	wall.jump(-2 * time.Hour)
	dial(t, s, "/safe?topic=a", token)
	z.leave()
}

// A server's clock is days off those of the cluster. What is kept there is not too old for that, whether it comes or is
// loaded.
func TestClocksOfAClusterDiffer(t *testing.T) {
	for _, off := range []time.Duration{48 * time.Hour, -48 * time.Hour} {
		n := newFakeNet(1)
		opts := topics(TopicRule{Match: "log", History: 10, MaxAge: time.Hour})
		right := clustered(t, n, 1, opts, unchanged)[0]
		wall := &clock{}
		wall.jump(off)
		list := clustered(t, n, 2, opts, func(s *Server) { s.engine.Wall = wall.now })
		live := dial(t, list[0], "/ws", speakJSON)
		live.subscribed("log")
		first := mustPublish(t, right, "log", "1")
		mustPublish(t, right, "log", "2")
		live.wants("1", "2")
		for i, s := range list { // one has heard it, the other loads it
			sweepAll(s.hub)
			c := dial(t, s, "/ws", speakJSON)
			if got := c.since("log", position(first)); got.Subscribed == nil || !*got.Subscribed.Recovered {
				t.Errorf("%v off, server %d: %s", off, i, got.text)
			}
			c.wants("2")
			sweepAll(s.hub)
			if past, err := s.History("log", Start{Last: 10}, 10); err != nil || len(past.Messages) != 2 {
				t.Errorf("%v off, server %d keeps %d, %v", off, i, len(past.Messages), err)
			}
		}
	}
}

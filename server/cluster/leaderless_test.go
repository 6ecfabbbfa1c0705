package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

func TestOnlyALeaderSpeaksForTheStream(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: ">", History: 3})
	subject := `"config": {"subjects": ["` + n.configIn(n.streams[0], "abc").Subjects[0] + `"]}`
	for _, test := range []struct {
		name, answer string
		want         error
	}{
		{"the leader", `{` + subject + `, "cluster": {"leader": "n1", "replicas": [{"name": "n2"}]}, "state": {"last_seq": 7}}`, nil},
		{"a server without a cluster", `{` + subject + `, "state": {"last_seq": 7}}`, nil},
		{"a replica while there is no leader", `{` + subject + `, "cluster": {"name": "c", "replicas": [{"name": "n2"}]}, "state": {"last_seq": 7}}`, errNoLeader},
	} {
		state, err := n.readState(n.streams[0], &nats.Msg{Data: []byte(test.answer)}, nil)
		if !errors.Is(err, test.want) || err == nil && (state.Last != 7 || state.epoch != "abc") {
			t.Errorf("%s: %+v, %v, want %v", test.name, state, err, test.want)
		}
	}
}

// Of three replicas one is cut off. When it has noticed that there is no leader, JetStream has it answer what is asked
// of the leader, with what it happens to have: that is neither a sign of health nor a stream that has lost messages.
func TestAReplicaThatIsCutOffDoesNotSpeakForTheStream(t *testing.T) {
	t.Parallel()
	x := newTrio(t, topic.Rule{Match: "kept.>", History: 1000})
	which := slices.IndexFunc(x.nodes[:], func(n *testNode) bool { // a leader takes longer to notice
		return !n.embedded.GlobalAccount().JetStreamIsStreamLeader(n.streams[0].name)
	})
	cathy := x.nodes[which]
	st := cathy.streams[0]
	x.isolate(which, true)
	eventually(t, "her replica answers without a leader", func() bool {
		m, err := cathy.nc.Request("$JS.API.STREAM.INFO."+st.name, nil, infoTimeout)
		if err != nil {
			return false
		}
		var answer struct {
			Cluster struct{ Leader string }
			State   *struct{}
		}
		return json.Unmarshal(m.Data, &answer) == nil && answer.State != nil && answer.Cluster.Leader == ""
	})
	if state, err := cathy.awaitInfo(st); !errors.Is(err, errNoLeader) {
		t.Errorf("asked of the stream, she is told %+v, %v", state, err)
	}
	if err := cathy.ensure(context.Background(), st); err == nil {
		t.Error("her replica is taken for the stream")
	}
	eventually(t, "she says that she is not well", func() bool { return cathy.PersistentErr(0) != nil })
	x.isolate(which, false)
	eventually(t, "she is well again", func() bool { return cathy.PersistentErr(0) == nil })
}

func TestAStreamHasGoneBackOnlyWhenItIsSaidAgainAndAgain(t *testing.T) {
	st := &stream{epoch: "one"}
	if st.wentBack(7, 7) || st.wentBack(8, 7) {
		t.Error("it has gone on")
	}
	for range 10 {
		if st.wentBack(6, 8) {
			t.Fatal("what is said several times in a moment is believed")
		}
	}
	later := func(last uint64) bool {
		st.backAt = st.backAt.Add(-probeInterval)
		return st.wentBack(last, 8)
	}
	if later(6) || later(8) || later(6) || later(6) || !later(6) {
		t.Error("it takes three times without another in between")
	}
	if !later(6) {
		t.Error("there is no other epoch yet")
	}
	st.setEpoch("another")
	if later(6) || later(5) || later(8) {
		t.Error("that was in another epoch")
	}
}

// A server that was cut off says at once, as soon as it is asked for a message or about the stream, that JetStream has
// no leader, although there is one, which answers a little later.
func TestTheLeaderIsHeardBesideServersThatKnowOfNone(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 3}
	n, other := join(t, o, rule), join(t, o, rule)
	if _, err := n.store("a", "x", ""); err != nil {
		t.Fatal(err)
	}
	st := n.streams[0]
	unavailable := `{"error": {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"}}`
	leaderless := `{"config": {"subjects": ["` + n.configIn(st, "abc").Subjects[0] + `"]}, "cluster": {"name": "c"}, "state": {"last_seq": 0}}`
	asked := map[string]chan struct{}{}
	for subject, answers := range map[string][]string{
		"$JS.API.STREAM.MSG.GET." + st.name: {unavailable, unavailable, unavailable}, // before and after the leader
		"$JS.API.STREAM.INFO." + st.name:    {unavailable, leaderless, unavailable, leaderless},
	} {
		asks := make(chan struct{}, 1000)
		asked[subject] = asks
		if _, err := other.nc.Subscribe(subject, func(m *nats.Msg) {
			asks <- struct{}{}
			for _, text := range answers {
				if err := m.Respond([]byte(text)); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := other.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if k, err := n.load("a", 0); err != nil || len(k.Messages) != 1 {
			t.Fatal(payloads(k.Messages), err)
		}
		if state, err := n.awaitInfo(st); err != nil || state.Last != 1 {
			t.Fatal(state, err)
		}
	}
	for subject, asks := range asked {
		if len(asks) == 0 {
			t.Errorf("the other node was not asked %s", subject)
		}
	}
}

// Something happens to a stream, and when it is looked at, it does not answer. Then it is looked at again.
func TestAStreamThatDoesNotAnswerWhenItIsLookedAt(t *testing.T) {
	t.Parallel()
	s := natsAt(t, -1, t.TempDir())
	n := join(t, Options{NATS: NATS{URL: urlOf(s)}}, topic.Rule{Match: ">", History: 3})
	n.streams[0].unsure.Store(true)
	eventually(t, "it is looked at when it answers", func() bool { return n.resynced() == 1 && !n.streams[0].unsure.Load() })
	s.Shutdown()
	eventually(t, "NATS is away", func() bool { return n.Err() != nil })
	n.suspect(n.streams[0], "something happened")
	eventually(t, "it has not answered", n.streams[0].unsure.Load)
}

// One node gives a stream another epoch. Another node comes upon that when it loads a topic, before it asks for the
// stream's state by itself: it has to look at all other topics, too.
func TestALoadThatFindsAnotherEpochHasAllLookedAt(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 3}
	alice, bob := join(t, o, rule), join(t, o, rule)
	for range 5 {
		before := bob.resynced()
		if err := alice.renew(alice.streams[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := bob.load("a", 7); !errors.Is(err, errEpoch) {
			t.Logf("bob was faster: %v", err)
		}
		eventually(t, "bob looks at all", func() bool { return bob.resynced() > before })
	}
}

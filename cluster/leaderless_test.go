package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"carillon/server"

	"github.com/nats-io/nats.go"
)

func TestOnlyALeaderSpeaksForTheStream(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, server.TopicRule{Match: ">", History: 3})
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

// Of three replicas one is cut off. When it has noticed that there is no leader, JetStream has it answer what is asked of
// the leader, with what it happens to have: that is neither a sign of health nor a stream that has lost messages.
func TestAReplicaThatIsCutOffDoesNotSpeakForTheStream(t *testing.T) {
	t.Parallel()
	x := newTrio(t, server.TopicRule{Match: "kept.>", History: 1000})
	which := slices.IndexFunc(x.nodes[:], func(n *testNode) bool { // a leader takes longer to notice
		return !n.embedded.GlobalAccount().JetStreamIsStreamLeader(n.streams[0].name)
	})
	cathy := x.nodes[which]
	st := cathy.streams[0]
	x.isolate(which, true)
	eventually(t, "her replica answers without a leader", func() bool {
		m, err := cathy.await("$JS.API.STREAM.INFO."+st.name, nil, infoTimeout)
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
	eventually(t, "she says that she is not well", func() bool { return cathy.KeptErr(0) != nil })
	x.isolate(which, false)
	eventually(t, "she is well again", func() bool { return cathy.KeptErr(0) == nil })
}

func TestAStreamHasGoneBackOnlyWhenItIsSaidAgainAndAgain(t *testing.T) {
	st := &stream{}
	if st.wentBack(7) || st.wentBack(8) {
		t.Error("it has gone on")
	}
	for range 10 {
		if st.wentBack(6) {
			t.Fatal("what is said several times in a moment is believed")
		}
	}
	later := func(last uint64) bool {
		st.backAt = st.backAt.Add(-probeInterval)
		return st.wentBack(last)
	}
	if later(6) || later(8) || later(6) || later(6) || !later(6) {
		t.Error("it takes three times without another in between")
	}
	if later(6) || later(7) {
		t.Error("it has gone back once only")
	}
}

// A server that was cut off says at once, as soon as it is asked for a message, that JetStream has no leader, although there is
// one, which answers a little later.
func TestTheLeaderIsHeardBesideServersThatKnowOfNone(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := server.TopicRule{Match: ">", History: 3}
	n, other := join(t, o, rule), join(t, o, rule)
	if _, err := n.store("a", "x", ""); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1000)
	if _, err := other.nc.Subscribe("$JS.API.STREAM.MSG.GET."+n.streams[0].name, func(m *nats.Msg) {
		asked <- struct{}{}
		for range 3 { // before and after the leader
			if err := m.Respond([]byte(`{"error": {"code": 503, "err_code": 10008, "description": "JetStream system temporarily unavailable"}}`)); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := other.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if k, err := n.load("a", 0); err != nil || len(k.Messages) != 1 {
			t.Fatal(payloads(k.Messages), err)
		}
	}
	if len(asked) == 0 {
		t.Error("nobody else was asked")
	}
}

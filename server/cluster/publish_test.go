package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

func TestWhatJetStreamAnswersIsBelievedOnlyWithASequence(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		offset       uint64
		want         error
	}{
		{"stored", `{"stream": "s", "seq": 7}`, 7, nil},
		{"stored before", `{"stream": "s", "seq": 7, "duplicate": true}`, 7, nil},
		{"one with its key is not stored yet, older servers", `{"stream": "s", "seq": 0, "duplicate": true}`, 0, errUnknown},
		{"one with its key is not stored yet", `{"error": {"code": 409, "err_code": 10158, "description": "duplicate message id is in process"}, "stream": "s", "seq": 0}`, 0, errUnknown},
		{"refused", `{"error": {"code": 503, "err_code": 10023, "description": "insufficient resources"}, "stream": "s", "seq": 0}`, 0, topic.ErrNoCluster},
		{"nonsense", `+OK`, 0, errUnknown},
	} {
		st := &stream{}
		p, err := st.acknowledged(&nats.Msg{Data: []byte(test.answer)}, 0, nil)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || p.Offset != test.offset {
			t.Errorf("%s: offset %d, %v; want %d, %v", test.name, p.Offset, err, test.offset, test.want)
		}
	}
}

// White space at the end of a header is lost, and line breaks in it.
func TestKeysThatDifferInWhiteSpaceAreNotTheSame(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, topic.Rule{Match: ">", History: 100})
	long := strings.Repeat("\n", 128)
	by := map[topic.Position]string{}
	for _, key := range []string{"x", "x ", "x  ", "x\t", "x\n", "x\r\n", " x", "\nx", " ", "\n", "a b", "a\nb", "a\rb", "a\tb", "a%0Ab", "a+b", "x+", "x%20", "x%", "%x", "x\v", "x\u00a0", "\x00", "\x7f", "é", long, long[1:]} {
		one, err := n.store("a", "", key)
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if other, known := by[one]; known {
			t.Errorf("%q and %q are the same", key, other)
		}
		by[one] = key
		if again, err := n.store("a", "", key); err != nil || again != one {
			t.Errorf("%q again: %v, %v, want %v", key, again, err, one)
		}
	}
}

func TestAKeyThatAHeaderLeavesAloneIsWrittenAsBefore(t *testing.T) {
	for _, key := range []string{"x", " x", "a b", "a\tb", "100%", "%0A", "é", "x\u00a0"} {
		if got := messageID("e", "", "a.b", key); got != "e a.b "+key {
			t.Errorf("%q is written %q", key, got)
		}
	}
}

// A key belongs to its publisher, at all nodes.
func TestKeysOfPublishersAreNotTheSame(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: ">", History: 100}
	nodes := []*testNode{join(t, o, rule), join(t, o, rule)}
	nodes[0].knows(2)
	nodes[1].knows(2)
	by := map[topic.Position]string{}
	for _, publisher := range []string{"", "client:/ws", "client:/ws#alice", "client:/ws#bob", "client:/ws#" + strings.Repeat("a", 5000)} {
		for _, key := range []string{"order-18", "order-18 ", "order 18\n"} {
			one, err := nodes[0].storeBy(publisher, "a", "", key)
			if err != nil {
				t.Fatal(err)
			}
			if other, known := by[one]; known {
				t.Errorf("%.20q of %.20q is %s", key, publisher, other)
			}
			by[one] = publisher + key
			if again, err := nodes[1].storeBy(publisher, "a", "", key); err != nil || again != one {
				t.Errorf("%.20q of %.20q at another node: %v, %v, want %v", key, publisher, again, err, one)
			}
		}
	}
}

// While a node of an older version is there, or was not long ago, a client that comes from it with a key must be known
// at others, and the other way round. All nodes agree on it, also those that come later.
func TestKeysWhileANodeOfAnOlderVersionIsThere(t *testing.T) {
	url := urlOf(natsAt(t, -1, t.TempDir()))
	o := Options{NATS: NATS{URL: url}}
	rule := topic.Rule{Match: ">", History: 100}
	one := join(t, o, rule)
	if one.peers.sharesKeys(time.Now()) {
		t.Fatal("a node that has heard of no other shares keys")
	}
	older := map[string]any{"wire": 1, "info": topic.NodeInfo{ID: "older", Name: "older"}, "count": 1, "rules": one.rules()}
	text, err := json.Marshal(older)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish(one.names.heartbeats(), text); err != nil {
		t.Fatal(err)
	}
	one.knows(2)
	two := join(t, o, rule) // which does not hear of the older one itself
	two.knows(2)
	var places []topic.Position
	for _, n := range []*testNode{one, two} {
		for _, publisher := range []string{"client:/ws", "client:/ws#alice", ""} {
			at, err := n.storeBy(publisher, "a", "", "key")
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, at)
		}
	}
	if len(slices.Compact(places)) != 1 {
		t.Errorf("they are not the same: %v", places)
	}
	for _, n := range []*testNode{one, two} {
		if !n.peers.sharesKeys(time.Now().Add(dedupWindow - 10*time.Second)) {
			t.Error("it ends before JetStream has forgotten the keys of the older node")
		}
		if n.peers.sharesKeys(time.Now().Add(dedupWindow + time.Second)) {
			t.Error("it does not end")
		}
	}
}

// Nodes that tell each other how long it goes on do not prolong it.
func TestSharedKeysEnd(t *testing.T) {
	now := time.Now()
	var nodes [2]peers
	nodes[0].share(&heartbeat{Info: topic.NodeInfo{Heard: now}})
	first := nodes[0].shared
	for range 600 {
		for i := range nodes {
			seconds := nodes[i].sharedSeconds(now)
			now = now.Add(500 * time.Millisecond) // on its way
			nodes[1-i].share(&heartbeat{Info: topic.NodeInfo{Heard: now}, SharedKeys: &seconds})
		}
	}
	if nodes[0].sharesKeys(now) || nodes[1].sharesKeys(now) || nodes[0].shared.Sub(first) > time.Second {
		t.Errorf("it goes on: %v and %v after %v", nodes[0].shared.Sub(now), nodes[1].shared.Sub(now), now.Sub(first))
	}
}

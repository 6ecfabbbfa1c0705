package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// Alice is of a version that comes later, and says everything in a format that bob does not know. He counts it, says so
// once, and goes on with whatever he can read. Of a topic with history he gives what comes after it, and does not
// pretend that this is all.
func TestMessagesOfAnotherVersionAreCountedAndLogged(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: "kept.>", History: 10}
	alice, bob := join(t, o, rule), join(t, o, rule)
	bob.follow("plain", "kept.a", "kept.b")
	st, names := bob.streams[0], bob.names
	stored := func(topic string) string { return names.store(st.id, st.epochNow(), topic) }
	if _, err := alice.store("kept.a", "before", ""); err != nil { // 1
		t.Fatal(err)
	}

	for i, one := range []struct {
		what, subject, text string
		stored              bool
	}{
		{"a passing message", names.passing("plain"), "\x02something else altogether", false},
		{"one without an end", names.passing("plain"), "\x01", false},
		{"an empty one", names.passing("plain"), "", false},
		{"numbers that do not end", names.passing("plain"), "\x01\x00" + string(make([]byte, 16)) + "\xff\xff\xff", false},
		{"a broadcast", names.broadcast("/broadcast"), "\x02", false},
		{"a question", names.questions(), "\x02", false},
		{"a question that is too short", names.questions(), "\x01\x7f", false},
		{"a heartbeat", names.heartbeats(), "\x02", false},
		{"a heartbeat without a node", names.heartbeats(), "{}", false},
		{"a stored message", stored("kept.a"), "\x02\x00after", true},                           // 2
		{"a stored message without a format", stored("kept.b"), "", true},                       // 3
		{"a stored message of a format that there is not", stored("kept.b"), "\x01\x63x", true}, // 4
	} {
		m := &nats.Msg{Subject: one.subject, Data: []byte(one.text), Reply: "nobody"}
		if one.stored {
			if ack, err := alice.nc.Request(one.subject, m.Data, patience); err != nil || isStatus(ack, "503") {
				t.Fatal(ack, err)
			}
		} else if err := alice.nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		eventually(t, one.what+" is counted", func() bool { return bob.Stats().Foreign == uint64(i+1) })
	}
	eventually(t, "the log says so", func() bool { return bob.log.has("cannot read") })

	check := func(topic string, after, since, last uint64, want ...string) {
		t.Helper()
		k, err := bob.load(topic, after)
		if err != nil || k.Since != since || k.Last != last || !slices.Equal(payloads(k.Messages), want) {
			t.Errorf("%s after %d: since %d, last %d, %v, %v; want since %d, last %d, %v", topic, after, k.Since, k.Last, payloads(k.Messages), err,
				since, last, want)
		}
	}
	check("kept.a", 0, 2, 2)
	check("kept.a", 1, 2, 2)
	check("kept.a", 2, 2, 2)
	check("kept.a", 9, 9, 4) // the stream ends there
	check("kept.b", 0, 4, 4)
	if _, err := alice.store("kept.a", "later", ""); err != nil { // 5
		t.Fatal(err)
	}
	check("kept.a", 0, 2, 5, "later")
	check("kept.a", 1, 2, 5, "later")
	check("kept.a", 2, 2, 5, "later")
	check("kept.a", 5, 5, 5)
	eventually(t, "what can be read comes", func() bool {
		list := bob.allKept()
		return len(list) == 2 && list[1].payload == "later" && list[1].prev == 2 // so that the hole shows
	})
	if err := alice.publish("plain", "x", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "passing messages come, too", func() bool { return len(bob.all()) == 1 })
}

// A node's clock is days off. It is one of the cluster as any other, and what it publishes comes. How old kept messages
// are goes by JetStream's clock.
func TestClocksNeedNotAgree(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	bob, cathy := join(t, o), join(t, o)
	bob.follow("plain")
	for i, off := range []time.Duration{48 * time.Hour, -48 * time.Hour} {
		wrong := time.Now().Add(off)
		e := envelope{from: uint64(i + 1), incarnation: 1, seq: 1, at: wrong.UnixMilli()}
		text := e.seal([]byte("x"))
		setCount(text, 1)
		if err := cathy.nc.Publish(bob.names.passing("plain"), text); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it comes", func() bool { return len(bob.all()) == i+1 })

		id := idOf(uint64(i + 1))
		known := func() bool {
			return slices.ContainsFunc(bob.Nodes(), func(n topic.NodeInfo) bool { return n.ID == id && time.Since(n.Heard) < time.Minute })
		}
		text, err := json.Marshal(heartbeat{Wire: wireVersion, Count: 1, Rules: bob.rules(), Info: topic.NodeInfo{ID: id, Heard: wrong, Started: wrong}})
		if err != nil {
			t.Fatal(err)
		}
		if err := cathy.nc.Publish(bob.names.heartbeats(), text); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob knows the node", known)
		bob.silent(time.Now().Add(silence / 5))
		if !known() {
			t.Error("a node is forgotten for what its clock says")
		}
		bob.silent(time.Now().Add(2 * silence))
		if known() {
			t.Error("a node that is silent is not forgotten for what its clock says")
		}
	}

	alice := join(t, o, topic.Rule{Match: "kept", History: 10, MaxAge: time.Hour})
	if _, err := alice.store("kept", "x", ""); err != nil {
		t.Fatal(err)
	}
	ageOf := func() time.Duration {
		k, err := alice.load("kept", 0)
		if err != nil || len(k.Messages) != 1 {
			t.Fatal(k, err)
		}
		return k.Now.Sub(k.Messages[0].Time)
	}
	if age := ageOf(); age < 0 || age > patience {
		t.Errorf("a message is %v old", age)
	}
	state, err := alice.readState(alice.streams[0], &nats.Msg{Data: fmt.Appendf(nil, `{"ts":%q}`, time.Now().Add(48*time.Hour).Format(time.RFC3339Nano))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	bob.setClock(state.now) // he has nothing to ask JetStream for
	if ahead := time.Until(bob.clock()); ahead < 47*time.Hour || ahead > 48*time.Hour {
		t.Errorf("JetStream's clock is %v ahead", ahead)
	}
	alice.setClock(state.now)
	eventually(t, "it is asked again", func() bool { return ageOf() < patience })
}

// Whatever comes is read, or refused.
func FuzzOpen(f *testing.F) {
	e := envelope{from: 1, count: 2, incarnation: 3, seq: 4, at: -5, format: 1}
	f.Add(e.seal([]byte("x")))
	f.Add([]byte{wireVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, payload, err := open(b); err == nil {
			again := e.seal(payload)
			setCount(again, e.count)
			if e2, payload2, err := open(again); err != nil || e2 != e || string(payload2) != string(payload) {
				t.Errorf("%+v became %+v, %v", e, e2, err)
			}
		}
		if m, err := openKept("a", 1, time.Now().Format(time.RFC3339Nano), b); err == nil {
			if again := sealKept(&topic.Publication{Format: m.Format, Payload: m.Payload}); string(again) != string(b) {
				t.Errorf("%q became %q", b, again)
			}
		}
		if from, body, err := readAnswer(b); err == nil && len(from)+len(body)+1 != len(b) {
			t.Errorf("%q has %q and %q", b, from, body)
		}
	})
}

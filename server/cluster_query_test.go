package server

import (
	"fmt"
	"strings"
	"testing"

	"carillon/server/internal/admin"
	"carillon/server/internal/hub"
)

func internalOf(opts Options) Options {
	opts.Internal.Listen = "127.0.0.1:0"
	return opts
}

// Every server knows of all the others; one without a cluster knows itself.
func TestNodes(t *testing.T) {
	var page struct {
		Node  string
		Nodes []NodeInfo
	}
	alone := withAPI(t, Options{})
	call(t, alone, "GET", "/v1/nodes", "").is(t, 200).into(t, &page)
	if page.Node != "self" || len(page.Nodes) != 1 || page.Nodes[0].State != "ready" {
		t.Errorf("%+v", page)
	}
	list := clustered(t, newFakeNet(1), 3, internalOf(topics()), unchanged)
	dial(t, list[1], "/ws")
	eventually(t, "she is there", func() bool { return list[1].Count() == 1 })
	list[2].SetMaintenance(true)
	call(t, list[0], "GET", "/v1/nodes", "").is(t, 200).into(t, &page)
	got := ""
	for _, n := range page.Nodes {
		got += fmt.Sprintf("%s %s %d, ", n.ID, n.State, n.Connections)
	}
	if want := "node1 ready 0, node2 ready 1, node3 unready 0, "; got != want || page.Node != "node1" {
		t.Errorf("%s: %s, want %s", page.Node, got, want)
	}
}

// How many are subscribed, and who, is asked of all servers. One that does not answer is not passed over in silence.
func TestClusterSubscribers(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 3, internalOf(topics(TopicRule{Match: "log", History: 10})), unchanged)
	for _, topic := range []string{"log", "room"} {
		var conns []*client
		for i := range 5 {
			c := dial(t, list[i%2], "/ws", speakJSON)
			c.subscribed(topic)
			conns = append(conns, c)
		}
		for i, s := range list {
			got := string(call(t, s, "GET", "/v1/topics/"+topic, "").is(t, 200).body)
			if !strings.Contains(got, `"subscribers":5`) || !strings.Contains(got, `"complete":true`) {
				t.Errorf("at server %d: %s", i+1, got)
			}
		}
		got := conns[0].ask(`{"id":1,"presence":{"topic":%q}}`, topic)
		ids := map[string]bool{}
		for _, c := range got.Present.Connections {
			ids[c.ID] = true
		}
		if got.Present.Count != 5 || len(ids) != 5 || !strings.Contains(got.text, `"complete":true`) {
			t.Error(got.text)
		}
		n.set(func() { fakeOf(list[1]).mute = true })
		if got := string(call(t, list[0], "GET", "/v1/topics/"+topic, "").is(t, 200).body); !strings.Contains(got, `"subscribers":3`) || !strings.Contains(got, `"complete":false`) {
			t.Error(got)
		}
		if got := conns[0].ask(`{"id":2,"presence":{"topic":%q}}`, topic); got.Present.Count != 3 || !strings.Contains(got.text, `"complete":false`) {
			t.Error(got.text)
		}
		n.set(func() { fakeOf(list[1]).mute = false })
	}
	call(t, list[0], "GET", "/v1/topics/none", "").isProblem(t, 404, "no-such-topic", "")
	fakeOf(list[0]).cut(true)
	if got := string(call(t, list[0], "GET", "/v1/topics/room", "").is(t, 200).body); !strings.Contains(got, `"subscribers":3`) || !strings.Contains(got, `"complete":false`) {
		t.Error(got)
	}
	if m := scrape(t, list[0]); m["carillon_cluster_queries_total"] != 10 || m["carillon_cluster_queries_partial_total"] != 5 {
		t.Errorf("%v questions, %v not answered by all", m["carillon_cluster_queries_total"], m["carillon_cluster_queries_partial_total"])
	}
}

// However many ask who is subscribed to a topic, the others are asked once at a time, and every answer was given after
// they asked.
func TestClusterPresenceIsAskedOnceForMany(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, internalOf(topics()), unchanged)
	var conns []*client
	for range 20 {
		conns = append(conns, dial(t, list[0], "/ws", speakJSON))
	}
	asks := func() uint64 { return list[0].hub.Remote.Counts().Queries.Load() }
	hold := make(chan struct{})
	n.set(func() { n.holdAnswers = hold })
	conns[0].send(`{"id":1,"presence":{"topic":"room"}}`)
	eventually(t, "the first one has asked", func() bool {
		asked := false
		n.set(func() { asked = fakeOf(list[1]).asked == 1 })
		return asked
	})
	dial(t, list[1], "/ws?topic=room")
	subscribers(t, list[1], "room", 1)
	for _, c := range conns[1:] {
		c.send(`{"id":1,"presence":{"topic":"room"}}`)
	}
	eventually(t, "the others wait", func() bool {
		q := &list[0].hub.Remote.(*hub.Follower).Presence
		q.Mu.Lock()
		defer q.Mu.Unlock()
		return len(q.Waiting.Get("room")) == len(conns)-1
	})
	n.set(func() { n.holdAnswers = nil })
	close(hold)
	for i, c := range conns {
		if got := c.said(); got.Present == nil || got.Present.Count != min(i, 1) {
			t.Errorf("client %d: %s", i, got.text)
		}
	}
	if n := asks(); n != 2 {
		t.Errorf("%d questions for %d clients", n, len(conns))
	}
	eventually(t, "nothing is kept", func() bool {
		q := &list[0].hub.Remote.(*hub.Follower).Presence
		q.Mu.Lock()
		defer q.Mu.Unlock()
		return q.Waiting.Len() == 0
	})
}

// No client is told that there is no such topic while that is not known.
func TestClusterTopicThatMayExist(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 2, internalOf(topics(TopicRule{Match: "log.*", History: 10})), unchanged)
	ask := func(topic string) answer { return call(t, list[0], "GET", "/v1/topics/"+topic, "") }
	dial(t, list[1], "/ws", speakJSON).subscribed("room")
	for _, topic := range []string{"log.a", "log.b"} {
		mustPublish(t, list[1], topic, "x")
	}
	fakeOf(list[0]).cut(true)
	ask("room").isProblem(t, 503, "no-cluster", "not every server answered")
	for _, topic := range []string{"log.a", "log.none"} {
		if a := ask(topic).isProblem(t, 503, "no-cluster", "the cable is out"); a.header.Get("Retry-After") == "" {
			t.Error("the answer does not say when to try again")
		}
	}
	fakeOf(list[0]).cut(false)
	n.set(func() { n.failing = 1 })
	ask("log.a").isProblem(t, 503, "no-cluster", "not to be had")
	n.set(func() { n.failing = 0 })

	t.Run("another server has it", func(t *testing.T) {
		if past, err := list[1].History("log.b", Start{Last: 1}, 1); err != nil || len(past.Messages) != 1 {
			t.Fatal(past, err)
		}
		n.set(func() { n.failing = 1 })
		defer n.set(func() { n.failing = 0 })
		if got := string(ask("log.b").is(t, 200).body); !strings.Contains(got, `"subscribers":0,"history":1`) || !strings.Contains(got, `"complete":true`) {
			t.Error(got)
		}
	})
	t.Run("one does not answer", func(t *testing.T) {
		n.set(func() { fakeOf(list[1]).mute = true })
		defer n.set(func() { fakeOf(list[1]).mute = false })
		ask("room").isProblem(t, 503, "no-cluster", "not every server answered")
		ask("log.none").isProblem(t, 503, "no-cluster", "not every server answered")
		ask("log.a").is(t, 200)
	})
	for _, topic := range []string{"none", "log.none"} {
		ask(topic).isProblem(t, 404, "no-such-topic", "")
	}
}

// A connection has one id in the whole cluster, by which any server finds and closes it.
func TestClusterConnections(t *testing.T) {
	n := newFakeNet(1)
	list := clustered(t, n, 3, internalOf(topics()), unchanged)
	alice, bob := dial(t, list[0], "/ws", speakJSON), dial(t, list[1], "/ws", speakJSON)
	bob.subscribed("room")
	id := map[*Server]uint64{}
	for _, s := range list[:2] {
		for c := range s.Conns() {
			id[s] = c.ID()
		}
		if id[s] < 1<<32 || id[s] >= 1<<53 {
			t.Errorf("the id is %d", id[s])
		}
	}
	for i, s := range list {
		var info admin.Connection
		call(t, s, "GET", fmt.Sprintf("/v1/connections/%d", id[list[1]]), "").is(t, 200).into(t, &info)
		if info.Node != "node2" || info.ID != fmt.Sprint(id[list[1]]) || fmt.Sprint(info.Topics) != "[room]" {
			t.Errorf("at server %d: %+v", i+1, info)
		}
	}
	call(t, list[2], "DELETE", fmt.Sprintf("/v1/connections/%d?code=4000&reason=enough", id[list[1]]), "").is(t, 204)
	bob.wantClose(4000, "enough")
	path := fmt.Sprintf("/v1/connections/%d", id[list[0]])
	n.set(func() { fakeOf(list[0]).mute = true })
	call(t, list[2], "DELETE", path, "").isProblem(t, 503, "no-cluster", "not every server answered")
	n.set(func() { fakeOf(list[0]).mute = false })
	call(t, list[0], "DELETE", path, "").is(t, 204)
	alice.wantClose(1001, "")
	eventually(t, "they are gone", func() bool { return list[0].Count()+list[1].Count() == 0 })
	call(t, list[2], "GET", path, "").isProblem(t, 404, "no-such-connection", "is not open")
	var page struct{ Connections []admin.Connection }
	call(t, list[0], "GET", "/v1/connections", "").is(t, 200).into(t, &page)
	if len(page.Connections) != 0 {
		t.Errorf("%+v", page)
	}
}

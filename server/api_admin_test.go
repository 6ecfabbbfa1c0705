package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/admin"
)

// dialInternal opens a TCP connection to the internal interface.
func dialInternal(t testing.TB, s *Server) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.InternalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

type topicsPage struct {
	Topics []TopicInfo
	Next   string
}

// There are 250 topics. Page by page all are seen, by name, each once.
func TestAPITopics(t *testing.T) {
	s := withAPI(t, Options{Topics: []TopicRule{{Match: "odd.>", History: 10}}})
	var want []string
	for i := range 250 {
		name := fmt.Sprintf("%s.%d", [...]string{"even", "odd"}[i%2], i)
		want = append(want, name)
		if _, err := s.Publish(Publication{Topic: name, Payload: []byte("1234")}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1, 7, 100, 250, 1000} {
		var got []string
		after := ""
		for pages := 1; ; pages++ {
			var page topicsPage
			call(t, s, "GET", fmt.Sprintf("/v1/topics?limit=%d&after=%s", limit, after), "").is(t, 200).into(t, &page)
			for _, info := range page.Topics {
				got = append(got, info.Topic)
			}
			if after = page.Next; after == "" {
				if most := (249 + limit) / limit; pages != most {
					t.Errorf("%d pages of %d, want %d", pages, limit, most)
				}
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d have %d topics: %v", limit, len(got), got)
		}
	}
	var page topicsPage
	call(t, s, "GET", "/v1/topics?match=odd.*&limit=1000", "").is(t, 200).into(t, &page)
	if len(page.Topics) != 125 || page.Next != "" {
		t.Errorf("odd.* has %d topics", len(page.Topics))
	}
	if info := page.Topics[0]; info.Offset != 1 || info.Epoch == "" || info.History != 1 || info.HistoryBytes != 4 || info.Oldest != 1 {
		t.Errorf("%+v", info)
	}
	if a := call(t, s, "GET", "/v1/topics?match=none", "").is(t, 200); string(a.body) != `{"topics":[]}`+"\n" {
		t.Errorf("%s", a.body)
	}
	call(t, s, "GET", "/v1/topics?match=a..b", "").isProblem(t, 400, "invalid-topic", "level 2")
}

func TestAPITopic(t *testing.T) {
	s := withAPI(t, Options{Topics: []TopicRule{{Match: "a/b", History: 2}}})
	dial(t, s, "/ws?topic=a/b")
	eventually(t, "the client is subscribed", func() bool { return len(s.Subscribers("a/b")) == 1 })
	for range 3 {
		call(t, s, "POST", "/v1/topics/a%2Fb/messages", "12345").is(t, 200)
	}
	var info TopicInfo
	call(t, s, "GET", "/v1/topics/a%2Fb", "").is(t, 200).into(t, &info)
	if info.Topic != "a/b" || info.Offset != 3 || info.Epoch == "" || info.Subscribers != 1 || info.History != 2 || info.HistoryBytes != 10 || info.Oldest != 2 {
		t.Errorf("%+v", info)
	}
	call(t, s, "GET", "/v1/topics/none", "").isProblem(t, 404, "no-such-topic", `"none"`)
	call(t, s, "GET", "/v1/topics/*", "").isProblem(t, 400, "invalid-topic", "is a pattern")
	call(t, s, "GET", "/v1/topics/"+strings.Repeat("x", 256), "").isProblem(t, 400, "invalid-topic", "256 bytes")
	call(t, s, "GET", "/v1/topics/a?limit=1", "").isProblem(t, 400, "bad-request", "expected none")
}

// A service that was away reads what it has missed.
func TestAPIHistory(t *testing.T) {
	s := withAPI(t, Options{Topics: []TopicRule{{Match: "log", History: 5}}})
	for i := range 8 {
		call(t, s, "POST", "/v1/topics/log/messages", fmt.Sprintf("[%d]", i+1), asJSON).is(t, 200)
	}
	call(t, s, "POST", "/v1/topics/log/messages", "\xff", asBinary).is(t, 200)
	info, _ := s.Topic("log")
	for _, row := range []struct {
		name, query string
		recovered   bool
		offsets     []uint64
	}{
		{"all that is kept", "", true, []uint64{5, 6, 7, 8, 9}},
		{"the newest", "?limit=2", true, []uint64{8, 9}},
		{"after a position", "?since=6&epoch=" + info.Epoch, true, []uint64{7, 8, 9}},
		{"the first after a position", "?since=6&limit=1&epoch=" + info.Epoch, true, []uint64{7}},
		{"after the last", "?since=9&epoch=" + info.Epoch, true, nil},
		{"a gap", "?since=2&epoch=" + info.Epoch, false, []uint64{5, 6, 7, 8, 9}},
		{"another epoch", "?since=9&epoch=x", false, []uint64{5, 6, 7, 8, 9}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var got struct {
				Topic string
				Position
				Recovered bool
				Messages  []said
			}
			call(t, s, "GET", "/v1/topics/log/messages"+row.query, "").is(t, 200).into(t, &got)
			var offsets []uint64
			for _, m := range got.Messages {
				offsets = append(offsets, m.Offset)
			}
			if got.Topic != "log" || got.Offset != 9 || got.Epoch != info.Epoch || got.Recovered != row.recovered || !slices.Equal(offsets, row.offsets) {
				t.Errorf("%+v", got)
			}
		})
	}
	call(t, s, "GET", "/v1/topics/none/messages", "").is(t, 200)
	for query, words := range map[string]string{"since=1": "without epoch", "epoch=x": "without since", "since=x&epoch=x": "not an offset", "last=1": "unknown"} {
		call(t, s, "GET", "/v1/topics/log/messages?"+query, "").isProblem(t, 400, "bad-request", words)
	}
	call(t, s, "GET", "/v1/topics/a..b/messages", "").isProblem(t, 400, "invalid-topic", "")
}

type connectionsPage struct {
	Connections []admin.Connection
	Next        string
}

// allConnections goes through the pages.
func allConnections(t *testing.T, s *Server, limit int, between func()) (all []admin.Connection) {
	t.Helper()
	after := ""
	for {
		var page connectionsPage
		call(t, s, "GET", fmt.Sprintf("/v1/connections?limit=%d&after=%s", limit, after), "").is(t, 200).into(t, &page)
		all = append(all, page.Connections...)
		if after = page.Next; after == "" {
			return all
		}
		between()
	}
}

// Alice, bob and 20 others are connected. The pages show each of them once, also while other connections come and go.
func TestAPIConnections(t *testing.T) {
	s := withAPI(t, Options{})
	alice := dial(t, s, "/ws?topic=a&topic=b", speakJSON)
	alice.said()
	bob := dialRaw(t, s)
	bob.write([]byte("GET /ws?topic=c HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"))
	bob.response()
	for range 20 {
		dial(t, s, "/echo")
	}
	eventually(t, "all are there", func() bool { return s.Count() == 22 && len(s.Subscribers("b")) == 1 && len(s.Subscribers("c")) == 1 })
	var stay []string
	for _, c := range allConnections(t, s, 1000, func() {}) {
		stay = append(stay, c.ID)
	}
	if len(stay) != 22 {
		t.Fatalf("%d connections, want 22", len(stay))
	}
	for _, limit := range []int{1, 5, 22} {
		var seen []string
		last := uint64(0)
		for _, c := range allConnections(t, s, limit, func() { _ = dial(t, s, "/broadcast").conn.Close() }) {
			var id uint64
			if _, err := fmt.Sscan(c.ID, &id); err != nil || id <= last {
				t.Fatalf("connection %s after %d", c.ID, last)
			}
			last = id
			if slices.Contains(stay, c.ID) {
				seen = append(seen, c.ID)
			}
		}
		if !slices.Equal(seen, stay) {
			t.Errorf("pages of %d show %v, want %v", limit, seen, stay)
		}
	}
	eventually(t, "the others are gone", func() bool { return s.Count() == 22 })
	all := allConnections(t, s, 100, func() {})
	zero := 0
	if got, want := fmt.Sprintf("%+v", deref(all[0])), fmt.Sprintf("%+v", deref(admin.Connection{ID: "1", Address: alice.conn.LocalAddr().String(),
		Path: "/ws", Transport: "websocket", Subprotocol: "carillon.v1.json", Age: all[0].Age, QueuedBytes: &zero, Subscriptions: 2})); got != want {
		t.Errorf("alice is %s, want %s", got, want)
	}
	if b := all[1]; b.Transport != "sse" || b.Subprotocol != "" || b.Subscriptions != 1 {
		t.Errorf("bob is %+v", b)
	}

	var one admin.Connection
	call(t, s, "GET", "/v1/connections/1", "").is(t, 200).into(t, &one)
	if slices.Sort(one.Topics); !slices.Equal(one.Topics, []string{"a", "b"}) || one.Subscriptions != 2 {
		t.Errorf("alice is %+v", one)
	}
	call(t, s, "GET", "/v1/connections/999", "").isProblem(t, 404, "no-such-connection", "999")
	call(t, s, "GET", "/v1/connections/alice", "").isProblem(t, 400, "bad-request", `"alice"`)
	call(t, s, "GET", "/v1/connections?after=alice", "").isProblem(t, 400, "bad-request", `"alice"`)
	if got := allConnections(t, s, 100, func() {}); len(got) != 22 {
		t.Errorf("%d connections, want 22", len(got))
	}
	if a := call(t, s, "GET", "/v1/connections?after=18446744073709551615", "").is(t, 200); string(a.body) != `{"connections":[]}`+"\n" {
		t.Errorf("behind the last: %s", a.body)
	}
}

// Bob leaves between the first page and the second, and is not shown. Cathy comes, and is on the next list.
func TestAPIConnectionsBetweenPages(t *testing.T) {
	s := withAPI(t, Options{})
	dial(t, s, "/echo")
	bob := dial(t, s, "/echo")
	eventually(t, "they are there", func() bool { return s.Count() == 2 })
	all := allConnections(t, s, 1, func() {
		_ = bob.conn.Close()
		eventually(t, "he is gone", func() bool { return s.Count() == 1 })
	})
	if len(all) != 1 || all[0].ID != "1" {
		t.Errorf("%+v", all)
	}
	dial(t, s, "/echo")
	came := time.Now()
	eventually(t, "cathy is listed", func() bool {
		all := allConnections(t, s, 10, func() {})
		return len(all) == 2 && all[1].ID == "3"
	})
	if time.Since(came) > connIndexLife/2 {
		t.Error("it took a new list only when the old one had been forgotten")
	}
	s.index.made = s.index.made.Add(-connIndexLife)
	s.index.drop()
	if s.index.list != nil {
		t.Error("the list is kept for ever")
	}
}

// deref shows the number behind the pointer.
func deref(c admin.Connection) any {
	queued := *c.QueuedBytes
	c.QueuedBytes = nil
	return fmt.Sprint(c, queued)
}

// What waits for a client that does not read is shown.
func TestAPIQueuedBytes(t *testing.T) {
	s := withAPI(t, Options{})
	dial(t, s, "/broadcast")
	eventually(t, "something waits", func() bool {
		if err := s.Broadcast("/broadcast", Binary, make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		var one admin.Connection
		call(t, s, "GET", "/v1/connections/1", "").is(t, 200).into(t, &one)
		return *one.QueuedBytes > 0
	})
}

// A loop that is busy for long does not answer; the rest of what is known is shown all the same.
func TestAPIQueuedBytesOfABusyLoop(t *testing.T) {
	release, blocked := make(chan bool), make(chan bool)
	s := withAPI(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/block", Handler: Handler{
		Message: func(*Conn, codec.Opcode, []byte) { blocked <- true; <-release },
	}}}})
	c := dial(t, s, "/block")
	c.send("x")
	<-blocked
	defer close(release)
	var page connectionsPage
	a := call(t, s, "GET", "/v1/connections", "").is(t, 200)
	if a.into(t, &page); len(page.Connections) != 1 || page.Connections[0].QueuedBytes != nil || !strings.Contains(string(a.body), `"queuedBytes":null`) {
		t.Errorf("%s", a.body)
	}
}

// A connection that closes by itself while an operator closes it is closed, and the operator is told so while it is
// listed, twice if need be, or that it is not there. So is a client that asks about it.
func TestAPICloseConnectionThatCloses(t *testing.T) {
	blocked, release := make(chan struct{}), make(chan struct{})
	s := withAPI(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/block", Handler: Handler{Message: func(*Conn, Opcode, []byte) {
		close(blocked)
		<-release
	}}}}})
	one, other := dial(t, s, "/block"), dial(t, s, "/block")
	listed := s.index.find(s, 1)
	call(t, s, "GET", "/v1/connections", "").is(t, 200) // the list is kept for a while, with connections that have closed
	other.send("x")
	<-blocked
	one.write(masked(0x88, []byte{0x03, 0xe8})) // which the loop has not read
	for range 2 {
		call(t, s, "DELETE", "/v1/connections/1?code=4000", "").is(t, 204)
	}
	call(t, s, "GET", "/v1/connections/1", "").is(t, 200)
	close(release)
	if op, _, err := one.frame(); op != codec.OpClose || err != nil {
		t.Errorf("got %v, %v; want a close frame", op, err)
	}
	eventually(t, "it is gone", func() bool { return s.Count() == 1 })
	if err := listed.Close(4000, ""); err != nil { // found just before
		t.Error(err)
	}
	for range 2 {
		for _, method := range []string{"DELETE", "GET"} {
			call(t, s, method, "/v1/connections/1", "").isProblem(t, 404, "no-such-connection", "")
		}
	}
	list, more := backend{s}.Connections(0, 10)
	if len(list) != 1 || list[0].ID != "2" || more {
		t.Errorf("%+v are listed", list)
	}
	s.Shutdown(context.Background())
	eventually(t, "it has stopped", func() bool { return s.engine.AllShards()[0].Mail.IsClosed() })
	for _, id := range []uint64{1, 2} {
		if err := (backend{s}).CloseConnection(context.Background(), id, 4000, ""); !errors.Is(err, admin.ErrNoConnection) {
			t.Errorf("%d: %v", id, err)
		}
	}
}

// An operator closes connections, each with the code and reason that was asked for.
func TestAPICloseConnection(t *testing.T) {
	s := withAPI(t, Options{})
	for i, row := range []struct {
		query, reason string
		code          codec.CloseCode
	}{
		{"", "", 1001},
		{"?code=4000&reason=too%20many%20tabs", "too many tabs", 4000},
		{"?code=1008", "", 1008},
	} {
		c := dial(t, s, "/echo")
		path := fmt.Sprintf("/v1/connections/%d", i+1)
		call(t, s, "DELETE", path+row.query, "").is(t, 204)
		c.wantClose(row.code, row.reason)
		eventually(t, "it is gone", func() bool { return s.Count() == 0 })
		call(t, s, "DELETE", path, "").isProblem(t, 404, "no-such-connection", "")
	}
	alice := dial(t, s, "/echo")
	for query, words := range map[string]string{
		"code=999": "1000 to 1003", "code=1005": "1000 to 1003", "code=5000": "1000 to 1003", "code=70000": "1000 to 1003", "code=x": `"x"`,
		"reason=" + strings.Repeat("x", 124): "at most 123", "reason=%FF": "UTF-8", "why=x": "expected code, reason",
	} {
		call(t, s, "DELETE", "/v1/connections/4?"+query, "").isProblem(t, 400, "bad-request", words)
	}
	alice.send("still here")
	alice.want("still here")
}

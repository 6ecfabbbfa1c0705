package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/server"
)

// Ada comes, then Bob. All get everything, what they say themselves too, in one order and with the server's time. Bob
// leaves.
func TestChat(t *testing.T) {
	_, s := start(t, Options{})
	ada := arrive(t, s)
	w, _ := ada.enter("  Ada ", "a", nil)
	if w.Name != "Ada" || w.Text != "Welcome, Ada." || w.Idle != 300 || !slices.Equal(w.People, []string{"Ada"}) {
		t.Errorf("welcome %+v", w)
	}
	ada.want("join", "Ada", "")
	bob := arrive(t, s)
	if w, _ := bob.enter("Bob", "b", nil); !slices.Equal(w.People, []string{"Ada", "Bob"}) {
		t.Errorf("welcome %+v", w)
	}
	bob.want("join", "Ada", "") // from the history
	for _, p := range []*person{ada, bob} {
		p.want("join", "Bob", "")
	}
	before := time.Now().UnixMilli()
	ada.say("1", " hello\n")
	const script = "<script>alert(1)</script>"
	for _, p := range []*person{ada, bob} {
		if h := p.want("say", "Ada", "hello"); h.Time < before || h.Time > time.Now().UnixMilli() || h.Data.Ref != "1" {
			t.Errorf("got %+v", h)
		}
	}
	bob.say("2", script)
	for _, p := range []*person{ada, bob} {
		p.want("say", "Bob", script)
	}
	_ = bob.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
	if h := ada.want("leave", "Bob", ""); h.Data.Why != "left" {
		t.Errorf("got %+v", h)
	}
	cathy := arrive(t, s)
	if w, _ := cathy.enter("Cathy", "c", nil); !slices.Equal(w.People, []string{"Ada", "Cathy"}) {
		t.Errorf("welcome %+v", w)
	}
}

// All talk at once, from all loops, and all get the same.
func TestChatOrder(t *testing.T) {
	_, s := start(t, Options{})
	const people = 12
	logs := make([][]string, people)
	var all sync.WaitGroup
	var in sync.WaitGroup
	in.Add(people)
	for n := range people {
		all.Go(func() {
			p := arrive(t, s)
			p.enter(fmt.Sprint("p", n), fmt.Sprint(n), nil)
			in.Done()
			in.Wait()
			for i := range burst {
				p.say(fmt.Sprint(i), fmt.Sprint(n, " says ", i))
			}
			last := uint64(0)
			for len(logs[n]) < people*burst {
				h := p.next()
				if last != 0 && h.Offset != last+1 {
					t.Errorf("%d after %d", h.Offset, last)
				}
				if last = h.Offset; h.Data.Kind == "say" {
					logs[n] = append(logs[n], h.Data.Text)
				}
			}
		})
	}
	all.Wait()
	for n := range logs {
		if !slices.Equal(logs[n], logs[0]) {
			t.Errorf("%d heard %q, 0 heard %q", n, logs[n], logs[0])
		}
	}
}

func TestIdlePeopleAreShownOut(t *testing.T) {
	_, s := start(t, Options{Idle: 3 * time.Second})
	ada, bob := arrive(t, s), arrive(t, s)
	ada.enter("Ada", "a", nil)
	bob.enter("Bob", "b", nil)
	ada.want("join", "Ada", "")
	ada.want("join", "Bob", "")
	for i := range 8 { // longer than Bob may be silent
		ada.say(fmt.Sprint(i), "still here")
		time.Sleep(500 * time.Millisecond)
	}
	for {
		h := ada.next()
		if h.Data.Kind == "leave" {
			if h.Data.Name != "Bob" || h.Data.Why != "idle" {
				t.Errorf("got %+v", h.Data)
			}
			break
		}
	}
	for {
		_, err := bob.listen()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			if closed.Code != int(closeIdle) || closed.Text != "you were silent for 3 seconds" {
				t.Error(closed)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdleTimesAreSaidInWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		5 * time.Minute: "5 minutes", time.Minute: "1 minute", 90 * time.Second: "2 minutes", time.Second: "1 second", 10 * time.Second: "10 seconds",
	} {
		if got := words(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	_, s := start(t, Options{})
	for _, c := range []struct{ name, want string }{
		{"Ada", "Ada"},
		{"ada", "ada 2"},
		{"ADA", "ADA 3"},
		{" Ada  \t Lovelace ", "Ada Lovelace"},
		{"\u202egnirts\x00", "gnirts"},
		{"", ""},
		{" \u200b ", ""},
		{strings.Repeat("é", 32), strings.Repeat("é", 32)},
		{strings.Repeat("É", 32), strings.Repeat("É", 30) + " 2"},
		{strings.Repeat("é", 33), ""},
		{"👩\u200d💻", "👩\u200d💻"},
		{"<b>", "<b>"},
	} {
		p := arrive(t, s)
		if c.want != "" {
			w, _ := p.enter(c.name, c.name, nil)
			if w.Name != c.want {
				t.Errorf("%q is %q, want %q", c.name, w.Name, c.want)
			}
			if told := strings.Contains(w.Text, "already"); told != (w.Name == "ada 2" || w.Name == "ADA 3" || strings.HasSuffix(w.Name, "É 2")) {
				t.Errorf("%q is told %q", c.name, w.Text)
			}
			continue
		}
		p.send(map[string]any{"join": joining{c.name, "x", nil}})
		if h := p.hear(); h.Refused == nil || h.Refused.Code != "bad_name" {
			t.Errorf("%q: %+v", c.name, h)
		}
	}
}

func TestBadInput(t *testing.T) {
	_, s := start(t, Options{})
	p := arrive(t, s)
	for _, c := range []struct{ name, text, code string }{
		{"no JSON", `hello`, "bad_request"},
		{"an array", `[]`, "bad_request"},
		{"nothing", `{}`, "bad_request"},
		{"both", `{"join":{"name":"Ada","session":"a"},"say":{"text":"x"}}`, "bad_request"},
		{"a number for a name", `{"join":{"name":1}}`, "bad_request"},
		{"no session", `{"join":{"name":"Ada"}}`, "bad_request"},
		{"a long session", `{"join":{"name":"Ada","session":"` + strings.Repeat("a", 65) + `"}}`, "bad_request"},
		{"talking before joining", `{"say":{"ref":"1","text":"x"}}`, "bad_request"},
		{"very many members", `{` + strings.Repeat(`"say":{},`, 100) + `"say":{}}`, "bad_request"},
		{"a huge message", `{"say":{"text":"` + strings.Repeat("x", maxPayload) + `"}}`, "too_long"},
	} {
		p.sendText(c.text)
		if h := p.hear(); h.Refused == nil || h.Refused.Code != c.code {
			t.Errorf("%s: %+v", c.name, h)
		}
	}
	if err := p.conn.WriteMessage(websocket.BinaryMessage, []byte(`{"join":{"name":"Ada","session":"a"}}`)); err != nil {
		t.Fatal(err)
	}
	if h := p.hear(); h.Refused == nil {
		t.Errorf("binary: %+v", h)
	}
	p.enter("Ada", "a", nil)
	p.want("join", "Ada", "")
	for _, c := range []struct{ name, text, code string }{
		{"joining twice", `{"join":{"name":"Ada","session":"a"}}`, "bad_request"},
		{"nothing to say", `{"say":{"ref":"1","text":" \n "}}`, "empty"},
		{"too much to say", `{"say":{"ref":"1","text":"` + strings.Repeat("é", maxText+1) + `"}}`, "too_long"},
		{"a long ref", `{"say":{"ref":"` + strings.Repeat("a", 33) + `","text":"x"}}`, "bad_request"},
	} {
		p.sendText(c.text)
		if h := p.hear(); h.Refused == nil || h.Refused.Code != c.code {
			t.Errorf("%s: %+v", c.name, h)
		}
	}
	long := strings.Repeat("é", maxText)
	p.say("1", long)
	p.want("say", "Ada", long)
	brackets := strings.Repeat(`{[,:"\`, maxTokens)
	p.say("3", brackets)
	p.want("say", "Ada", brackets)
	p.say("2", "a\u202eb\x07c\td\ne")
	p.want("say", "Ada", "abc\td\ne")
}

func TestRate(t *testing.T) {
	_, s := start(t, Options{})
	p := arrive(t, s)
	p.enter("Ada", "a", nil)
	p.want("join", "Ada", "")
	for i := range burst + 1 {
		p.say(fmt.Sprint(i), fmt.Sprint(i))
	}
	said, refused := 0, 0
	for range burst + 1 {
		switch h := p.hear(); {
		case h.Topic != "":
			said++
		case h.Refused != nil && h.Refused.Code == "too_fast" && h.Refused.Ref == fmt.Sprint(burst):
			refused++
		}
	}
	if said != burst || refused != 1 {
		t.Errorf("%d were sent and %d refused", said, refused)
	}
	time.Sleep(1100 * time.Millisecond)
	p.say("later", "later")
	p.want("say", "Ada", "later")

	for i := range 2 * maxStrikes { // no person types so fast
		if p.conn.WriteJSON(map[string]any{"say": saying{fmt.Sprint("flood", i), "x"}}) != nil {
			break
		}
	}
	for {
		_, err := p.listen()
		if err == nil {
			continue
		}
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != websocket.ClosePolicyViolation {
			t.Error(err)
		}
		return
	}
}

// Ada's line breaks, and the server has not noticed yet. She comes back from the same page: she is herself, not Ada 2,
// and hears what she missed. What she says again because she does not know whether it was heard is heard once.
func TestComingBack(t *testing.T) {
	_, s := start(t, Options{})
	ada, bob := arrive(t, s), arrive(t, s)
	_, sub := ada.enter("Ada", "a", nil)
	ada.want("join", "Ada", "")
	bob.enter("Bob", "b", nil)
	bob.want("join", "Ada", "")
	bob.want("join", "Bob", "")
	joined := ada.want("join", "Bob", "")
	ada.say("1", "did you hear this?")
	bob.want("say", "Ada", "did you hear this?")
	bob.say("2", "yes")
	bob.want("say", "Bob", "yes")

	again := arrive(t, s)
	w, sub := again.enter("Ada", "a", &server.Position{Offset: joined.Offset, Epoch: sub.Subscribed.Epoch})
	if w.Name != "Ada" || !slices.Equal(w.People, []string{"Ada", "Bob"}) || !*sub.Subscribed.Recovered {
		t.Errorf("%+v %+v", w, sub.Subscribed)
	}
	again.say("1", "did you hear this?")
	again.say("3", "good")
	for _, p := range []*person{again} {
		p.want("say", "Ada", "did you hear this?")
		p.want("say", "Bob", "yes")
		p.want("say", "Ada", "good")
	}
	bob.want("say", "Ada", "good")
	for {
		_, err := ada.listen()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			if closed.Code != int(closeReplaced) {
				t.Error(closed)
			}
			break
		}
	}

	third := arrive(t, s)
	third.enter("Augusta", "a", nil) // with another name, which all guests are told
	if h := bob.want("leave", "Ada", ""); h.Data.Why != "left" {
		t.Errorf("%+v", h)
	}
	bob.want("join", "Augusta", "")
}

func TestTheRoomHasLimits(t *testing.T) {
	d, s := start(t, Options{})
	for i := range maxPeople {
		arrive(t, s).enter(fmt.Sprint("p", i), fmt.Sprint(i), nil)
	}
	p := arrive(t, s)
	p.send(map[string]any{"join": joining{"one more", "x", nil}})
	if h := p.hear(); h.Refused == nil || h.Refused.Code != "full" {
		t.Errorf("%+v", h)
	}
	d.room.sweep(time.Now().Add(joinPatience + time.Second)) // and a client that says no name must go
	if _, err := p.listen(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Error(err)
	}
}

// The board is published while it has a subscriber, and only then.
func TestBoard(t *testing.T) {
	_, s := start(t, Options{})
	offset := func() uint64 {
		topic, _ := s.Topic(boardTopic)
		return topic.Offset
	}
	time.Sleep(1500 * time.Millisecond)
	if n := offset(); n != 0 {
		t.Errorf("%d were published without a subscriber", n)
	}
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/demo/live?topic=demo.stats", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		var got map[string]float64
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if err := conn.ReadJSON(&got); err != nil {
			t.Fatal(err)
		}
		if got["connections"] != 1 || got["memory"] < 1<<20 {
			t.Errorf("sample %d: %v", i, got)
		}
		if _, rates := got["bytesOut"]; rates != (i > 0) {
			t.Errorf("sample %d: %v", i, got)
		}
	}
	_ = conn.Close()
	eventually(t, "no subscriber is left", func() bool { topic, _ := s.Topic(boardTopic); return topic.Subscribers == 0 })
	n := offset()
	time.Sleep(1500 * time.Millisecond)
	if now := offset(); now > n+1 {
		t.Errorf("%d were published without a subscriber", now-n)
	}
}

// Clients may publish probes and nothing else.
func TestBoardAccess(t *testing.T) {
	_, s := start(t, Options{})
	dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}}
	conn, _, err := dialer.Dial("ws://"+s.Addr().String()+"/demo/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range []struct{ request, want string }{
		{`{"id":1,"publish":{"topic":"demo.stats","data":{"connections":0}}}`, "not_allowed"},
		{`{"id":2,"publish":{"topic":"demo.chat","data":{"kind":"say"}}}`, "not_allowed"},
		{`{"id":3,"subscribe":{"topic":"demo.chat"}}`, "not_allowed"},
		{`{"id":4,"subscribe":{"topic":"demo.probe.>"}}`, "not_allowed"},
		{`{"id":5,"publish":{"topic":"demo.probe.x","data":1}}`, ""},
	} {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(c.request)); err != nil {
			t.Fatal(err)
		}
		var reply struct {
			Error     struct{ Code string }
			Published json.RawMessage
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if err := conn.ReadJSON(&reply); err != nil || reply.Error.Code != c.want || (reply.Published != nil) != (c.want == "") {
			t.Errorf("%s: %+v %v", c.request, reply, err)
		}
	}
}

package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/codec"
	"carillon/server"
)

// crowd returns a room with people who are called p0, p1, ..., without connections, and its server, which does not run.
func crowd(t testing.TB, people int) (*room, *server.Server) {
	t.Helper()
	d := New(Options{})
	s, err := server.New(server.Options{Listen: "127.0.0.1:0", Endpoints: d.Endpoints(), Topics: []server.TopicRule{{Match: chatTopic, History: 10_000}}})
	if err != nil {
		t.Fatal(err)
	}
	d.server.Store(s)
	for i := range people {
		if _, err := d.room.enter(fmt.Sprint("p", i)); err != nil {
			t.Fatal(err)
		}
	}
	for len(d.room.news.joins) > 0 {
		d.room.news.rate = bucket{}
		if err := d.room.flush(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	return d.room, s
}

// enter has a guest connect and join. The name is the session, too.
func (r *room) enter(name string) (*server.Conn, error) {
	c := new(server.Conn)
	r.open(c)
	_, err := r.admit(c, name, name)
	return c, err
}

func (r *room) leave(c *server.Conn) {
	r.closed(c, &server.CloseError{Remote: true, Code: codec.CloseNormal})
}

// One client comes, is refused, and leaves: it costs the same with few people as with many, and a full room's
// refusal next to nothing.
func TestJoiningCostsTheSameInACrowd(t *testing.T) {
	allocs := func(people, waiting int, do func(r *room)) float64 {
		r, _ := crowd(t, people)
		for range waiting {
			r.open(new(server.Conn))
		}
		return testing.AllocsPerRun(200, func() { do(r) })
	}
	joining := func(r *room) {
		c, err := r.enter("Ada")
		if err != nil {
			t.Fatal(err)
		}
		r.leave(c)
	}
	if few, many := allocs(1, 0, joining), allocs(maxPeople-1, maxWaiting-1, joining); many > few+4 {
		t.Errorf("joining and leaving allocates %v times with few people, %v times with many", few, many)
	}
	refusal := func(r *room) {
		c, err := r.enter("Ada")
		var no *refusal
		if !errors.As(err, &no) || no.Code != "full" {
			t.Fatal(err)
		}
		r.closed(c, nil)
	}
	if n := allocs(maxPeople, maxWaiting-1, refusal); n > 12 {
		t.Errorf("a refusal in a full room allocates %v times", n)
	}
}

// A crowd of the same name, and of the numbers behind it, costs the next of that name a few tries.
func TestNamesakesCostFewTries(t *testing.T) {
	names := map[string]bool{}
	most, tries := 0, 0
	for range maxPeople {
		tries = 0
		free, key := freeName("Ada", func(key string) bool { tries++; return names[key] })
		if names[key] || key != strings.ToLower(free) {
			t.Fatalf("%q is taken", free)
		}
		names[key] = true
		most = max(most, tries)
	}
	if most > 20 { // ten random numbers are taken with a chance of 50^-10
		t.Errorf("a name took %d tries", most)
	}
}

// Connections that do not join are not kept without bound. The oldest goes first, so that it is not those that are
// about to join.
func TestConnectionsThatDoNotJoinAreBounded(t *testing.T) {
	d, s := start(t, Options{})
	oldest := arrive(t, s)
	eventually(t, "the oldest is there", func() bool { return d.room.count() == 1 })
	for range maxWaiting {
		arrive(t, s)
	}
	if _, err := oldest.listen(); !websocket.IsCloseError(err, websocket.CloseTryAgainLater) {
		t.Error(err)
	}
	if n := d.room.count(); n > maxWaiting {
		t.Errorf("%d connections are kept", n)
	}
	late := arrive(t, s)
	late.enter("Ada", "a", nil)
}

func (r *room) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.guests.byConn)
}

// Clients come and go as fast as they can: the others are told of a few a second, and in the end know who is here.
func TestComingAndGoingIsAnnouncedSomeTimesASecond(t *testing.T) {
	begin := time.Now()
	r, s := crowd(t, 10)
	var last []*server.Conn
	var watcher welcome
	for i := range 2000 {
		if i == 1000 {
			r.leave(last[0])
			last = last[1:]
			c := new(server.Conn)
			r.open(c)
			var err error
			if watcher, err = r.admit(c, "Watcher", "w"); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.guests.byKey) == maxPeople {
			r.leave(last[0])
			last = last[1:]
		}
		c, err := r.enter(fmt.Sprint("q", i%300))
		if err != nil {
			t.Fatal(err)
		}
		last = append(last, c)
		if n := len(r.news.joins) + len(r.news.leaves); n > 2*maxPeople {
			t.Fatalf("%d announcements wait", n)
		}
	}
	topic, _ := s.Topic(chatTopic)
	if most := 20 + 20*time.Since(begin).Seconds(); float64(topic.Offset) > most {
		t.Errorf("%d announcements, want at most %v", topic.Offset, most)
	}
	for now := time.Now(); len(r.news.joins)+len(r.news.leaves) > 0; {
		now = now.Add(time.Second)
		before := topic.Offset
		r.mu.Lock()
		err := r.flush(now)
		r.mu.Unlock()
		if topic, _ = s.Topic(chatTopic); err != nil || topic.Offset > before+20 {
			t.Fatalf("%d announcements at once, %v", topic.Offset-before, err)
		}
	}
	past, err := s.History(chatTopic, server.Start{Last: 10_000}, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	here := map[string]bool{}
	for _, l := range watcher.People {
		here[l.key] = true
	}
	for _, m := range past.Messages {
		if m.Offset <= watcher.At.Offset {
			continue
		}
		var e event
		if err := json.Unmarshal(m.Payload, &e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == "join" {
			here[nameKey(e.Name)] = true
		} else {
			delete(here, nameKey(e.Name))
		}
	}
	for key := range here {
		if r.guests.byKey[key] == nil {
			t.Errorf("%s has left, and a page shows it", key)
		}
	}
	for key := range r.guests.byKey {
		if !here[key] {
			t.Errorf("%s is here, and a page does not show it", key)
		}
	}
}

// What waits to be announced takes itself back.
func TestAnnouncementsThatUndoEachOther(t *testing.T) {
	a := newAnnouncements()
	for _, c := range []struct {
		kind, name    string
		joins, leaves int
	}{
		{"join", "Ada", 1, 0}, {"leave", "Ada", 0, 0}, {"leave", "Bob", 0, 1}, {"join", "bob", 1, 1}, {"join", "Bob", 1, 0},
	} {
		if a.add(event{Kind: c.kind, Name: c.name}); len(a.joins) != c.joins || len(a.leaves) != c.leaves {
			t.Errorf("after %s %s: %v %v", c.kind, c.name, a.joins, a.leaves)
		}
	}
	var order []string
	a.add(event{Kind: "leave", Name: "Cathy"})
	fail := server.ErrOverloaded
	publish := func(e event) error { order = append(order, e.Kind+" "+e.Name); return fail }
	if err := a.flush(time.Now(), publish); err != nil || len(a.joins)+len(a.leaves) != 2 {
		t.Errorf("an overloaded server: %v, %v", err, a)
	}
	fail = nil
	if err := a.flush(time.Now(), publish); err != nil || !slices.Equal(order, []string{"leave Cathy", "leave Cathy", "join bob"}) {
		t.Errorf("%v, %q", err, order)
	}
}

// All people together say no more than the room's rate.
func TestTheRoomHasARate(t *testing.T) {
	r, _ := crowd(t, 50)
	begin := time.Now()
	said := 0
	for c := range r.guests.byConn {
		for range burst {
			_, _, err := r.mayTalk(c, "")
			var no *refusal
			switch {
			case err == nil:
				said++
			case !errors.As(err, &no) || no.Code != "busy":
				t.Fatal(err)
			}
		}
	}
	if most := 100 + 20*time.Since(begin).Seconds(); float64(said) > most || said < 100 {
		t.Errorf("%d messages were sent, want %v", said, most)
	}
}

// A client that sends nothing but what is refused is closed, before it has joined as well.
func TestRefusalsAreBounded(t *testing.T) {
	_, s := start(t, Options{})
	p := arrive(t, s)
	for range 50 {
		p.sendText("[]")
	}
	for n := 0; ; n++ {
		if _, err := p.listen(); err != nil {
			if !strings.Contains(err.Error(), "refused") || n != 50 {
				t.Errorf("%v after %d refusals", err, n)
			}
			return
		}
	}
}

// The names in a welcome are as JSON wants them, sorted, and those of the people who are here.
func TestWelcomeListsThePeople(t *testing.T) {
	r, _ := crowd(t, 0)
	var last *server.Conn
	for _, name := range []string{"bob", `<a "b">`, "Ada", "Bob 2", "ä\u2028"} {
		c, err := r.enter(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "Ada" {
			last = c
		}
	}
	r.leave(last)
	c := new(server.Conn)
	r.open(c)
	w, err := r.admit(c, "Cathy", "c")
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Welcome welcomed }
	if err := json.Unmarshal(w.encode(), &got); err != nil {
		t.Fatal(err)
	}
	if want := []string{`<a "b">`, "bob", "Bob 2", "Cathy", "ä\u2028"}; !slices.Equal(got.Welcome.People, want) || got.Welcome.Name != "Cathy" {
		t.Errorf("got %+v", got.Welcome)
	}
}

// What one client makes a loop do: join and leave, be refused by a full room, and send what is refused.
func BenchmarkJoin(b *testing.B) {
	for _, people := range []int{1, 100, maxPeople - 1} {
		b.Run(fmt.Sprintf("people=%d", people), func(b *testing.B) {
			r, _ := crowd(b, people)
			for b.Loop() {
				c := new(server.Conn)
				r.open(c)
				w, err := r.admit(c, "Ada", "a")
				if err != nil {
					b.Fatal(err)
				}
				w.encode()
				r.leave(c)
			}
		})
	}
	for _, waiting := range []int{0, maxWaiting - 1} {
		b.Run(fmt.Sprintf("full/waiting=%d", waiting), func(b *testing.B) {
			r, _ := crowd(b, maxPeople)
			for range waiting {
				r.open(new(server.Conn))
			}
			for b.Loop() {
				c, err := r.enter("Ada")
				if err == nil {
					b.Fatal("the room is not full")
				}
				r.closed(c, nil)
			}
		})
	}
	b.Run("namesakes", func(b *testing.B) {
		r, _ := crowd(b, 0)
		for i := range maxPeople - 1 {
			c := new(server.Conn)
			r.open(c)
			_, _ = r.admit(c, "Ada", fmt.Sprint(i))
		}
		for b.Loop() {
			c, err := r.enter("Ada")
			if err != nil {
				b.Fatal(err)
			}
			r.leave(c)
		}
	})
}

func BenchmarkHear(b *testing.B) {
	for _, c := range []struct{ name, payload string }{
		{"a message", `{"say":{"ref":"1","text":"` + strings.Repeat("é", maxText) + `"}}`},
		{"no JSON", strings.Repeat("[", maxPayload)},
		{"a long name", `{"join":{"session":"a","name":"` + strings.Repeat("é", maxPayload/2-50) + `"}}`},
		{"a long text", `{"say":{"text":"` + strings.Repeat("é", maxPayload/2-50) + `"}}`},
		{"many members", `{` + strings.Repeat(`"say":{},`, maxPayload/9-2) + `"say":{}}`},
	} {
		b.Run(strings.ReplaceAll(c.name, " ", "-"), func(b *testing.B) {
			r, _ := crowd(b, 0)
			conn := new(server.Conn)
			r.open(conn)
			for b.Loop() {
				_ = r.hear(conn, server.Text, []byte(c.payload))
			}
		})
	}
}

package server

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/hub"
)

// fill publishes "1" to "n".
func fill(t testing.TB, s *Server, topic string, n int) (last Receipt) {
	t.Helper()
	for i := range n {
		last = mustPublish(t, s, topic, fmt.Sprint(i+1))
	}
	return last
}

func offsets(list []said) (all []uint64) {
	for _, m := range list {
		all = append(all, m.Offset)
	}
	return all
}

// A topic has had ten messages and keeps four, of which the oldest is number 7. The rows say from where a client comes
// back, what it gets, and whether it is told that that is all.
func TestResume(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log", History: 4}))
	epoch := fill(t, s, "log", 10).Epoch
	for _, row := range []struct {
		sentence  string
		since     string
		first     int // of the messages that come, to 10; 11 is none
		recovered string
	}{
		{"from the end there is nothing, and nothing is missing", `{"offset":10,"epoch":"E"}`, 11, "true"},
		{"from within the history", `{"offset":8,"epoch":"E"}`, 9, "true"},
		{"all that is kept is just enough", `{"offset":6,"epoch":"E"}`, 7, "true"},
		{"one message is gone", `{"offset":5,"epoch":"E"}`, 7, "false"},
		{"from the beginning six are gone", `{"offset":0,"epoch":"E"}`, 7, "false"},
		{"a position that was never reached is of another life", `{"offset":11,"epoch":"E"}`, 7, "false"},
		{"the largest is, too", `{"offset":18446744073709551615,"epoch":"E"}`, 7, "false"},
		{"the same offset of another epoch means nothing", `{"offset":8,"epoch":"other"}`, 7, "false"},
		{"nor without an epoch", `{"offset":8}`, 7, "false"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			c := dial(t, s, "/ws", speakJSON)
			since := strings.Replace(row.since, `"E"`, `"`+epoch+`"`, 1)
			got := c.ask(`{"id":1,"subscribe":{"topic":"log","since":%s}}`, since)
			if want := fmt.Sprintf(`{"id":1,"subscribed":{"topic":"log","offset":10,"epoch":"E","after":%d,"recovered":%s}}`, row.first-1, row.recovered); got.plain() != want {
				t.Errorf("got  %s\nwant %s", got.plain(), want)
			}
			for i := row.first; i <= 10; i++ {
				if m := c.said(); m.Offset != uint64(i) || string(m.Data) != fmt.Sprintf(`"%d"`, i) {
					t.Errorf("got %s, want %d", m.text, i)
				}
			}
			// The history says the same, in pages.
			page := c.ask(`{"id":2,"history":{"topic":"log","since":%s,"limit":2}}`, since)
			var want []uint64
			for i := row.first; i <= 10 && len(want) < 2; i++ {
				want = append(want, uint64(i))
			}
			if h := page.History; h == nil || fmt.Sprint(h.Recovered) != row.recovered || fmt.Sprint(offsets(h.Messages)) != fmt.Sprint(want) {
				t.Errorf("the history is %s, want %v", page.text, want)
			}
		})
	}
	for last, want := range map[int]string{0: "[]", 1: "[10]", 3: "[8 9 10]", 4: "[7 8 9 10]", 10000: "[7 8 9 10]"} {
		c := dial(t, s, "/ws", speakJSON)
		if got := c.ask(`{"id":1,"subscribe":{"topic":"log","last":%d}}`, last); got.plain() != fmt.Sprintf(`{"id":1,"subscribed":{"topic":"log","offset":10,"epoch":"E","after":%d}}`, 10-min(last, 4)) {
			t.Error(got.text)
		}
		c.send(`{"id":2,"ping":{}}`)
		all := []uint64{}
		for m := c.said(); m.Pong == nil; m = c.said() {
			all = append(all, m.Offset)
		}
		if fmt.Sprint(all) != want {
			t.Errorf("the last %d are %v, want %s", last, all, want)
		}
	}
}

// History ends by number, by bytes and by age; the newest message outlives the bytes, but not the age.
func TestHistoryEnds(t *testing.T) {
	s := start(t, topics(
		TopicRule{Match: "few", History: 2},
		TopicRule{Match: "small", History: 100, MaxBytes: 10},
		TopicRule{Match: "short", History: 100, MaxAge: 50 * time.Millisecond},
		TopicRule{Match: "old", History: 100, MaxAge: -1, MaxBytes: -1},
	))
	for _, topic := range []string{"few", "small", "short", "old", "none"} {
		for range 5 {
			mustPublish(t, s, topic, "123")
		}
	}
	mustPublish(t, s, "small.not", strings.Repeat("x", 100))
	time.Sleep(100 * time.Millisecond)
	want := map[string]int{"few": 2, "small": 3, "short": 0, "old": 5, "none": 0}
	for topic, n := range want {
		info, ok := s.Topic(topic)
		if !ok || info.History != n || info.HistoryBytes != 3*n || info.Offset != 5 || n > 0 && info.Oldest != int64(6-n) || n == 0 && info.Oldest != 0 {
			t.Errorf("%s has %+v, want %d messages", topic, info, n)
		}
		past, err := s.History(topic, Start{Since: &Position{Offset: 2, Epoch: info.Epoch}}, 100)
		if err != nil || past.Recovered != (n >= 3) || len(past.Messages) != min(n, 3) {
			t.Errorf("%s: %+v, %v", topic, past, err)
		}
	}
	mustPublish(t, s, "small", strings.Repeat("x", 100))
	if info, _ := s.Topic("small"); info.History != 1 || info.Oldest != 6 {
		t.Errorf("%+v", info)
	}
	for limit, n := range map[int]int{-1: 0, 0: 0, 3: 3, 100: 5} {
		if past, err := s.History("old", Start{Last: 5}, limit); err != nil || len(past.Messages) != n {
			t.Errorf("limit %d: %d messages, %v", limit, len(past.Messages), err)
		}
	}
}

// A topic that was forgotten begins again in another epoch, and a subscriber that comes back is told.
func TestATopicIsForgotten(t *testing.T) {
	s, _ := startChanged(t, topics(), func(s *Server) { s.hub.Linger = time.Millisecond })
	c := dial(t, s, "/ws", speakJSON)
	first := c.subscribed("a")
	mustPublish(t, s, "a", "x")
	c.said()
	time.Sleep(5 * time.Millisecond)
	sweepAll(s.hub)
	if info, ok := s.Topic("a"); !ok || info.Epoch != first.Epoch || info.Offset != 1 {
		t.Fatalf("it was forgotten with a subscriber: %+v", info)
	}
	c.ask(`{"id":1,"unsubscribe":{"topic":"a"}}`)
	time.Sleep(5 * time.Millisecond)
	sweepAll(s.hub)
	if _, ok := s.Topic("a"); ok || s.hub.Count.Load() != 0 {
		t.Fatal("it is still there")
	}
	got := c.ask(`{"id":1,"subscribe":{"topic":"a","since":{"offset":1,"epoch":%q}}}`, first.Epoch)
	if got.Subscribed == nil || *got.Subscribed.Recovered || got.Subscribed.Epoch == first.Epoch || *got.Subscribed.Offset != 0 {
		t.Error(got.text)
	}
}

// A raw client cannot be told of a gap in words.
func TestRawGap(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log", History: 4}))
	epoch := fill(t, s, "log", 10).Epoch
	c := dial(t, s, "/ws?topic=log&since=8&epoch="+epoch)
	c.want("9")
	c.want("10")
	for _, query := range []string{"since=5&epoch=" + epoch, "since=8&epoch=other", "since=11&epoch=" + epoch} {
		c := dial(t, s, "/ws?topic=log&"+query)
		c.wantFrame(0x88, "\x0f\xaagap") // nothing comes before it
		c.write(masked(0x88, []byte{0x0f, 0xaa}))
		c.wantEOF()
	}
	subscribers(t, s, "log", 1)
}

func TestRequestLineOfTopics(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Topics.Subscribe = []string{"open.>"}
	opts.Endpoints[0].Topics.MaxSubscriptions = 3
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/plain", Mode: ModeTopics})
	s := start(t, opts)
	for _, row := range []struct {
		target string
		status int
		says   string
	}{
		{"/ws?topic=a..b", 400, "level 2 is empty"},
		{"/ws?topic=", 400, "is empty"},
		{"/ws?topic=secret", 403, "not in topics.subscribe of the endpoint"},
		{"/ws?topic=>", 403, "not in topics.subscribe of the endpoint"},
		{"/plain?topic=a.*", 403, "topics.patterns of the endpoint is false"},
		{"/ws?topic=caf%C3%A9", 400, "has the character 'é', which is not allowed"},
		{"/ws?topic=open.a&topic=open.a", 400, "overlaps"},
		{"/ws?topic=open.a&topic=open.*", 400, "overlaps"},
		{"/ws?topic=open.a&topic=open.b&topic=open.c&topic=open.d", 400, "too many topics: 4, and topics.max_subscriptions of the endpoint is 3"},
		{"/ws?topic=open.a&since=1", 400, "since without epoch"},
		{"/ws?topic=open.a&since=x&epoch=e", 400, "is not an offset"},
		{"/ws?topic=open.a&since=-1&epoch=e", 400, "is not an offset"},
		{"/ws?topic=open.a&topic=open.b&since=1&epoch=e", 400, "exactly one topic"},
		{"/ws?topic=open.*&since=1&epoch=e", 400, "exactly one topic and no pattern"},
		{"/ws?topic=open.*&last=1", 400, "no patterns"},
		{"/ws?topic=open.a&last=-1", 400, "from 0 to 10000"},
		{"/ws?topic=open.a&last=10001", 400, "from 0 to 10000"},
		{"/ws?topic=open.a&last=1&since=1&epoch=e", 400, "mutually exclusive"},
		{"/ws?topic=open.%zz", 400, "query is malformed"},
	} {
		t.Run(row.target, func(t *testing.T) {
			for _, head := range []string{upgradeHead(row.target), eventsHead(row.target)} {
				c := dialRaw(t, s)
				c.write([]byte(head))
				c.wantRefusal(row.status, row.says)
			}
		})
	}
	eventually(t, "all are counted", func() bool { return s.Stats().Refusals[RefuseTopic] == 38 })
	const name = "open.a+b;c&d"
	c := dial(t, s, "/ws?topic="+url.QueryEscape(name))
	subscribers(t, s, name, 1)
	mustPublish(t, s, name, "x")
	c.want("x")
}

// A history of many times max_queue goes to clients that read it as slowly as they like, in pieces, and that does not
// count as slow. What comes live meanwhile does count.
func TestResumeLargerThanQueue(t *testing.T) {
	const messages, size = 3000, 4 << 10 // 12 MB
	opts := topics(TopicRule{Match: "log", History: messages, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 64 << 10}
	s := start(t, opts)
	payload := strings.Repeat("x", size)
	for range messages {
		mustPublish(t, s, "log", payload)
	}
	for _, how := range []string{"JSON", "events"} {
		t.Run(how, func(t *testing.T) {
			var offset func() (uint64, error)
			if how == "JSON" {
				c := dialFrozen(t, s, "/ws?topic=log&last=10000", speakJSON)
				c.said()
				offset = func() (uint64, error) { m, err := c.trySaid(); return m.Offset, err }
			} else {
				small := dialSmall(t, s)
				eventually(t, "the server's side is found", func() bool { return shrinkPeer(small.conn.LocalAddr().String()) })
				c := openStreamOn(small, "/ws?topic=log&last=10000")
				c.subscribed()
				offset = func() (uint64, error) { e, err := c.event(); return e.offset(), err }
			}
			eventually(t, "much of it waits", func() bool { return s.Stats().QueuedBytes > hub.ReplayBytes/2 })
			for range 10 {
				mustPublish(t, s, "log", "live")
			}
			first, err := offset()
			for i := range uint64(messages + 9) {
				got, err := offset()
				if err != nil || got != first+i+1 {
					t.Fatalf("got %d, %v; want %d", got, err, first+i+1)
				}
			}
			if err != nil || first%10 != 1 {
				t.Error(first, err)
			}
			eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
		})
	}
	if n := dropsOf(s); n > 0 {
		t.Errorf("%d drops", n)
	}
}

// Mallory subscribes with a long history, unsubscribes, and does so again, without ever reading. What is
// queued for her stays bounded: what she asks for next waits until she reads.
func TestHistoryIsNoWayAroundMaxQueue(t *testing.T) {
	t.Parallel()
	const messages, size = 100, 10 << 10
	opts := topics(TopicRule{Match: "log", History: messages, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 256 << 10}
	s := start(t, opts)
	for range messages {
		mustPublish(t, s, "log", strings.Repeat("x", size))
	}
	mallory := dialFrozen(t, s, "/ws", speakJSON)
	const rounds = 20
	for range rounds {
		mallory.send(`{"id":"in","subscribe":{"topic":"log","last":10000}}`)
		mallory.send(`{"id":"out","unsubscribe":{"topic":"log"}}`)
	}
	most := int64(0)
	eventually(t, "all is done", func() bool {
		most = max(most, s.Stats().QueuedBytes)
		return s.Stats().MessagesIn == 2*rounds && s.engine.BacklogBytes() == 0
	})
	if most > 5*messages*size {
		t.Errorf("%d bytes were queued", most)
	}
	for i := range 2 * rounds { // now she reads
		m := mallory.said()
		for m.ID == nil {
			m = mallory.said()
		}
		if m.Error != nil || (m.Subscribed != nil) != (i%2 == 0) {
			t.Fatal(m.text)
		}
	}
	mallory.subscribed("log") // and she may go on
}

// resumer is a client that is cut off again and again and comes back with its last position.
type resumer struct {
	t      *testing.T
	s      *Server
	r      *rand.Rand
	events bool // or JSON
	small  bool // its socket has little room, and it rests now and then
	last   Position
	log    []string // what it got; "gap" where it was told of one

	lives, gaps *atomic.Int64 // of all resumers
}

// life is one connection: it opens it and reads some messages.
func (f *resumer) life() error {
	c := dialRaw(f.t, f.s)
	if f.small {
		c = dialSmall(f.t, f.s)
	}
	defer func() { _ = c.conn.Close() }()
	next := f.follow(c)
	began, err := next()
	if err != nil || began.Subscribed == nil {
		return fmt.Errorf("instead of a subscription: %s, %w", began.text, err)
	}
	sub := began.Subscribed
	if (f.last.Epoch != "") != (sub.Recovered != nil) {
		return fmt.Errorf("with the position %v: %s", f.last, began.text)
	}
	gap := f.last.Epoch == "" || !*sub.Recovered
	if gap {
		f.log = append(f.log, "gap")
		f.gaps.Add(1)
	}
	f.lives.Add(1)
	for n := range f.r.IntN(200) {
		m, err := next()
		if err != nil {
			return err
		}
		if !gap && m.Offset != f.last.Offset+1 {
			return fmt.Errorf("message %d of %d after %d, without a gap reported", n, m.Offset, f.last.Offset)
		}
		gap = false
		f.last = Position{Offset: m.Offset, Epoch: sub.Epoch}
		f.log = append(f.log, string(m.Data))
		if f.small && f.r.IntN(50) == 0 {
			time.Sleep(time.Duration(f.r.IntN(3)) * time.Millisecond)
		}
	}
	return nil
}

// follow subscribes, and returns what reads on.
func (f *resumer) follow(c *client) (next func() (said, error)) {
	if f.events {
		var headers []string
		if f.last.Epoch != "" {
			headers = append(headers, fmt.Sprintf("Last-Event-ID: %s:%d", f.last.Epoch, f.last.Offset))
		}
		st := openStreamOn(c, "/ws?topic=log", headers...)
		return func() (m said, err error) {
			e, err := st.event()
			if e.kind == "subscribed" {
				return sayAgain(`{"subscribed":` + e.data + "}"), err
			}
			return said{Offset: e.offset(), Data: []byte(e.data)}, err
		}
	}
	query := "/ws?topic=log"
	if f.last.Epoch != "" {
		query += fmt.Sprintf("&since=%d&epoch=%s", f.last.Offset, f.last.Epoch)
	}
	c.write([]byte(upgradeHead(query, speakJSON)))
	c.response()
	return c.trySaid
}

// Clients of both kinds, fast and slow ones, are cut off at random moments while publishers publish without
// pause, and come back with their last position. A part of them stays away for so long that the history
// does not reach back: then they are told. Between two gaps what each of them has got is the topic, without
// a hole, twice or out of order.
//
// How many messages a client misses while it is away depends on the machine, so the publishers are slower while
// more than a quarter of the lives begin with a gap.
func TestResumeUnderPublishing(t *testing.T) {
	cuts := 60
	if testenv.Race {
		cuts = 25
	}
	const clients, history = 20, 500
	opts := topics(TopicRule{Match: "log", History: history, MaxBytes: -1})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	s := start(t, opts)
	var stop atomic.Bool
	var publishers, resumers sync.WaitGroup
	var lives, gapped atomic.Int64
	var mu sync.Mutex
	var whole []string
	for p := range 3 {
		publishers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				text := fmt.Sprintf("[%d,%d]", p, i)
				mu.Lock() // so that we know the order
				_, err := s.Publish(Publication{Topic: "log", Format: FormatJSON, Payload: []byte(text)})
				whole = append(whole, text)
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				if n := gapped.Load() - clients - lives.Load()/4; n > 0 || i%7 == 0 {
					time.Sleep(time.Duration(min(max(n, 1), 10)) * time.Millisecond)
				}
			}
		})
	}
	published := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return uint64(len(whole))
	}
	all := make([]*resumer, clients)
	for n := range clients {
		f := &resumer{t: t, s: s, r: rand.New(rand.NewPCG(uint64(n), 3)), events: n%2 == 0, small: n%4 < 2, lives: &lives, gaps: &gapped}
		all[n] = f
		resumers.Go(func() {
			for range cuts {
				if err := f.life(); err != nil {
					t.Errorf("client %d: %v", n, err)
					return
				}
				switch f.r.IntN(20) {
				case 0: // too long
					for published() <= f.last.Offset+history && !t.Failed() {
						time.Sleep(time.Millisecond)
					}
				case 1, 2:
					time.Sleep(time.Duration(f.r.IntN(200)) * time.Millisecond)
				}
			}
		})
	}
	resumers.Wait()
	stop.Store(true)
	publishers.Wait()
	topic, gaps := " "+strings.Join(whole, " ")+" ", 0
	for n, f := range all {
		for _, part := range strings.Split(" "+strings.Join(f.log, " ")+" ", "gap") {
			if part != " " && !strings.Contains(topic, part) {
				t.Errorf("client %d: a part of %d bytes between two gaps is no part of the topic", n, len(part))
			}
		}
		gaps += strings.Count(strings.Join(f.log, " "), "gap") - 1
	}
	if gaps < clients/4 || gaps > clients*cuts/2 {
		t.Errorf("%d gaps in %d lives: the test is not what it should be", gaps, clients*cuts)
	}
	t.Logf("%d messages, %d lives, %d gaps", len(whole), clients*cuts, gaps)
}

package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// freezeOn has the server's side of a connection full with what is published to a topic that the client
// does not read. It returns how many messages that took.
func freezeOn(t *testing.T, s *Server, topic string) (n int) {
	t.Helper()
	filler := strings.Repeat("f", 64<<10)
	for s.Stats().QueuedBytes < 8<<10 { // the client's side may take some more
		mustPublish(t, s, topic, filler)
		n++
		eventually(t, "it was handed out", func() bool { return s.engine.BacklogBytes() == 0 })
	}
	return n
}

// A new subscriber gets the current value at once, and only that one.
func TestLatestBeginsWithTheCurrentValue(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "price.>", Latest: true}, TopicRule{Match: "deep", Latest: true, History: 10}))
	for _, topic := range []string{"price.a", "deep"} {
		fill(t, s, topic, 5)
		raw := dial(t, s, "/ws?topic="+topic)
		raw.want("5")
		c := dial(t, s, "/ws?topic="+topic, speakJSON)
		began, m := c.said(), c.said()
		if *began.Subscribed.Offset != 5 || m.Offset != 5 || string(m.Data) != `"5"` {
			t.Error(began.text, m.text)
		}
		st := openStream(t, s, "/ws?topic="+topic)
		st.subscribed()
		st.want("", began.Subscribed.Epoch+":5", "5")
		mustPublish(t, s, topic, "6")
		raw.want("6")
		st.want("", began.Subscribed.Epoch+":6", "6")
		if m := c.said(); m.Offset != 6 {
			t.Error(m.text)
		}
	}
	c := dial(t, s, "/ws?topic=price.none")
	subscribers(t, s, "price.none", 1)
	mustPublish(t, s, "price.none", "first")
	c.want("first")
	c = dial(t, s, "/ws?topic=deep&last=3")
	for _, want := range []string{"4", "5", "6"} {
		c.want(want)
	}
	c = dial(t, s, "/ws?topic=price.a&since=6&epoch="+s.mustTopic(t, "price.a").Epoch) // has it
	subscribers(t, s, "price.a", 4)
	mustPublish(t, s, "price.a", "7")
	c.want("7")
}

func (s *Server) mustTopic(t testing.TB, name string) TopicInfo {
	t.Helper()
	info, ok := s.Topic(name)
	if !ok {
		t.Fatalf("there is no topic %s", name)
	}
	return info
}

// Cathy has fifty prices and freezes; alice has them too and reads on. When cathy thaws she gets the newest
// of each, once. All that she did not get is counted, and what waits for her meanwhile is next to nothing.
func TestLatestForAFrozenReader(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		t.Run(fmt.Sprintf("compressed=%v", compressed), func(t *testing.T) { thawLatest(t, compressed) })
	}
}

func thawLatest(t *testing.T, compressed bool) {
	const prices = 50
	rounds := 200
	if testenv.Race {
		rounds = 20
	}
	opts := topics(TopicRule{Match: "price.>", Latest: true}, TopicRule{Match: "fill", Latest: true})
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 1 << 20}
	opts.Endpoints[0].Compression = Compression{Enabled: compressed, Threshold: 1 << 30}
	s := start(t, opts)
	headers := []string{speakJSON}
	if compressed {
		headers = append(headers, "Sec-WebSocket-Extensions: permessage-deflate")
	}
	query := "/ws?topic=fill"
	for i := range prices {
		query += fmt.Sprintf("&topic=price.%d", i)
	}
	cathy := dialFrozen(t, s, query, headers...)
	for range prices + 1 {
		cathy.said()
	}
	filled := freezeOn(t, s, "fill")

	alice := dial(t, s, strings.Replace(query, "topic=fill&", "", 1), speakJSON)
	for range prices {
		alice.said()
	}
	values := strings.Repeat("v", 10_000)
	value := func(round int) string { return fmt.Sprintf("%d %s", round, values) }
	before := heapBytes()
	for round := range rounds {
		for i := range prices {
			mustPublish(t, s, fmt.Sprintf("price.%d", i), value(round))
		}
		for range prices { // alice keeps up, and so misses nothing
			if m := alice.said(); m.Offset != uint64(round+1) {
				t.Fatalf("alice got %.80s in round %d", m.text, round)
			}
		}
	}
	eventually(t, "it was cathy's turn", func() bool { return s.engine.BacklogBytes() == 0 })
	// The newest of each are kept twice, as they were published and in the envelope; ten rounds of them
	// would be ten times as much.
	if grown := heapBytes() - before; !testenv.Race && grown > 3*prices*10_000+1<<20 {
		t.Errorf("%d B of memory for a client that does not read", grown)
	}
	if n := s.Stats().QueuedBytes; n > 1<<20 {
		t.Errorf("%d bytes are queued", n)
	}

	got := map[string][]uint64{}
	for i := 0; len(got) < prices+1 || got["fill"][len(got["fill"])-1] != uint64(filled); i++ {
		m := cathy.said()
		got[m.Topic] = append(got[m.Topic], m.Offset)
	}
	total := 0
	for topic, all := range got {
		if topic != "fill" && !slices.Equal(all, []uint64{uint64(rounds)}) {
			t.Errorf("of %s she got %v, want the newest", topic, all)
		}
		total += len(all)
	}
	eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
	if dropped := dropsOf(s); dropped != int(s.Stats().Drops[DropConflated]) || total+dropped != filled+prices*rounds {
		t.Errorf("%d came and %d were dropped of %d: %v", total, dropped, filled+prices*rounds, s.Stats().Drops)
	}
	mustPublish(t, s, "price.7", "again") // and she is as good as new
	if m := cathy.said(); m.Topic != "price.7" || m.Offset != uint64(rounds+1) {
		t.Errorf("then she got %.80s", m.text)
	}
}

// A topic with a rule that says latest is not conflated for those who read it through a pattern: there
// every message counts, and max_queue with it.
func TestLatestThroughAPattern(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "price.>", Latest: true}))
	c := dial(t, s, "/ws?topic=price.>")
	subscribers(t, s, "price.>", 1)
	const n = 3000
	for i := range n {
		mustPublish(t, s, "price.a", words(i))
	}
	for i := range n {
		c.want(words(i))
	}
}

// Eve is frozen and told to go. She gets what was published before, the newest of each topic, and then the
// close frame.
func TestLatestBeforeAClose(t *testing.T) {
	s := start(t, topics(TopicRule{Match: ">", Latest: true}))
	eve := dialFrozen(t, s, "/ws?topic=fill&topic=a&topic=b", speakJSON)
	for range 3 {
		eve.said()
	}
	filled := freezeOn(t, s, "fill")
	for range 5 {
		mustPublish(t, s, "a", "x")
		mustPublish(t, s, "b", "x")
	}
	_ = onlyConn(t, s, "/ws").Close(4001, "go")
	var last [3]uint64
	for range filled + 2 {
		m := eve.said()
		last[strings.Index("fab", m.Topic[:1])] = m.Offset
		if last == [3]uint64{uint64(filled), 5, 5} {
			break
		}
	}
	eve.wantClose(4001, "go")
	if last != [3]uint64{uint64(filled), 5, 5} {
		t.Errorf("the last were %v of %d, 5 and 5", last, filled)
	}
	if n := dropsOf(s); n != int(s.Stats().Drops[DropConflated]) {
		t.Errorf("drops: %v", s.Stats().Drops)
	}
}

// Of what waited for one that is told to go, only as much is compressed at once as other clients can wait for.
func TestLatestCompressesAFewAtOnce(t *testing.T) {
	opts := topics(TopicRule{Match: ">", Latest: true})
	opts.Endpoints[0].Compression = Compression{Enabled: true, Threshold: 100 << 10} // more than what eve is frozen with
	s := start(t, opts)
	const prices, size = 10, 400 << 10
	query := "/ws?topic=fill"
	for i := range prices {
		query += fmt.Sprintf("&topic=price.%d", i)
	}
	eve := dialFrozen(t, s, query, "Sec-WebSocket-Extensions: permessage-deflate")
	subscribers(t, s, fmt.Sprintf("price.%d", prices-1), 1)
	filled := freezeOn(t, s, "fill")
	for i := range prices {
		mustPublish(t, s, fmt.Sprintf("price.%d", i), strings.Repeat("v", size))
	}
	_ = onlyConn(t, s, "/ws").Close(4001, "go")
	compressed, plain := 0, 0
	for op := Text; op == Text; {
		var payload []byte
		var err error
		if op, payload, err = eve.frame(); err != nil {
			t.Fatal(err)
		}
		switch n := len(payload); {
		case op != Text || n == 64<<10:
		case n < size/100:
			compressed++
		case n == size:
			plain++
		default:
			t.Errorf("a message of %d bytes", n)
		}
	}
	if want := reactor.CatchUpBytes / size; compressed != want || plain != prices-want {
		t.Errorf("%d were compressed and %d were not, behind %d others; want %d", compressed, plain, filled, want)
	}
}

// A client that unsubscribes, or is cut off, while the newest message waits has missed it, and that is counted.
func TestLatestThatNeverCame(t *testing.T) {
	s := start(t, topics(TopicRule{Match: ">", Latest: true}))
	eve := dialFrozen(t, s, "/ws?topic=fill&topic=a&topic=b", speakJSON)
	for range 3 {
		eve.said()
	}
	freezeOn(t, s, "fill")
	for range 5 {
		mustPublish(t, s, "a", "x")
		mustPublish(t, s, "b", "x")
	}
	eve.send(`{"id":1,"unsubscribe":{"topic":"a"}}`)
	eventually(t, "one is gone", func() bool { return s.Stats().Drops[DropClosed] == 1 })
	if n := s.Stats().Drops[DropConflated]; n < 8 {
		t.Errorf("%d were conflated", n)
	}
	conflated := s.Stats().Drops[DropConflated]
	eve.kill()
	eventually(t, "she is gone", func() bool { return s.Count() == 0 })
	st := s.Stats()
	if n := st.Drops[DropClosed]; n < 3 || n > 4 || st.Drops[DropConflated] != conflated || st.QueuedBytes != 0 {
		t.Errorf("%v, and %d bytes are queued", st.Drops, st.QueuedBytes)
	}
}

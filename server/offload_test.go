package server

import (
	"strings"
	"testing"

	"carillon/server/internal/fair"
)

// holdOffload keeps the offload goroutine busy until what it returns is called.
func holdOffload(s *Server) (release func()) {
	hold := make(chan struct{})
	s.engine.Offload.Add(new(fair.Usage), 0, 0, &fair.Job{Do: func() { <-hold }})
	return func() { close(hold) }
}

// offloadJobs is how many jobs wait for the offload goroutine.
func offloadJobs(s *Server) int { return s.engine.Offload.Waiting() }

// A large reply is compressed on another goroutine, in its place among the replies.
func TestLargeRepliesAreCompressedElsewhere(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 1000})
	opts.Endpoints[0].Compression.Enabled = true
	s := start(t, opts)
	for range 1000 {
		mustPublish(t, s, "log", strings.Repeat("x", 100))
	}
	release := holdOffload(s)
	c := dial(t, s, "/ws", speakJSON, offerHeader)
	c.send(`{"id":1,"history":{"topic":"log","limit":1000}}`)
	c.send(`{"id":2,"history":{"topic":"log","limit":1}}`)
	eventually(t, "it waits", func() bool { return offloadJobs(s) == 1 })
	d := dial(t, s, "/ws", speakJSON)
	if m := d.ask(`{"id":3,"ping":{}}`); m.Pong == nil {
		t.Error(m.text)
	}
	release()
	for _, want := range []string{"1", "2"} {
		_, payload, err := c.frame()
		if err != nil {
			t.Fatal(err)
		}
		text := string(payload)
		if text[0] != '{' {
			text = inflated(t, payload)
		}
		if m := sayAgain(text); string(m.ID) != want || m.Error != nil {
			t.Errorf("got the reply to %s, %v; want that to %s", m.ID, m.Error, want)
		} else if want == "1" && len(payload) > len(text)/4 {
			t.Errorf("%d bytes have come as %d", len(text), len(payload))
		}
	}
}

// A long history is encoded on another goroutine, in pieces, and comes whole and in its order, with live messages
// behind it. A subscriber that goes away meanwhile is one no more.
func TestLongHistoriesAreEncodedElsewhere(t *testing.T) {
	const messages = 40
	opts := topics(TopicRule{Match: "log", History: 2 * messages, MaxBytes: -1})
	opts.Endpoints[0].Compression.Enabled = true
	s := start(t, opts)
	text := strings.Repeat("compresses well ", 2000)
	for i := range messages {
		mustPublish(t, s, "log", words(i)+text)
	}
	release := holdOffload(s)
	gone := dial(t, s, "/ws?topic=log&last=100", speakJSON, offerHeader)
	eventually(t, "it waits", func() bool { return offloadJobs(s) == 1 })
	_ = gone.conn.Close()
	c := dial(t, s, "/ws?topic=log&last=100", speakJSON, offerHeader)
	eventually(t, "both wait", func() bool { return offloadJobs(s) == 2 })
	if m := dial(t, s, "/ws", speakJSON).ask(`{"id":3,"ping":{}}`); m.Pong == nil {
		t.Error(m.text)
	}
	mustPublish(t, s, "log", words(messages)+text)
	release()
	for i := -1; i <= messages; i++ {
		_, payload, err := c.frame()
		if err != nil {
			t.Fatal(err)
		}
		got := string(payload)
		if got[0] != '{' {
			got = inflated(t, payload)
		}
		m := sayAgain(got)
		if i < 0 {
			if m.Subscribed == nil {
				t.Fatalf("%.100s", m.text)
			}
			continue
		}
		if m.Offset != uint64(i+1) || !strings.HasPrefix(string(m.Data), `"`+words(i)+"compresses") {
			t.Fatalf("message %d is %.100s", i, m.text)
		}
		if len(payload) > len(text)/10 {
			t.Errorf("message %d has come as %d bytes", i, len(payload))
		}
	}
	subscribers(t, s, "log", 1)
	if got := s.Stats().Drops[DropClosed]; got == 0 {
		t.Error("what the one that has gone missed is not counted")
	}
}

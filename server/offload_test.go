package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/server/internal/reactor"
)

// Requests of a connection that has had many parsed come after those of others, however many wait.
func TestOffloadQueue(t *testing.T) {
	var q reactor.OffloadQueue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	parse := func(used *reactor.Usage, n int, do func()) {
		q.Add(used, 0, time.Duration(n)*reactor.ParseByte, &reactor.OffloadJob{Size: n, Do: do})
	}
	parse(new(reactor.Usage), 1, func() { close(began); <-hold })
	<-began
	var much, little reactor.Usage
	for range 5 {
		parse(&much, 100_000, func() { done <- "much" })
	}
	for range 2 {
		parse(&little, 40_000, func() { done <- "little" })
	}
	close(hold)
	var got []string
	for range 7 {
		got = append(got, <-done)
	}
	if want := []string{"much", "little", "little", "much", "much", "much", "much"}; !slices.Equal(got, want) {
		t.Errorf("parsed in the order %v, want %v", got, want)
	}
	one := 100_000 * reactor.ParseByte
	if got := much.Lately(0); got != 5*(one+reactor.OverrunWeight*(one-reactor.Quantum)) {
		t.Errorf("five requests take %v", got)
	}
	eventually(t, "the goroutine has ended", func() bool {
		q.Mu.Lock()
		defer q.Mu.Unlock()
		return q.Running == 0
	})
}

// When too much waits, the jobs that would be done last are dropped, but for those that must be done.
func TestOffloadQueueIsBounded(t *testing.T) {
	var q reactor.OffloadQueue
	began, hold, done := make(chan struct{}), make(chan struct{}), make(chan string, 100)
	q.Add(new(reactor.Usage), 0, 0, &reactor.OffloadJob{Do: func() { close(began); <-hold }})
	<-began
	var much, little reactor.Usage
	dropped := map[string]int{}
	add := func(name string, used *reactor.Usage, size int, mayDrop bool) {
		job := &reactor.OffloadJob{Size: size, Do: func() { done <- name }}
		if mayDrop {
			job.Drop = func() { dropped[name]++ }
		}
		q.Add(used, 0, time.Millisecond, job)
	}
	add("must", new(reactor.Usage), reactor.MaxOffloaded, false)
	add("first", new(reactor.Usage), 1, true) // too much, and the only one that may be dropped
	q.Bytes -= reactor.MaxOffloaded - 1<<20
	for range 3 {
		add("much", &much, reactor.MaxOffloaded/4, true)
	}
	add("little", &little, reactor.MaxOffloaded/4, true)
	if dropped["first"] != 1 || dropped["much"] != 1 || dropped["little"] != 0 {
		t.Errorf("dropped were %v, want first and one of much", dropped)
	}
	q.Mu.Lock()
	q.Bytes += reactor.MaxOffloaded - 1<<20
	q.Mu.Unlock()
	close(hold)
	for range 4 {
		<-done
	}
	eventually(t, "nothing is counted any more", func() bool {
		q.Mu.Lock()
		defer q.Mu.Unlock()
		return q.Running == 0 && q.Bytes == 0
	})
}

// A large reply is compressed on another goroutine, in its place among the replies.
func TestLargeRepliesAreCompressedElsewhere(t *testing.T) {
	opts := topics(TopicRule{Match: "log", History: 1000})
	opts.Endpoints[0].Compression.Enabled = true
	s := start(t, opts)
	for range 1000 {
		mustPublish(t, s, "log", strings.Repeat("x", 100))
	}
	hold := make(chan struct{})
	s.engine.Offload.Add(new(reactor.Usage), 0, 0, &reactor.OffloadJob{Do: func() { <-hold }})
	c := dial(t, s, "/ws", speakJSON, offerHeader)
	c.send(`{"id":1,"history":{"topic":"log","limit":1000}}`)
	c.send(`{"id":2,"history":{"topic":"log","limit":1}}`)
	eventually(t, "it waits", func() bool {
		s.engine.Offload.Mu.Lock()
		defer s.engine.Offload.Mu.Unlock()
		return len(s.engine.Offload.Jobs) == 1
	})
	d := dial(t, s, "/ws", speakJSON)
	if m := d.ask(`{"id":3,"ping":{}}`); m.Pong == nil {
		t.Error(m.text)
	}
	close(hold)
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

package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"carillon/codec"
	"carillon/internal/testenv"
)

// All connections on the path get each message, the sender included, and no others do.
func TestBroadcastReachesItsPath(t *testing.T) {
	s := start(t, Options{Endpoints: append(echoAndBroadcast(), Endpoint{Path: "/other", Mode: ModeBroadcast})})
	alice, bob, other := dial(t, s, "/broadcast"), dial(t, s, "/broadcast"), dial(t, s, "/other")
	alice.send("from alice")
	bob.want("from alice")
	alice.want("from alice")
	other.send("from the other path")
	other.want("from the other path")
	bob.send("from bob")
	bob.want("from bob")
	alice.want("from bob")
}

// A hundred publishers, half of them clients and half goroutines, publish at once: all subscribers on
// all loops see one order, and each publisher's own messages are in theirs.
func TestOneOrderForAll(t *testing.T) {
	const publishers, messages, subscribers = 100, 50, 60
	s := start(t, Options{Loops: 3, Endpoints: echoAndBroadcast()})
	logs := make([][]string, subscribers)
	var all sync.WaitGroup
	for i := range subscribers {
		c := dial(t, s, "/broadcast")
		all.Go(func() {
			for range publishers * messages {
				_, payload, err := c.frame()
				if err != nil {
					t.Error(err)
					return
				}
				logs[i] = append(logs[i], string(payload))
			}
		})
	}
	for p := range publishers {
		publish := func(text string) { _ = s.Broadcast("/broadcast", Text, []byte(text)) }
		if p%2 == 0 {
			// A client that publishes on the path gets everything too, and has to read it.
			c := dial(t, s, "/broadcast")
			go func() {
				for {
					if _, _, err := c.frame(); err != nil {
						return
					}
				}
			}()
			publish = c.send
		}
		all.Go(func() {
			for m := range messages {
				publish(fmt.Sprintf("%d:%d", p, m))
			}
		})
	}
	all.Wait()
	for i := range logs {
		if !slices.Equal(logs[i], logs[0]) {
			t.Fatalf("subscriber %d saw another order than subscriber 0", i)
		}
	}
	next := map[int]int{}
	for _, text := range logs[0] {
		var p, m int
		if _, err := fmt.Sscanf(text, "%d:%d", &p, &m); err != nil || next[p] != m {
			t.Fatalf("publisher %d: message %q where %d was next", p, text, next[p])
		}
		next[p]++
	}
}

// What one sender broadcasts and sends arrives at each receiver in that order, whether the sender is
// a goroutine or a handler on the loop.
func TestSenderOrder(t *testing.T) {
	const receivers, messages = 300, 400 // more receivers than a slice of a walk
	var s *Server
	var conns []*Conn
	send := func() {
		for m := range messages {
			b := numbered(m, 16)
			if m%3 == 0 {
				for _, c := range conns {
					_ = c.Send(Binary, b)
				}
			} else {
				_ = s.Broadcast("/room", Binary, b)
			}
		}
	}
	handler := Handler{Message: func(*Conn, codec.Opcode, []byte) { send() }}
	s = start(t, Options{Loops: 2, Ping: Ping{Interval: -1}, Endpoints: []Endpoint{
		{Path: "/room", Handler: Handler{Open: func(*Conn) {}}, SlowConsumer: SlowConsumer{MaxQueue: -1}},
		{Path: "/start", Handler: handler},
	}})
	clients := make([]*client, receivers)
	for i := range clients {
		clients[i] = dial(t, s, "/room")
	}
	eventually(t, "all are open", func() bool { return s.Count() == receivers })
	conns = slices.Collect(s.Conns())

	check := func(who string) {
		var all sync.WaitGroup
		for i, c := range clients {
			all.Go(func() {
				for m := range messages {
					_, payload, err := c.frame()
					if err != nil || binary.BigEndian.Uint32(payload) != uint32(m) {
						t.Errorf("%s: receiver %d got %x, %v where %d was next", who, i, payload, err, m)
						return
					}
				}
			})
		}
		all.Wait()
	}
	go send()
	check("a goroutine")
	if t.Failed() {
		return
	}
	dial(t, s, "/start").send("go")
	check("a handler")
}

// Connections come and go while a walk is under way. A connection that stays gets every message from its first one on,
// exactly once and in order.
func TestMembersChangeDuringWalks(t *testing.T) {
	stay, churners := 400, 40
	if testenv.Race {
		stay, churners = 100, 10
	}
	limits, ping := off() // the walks leave little of a processor to those who come
	s := start(t, Options{Loops: 2, Limits: limits, Ping: ping, Endpoints: []Endpoint{{Path: "/room", Handler: Handler{Open: func(*Conn) {}}, SlowConsumer: SlowConsumer{MaxQueue: -1}}}})
	const last = 1<<32 - 1
	var heard atomic.Int64 // by all who stay
	follow := func(c *client, until int) error {
		next := -1
		for n := 0; n != until; n++ {
			_, payload, err := c.frame()
			if err != nil {
				return fmt.Errorf("after %d: %w", next-1, err)
			}
			got := int(binary.BigEndian.Uint32(payload))
			if got == last {
				return nil
			}
			if until < 0 {
				heard.Add(1)
			}
			if next >= 0 && got != next {
				return fmt.Errorf("got %d where %d was next", got, next)
			}
			next = got + 1
		}
		return nil
	}
	var all, publisher sync.WaitGroup
	for range stay {
		c := dial(t, s, "/room")
		all.Go(func() {
			if err := follow(c, -1); err != nil {
				t.Errorf("a client that stays: %v", err)
			}
		})
	}
	stop := make(chan bool)
	publisher.Go(func() {
		for m := 0; ; m++ {
			select {
			case <-stop:
				return
			default:
			}
			// On a slow machine more and more would wait, and new clients would be served behind all of it.
			for m*stay-int(heard.Load()) > 16*stay && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			_ = s.Broadcast("/room", Binary, numbered(m, 64))
			if m%16 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	var churn sync.WaitGroup
	for i := range churners {
		churn.Go(func() {
			for range 20 {
				c := dial(t, s, "/room")
				if err := follow(c, rand.IntN(60)); err != nil {
					t.Errorf("a client that comes and goes: %v", err)
				}
				if i%2 == 0 {
					c.write(masked(0x88, nil))
				}
				_ = c.conn.Close()
			}
		})
	}
	churn.Wait()
	close(stop)
	publisher.Wait()
	if err := s.Broadcast("/room", Binary, binary.BigEndian.AppendUint32(nil, last)); err != nil {
		t.Error(err)
	}
	all.Wait()
}

// The table can be walked while it changes: connections that are there throughout are seen exactly once.
func TestConnsWhileTheyChange(t *testing.T) {
	const stay = 200
	s := start(t, Options{Loops: 2, Endpoints: echoAndBroadcast()})
	for range stay {
		dial(t, s, "/echo")
	}
	eventually(t, "all are open", func() bool { return s.Count() == stay })
	staying := map[uint64]bool{}
	for c := range s.Conns() {
		staying[c.ID()] = true
	}
	done := make(chan bool)
	var churn sync.WaitGroup
	for range 8 {
		churn.Go(func() {
			for range 50 {
				c := dial(t, s, "/broadcast")
				_ = c.conn.Close()
			}
		})
	}
	go func() { churn.Wait(); close(done) }()
	for walks, over := 0, false; !over || walks < 10; walks++ {
		select {
		case <-done:
			over = true
		default:
		}
		seen := map[uint64]int{}
		for c := range s.Conns() {
			seen[c.ID()]++
		}
		for id := range staying {
			if seen[id] != 1 {
				t.Fatalf("connection %d was seen %d times", id, seen[id])
			}
		}
		for id, n := range seen {
			if n != 1 {
				t.Fatalf("connection %d was seen %d times", id, n)
			}
		}
	}
	for range s.Conns() { // and it can be left early
		break
	}
	eventually(t, "only those who stay are left", func() bool { return s.Count() == stay })
}

// A read that brings many frames is answered with one write.
func TestOneWriteForManyEchoes(t *testing.T) {
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/echo")
	eventually(t, "the handshake has been counted", func() bool { return s.Stats().Writes == 1 })
	before := s.Stats()
	var many []byte
	for i := range 32 {
		many = append(many, text(words(i))...)
	}
	c.write(many)
	for i := range 32 {
		c.want(words(i))
	}
	eventually(t, "the turn has been counted", func() bool { return s.Stats().BytesOut > before.BytesOut })
	after := s.Stats()
	if n := after.MessagesIn - before.MessagesIn; n != 32 {
		t.Fatalf("%d messages came", n)
	}
	most := uint64(1)
	if testenv.Race { // it takes longer than a connection's turn
		most = 3
	}
	if n := after.Writes - before.Writes; n > most {
		t.Errorf("32 echoes took %d writes", n)
	}
}

// While a loop is busy its messages pile up, and each connection then gets them in one write.
func TestCoalescing(t *testing.T) {
	const conns, messages = 50, 1000
	busy, free := make(chan bool), make(chan bool)
	hold := Handler{Message: func(*Conn, codec.Opcode, []byte) { busy <- true; <-free }}
	s := start(t, Options{Loops: 1, Endpoints: append(echoAndBroadcast(), Endpoint{Path: "/hold", Handler: hold})})
	clients := make([]*client, conns)
	for i := range clients {
		clients[i] = dial(t, s, "/broadcast")
	}
	dial(t, s, "/hold").send("the loop is mine")
	<-busy
	before := s.Stats()
	for m := range messages {
		_ = s.Broadcast("/broadcast", Binary, numbered(m, 100))
	}
	close(free)
	for _, c := range clients {
		for m := range messages {
			if _, payload, err := c.frame(); err != nil || binary.BigEndian.Uint32(payload) != uint32(m) {
				t.Fatalf("%x, %v where %d was next", payload, err, m)
			}
		}
	}
	eventually(t, "all is counted", func() bool { return s.Stats().Deliveries-before.Deliveries == conns*messages })
	if n := s.Stats().Writes - before.Writes; n > 5*conns {
		t.Errorf("%d deliveries took %d writes", conns*messages, n)
	}
}

// Clients publish faster than their messages can be handed out. TCP slows them down: nothing is
// refused, nothing is lost, and what waits stays within the limit.
func TestPublishersOutrunTheWalk(t *testing.T) {
	const publishers, messages, subscribers, size = 3, 20000, 20, 100
	limits, ping := off() // it may take longer than the time until a ping, which would be no message
	limits.MaxBacklog = 1 << 20
	s := start(t, Options{
		Loops:     1,
		Endpoints: []Endpoint{{Path: "/room", Mode: ModeBroadcast, SlowConsumer: SlowConsumer{MaxQueue: -1}}},
		Limits:    limits, Ping: ping,
	})
	var all sync.WaitGroup
	read := func(c *client) {
		all.Go(func() {
			for i := range publishers * messages {
				if _, payload, err := c.frame(); err != nil || len(payload) != size {
					t.Errorf("after %d messages: %d bytes, %v", i, len(payload), err)
					return
				}
			}
		})
	}
	for range subscribers {
		read(dial(t, s, "/room"))
	}
	frames := bytes.Repeat(masked(0x82, make([]byte, size)), messages/100)
	senders := make([]*client, publishers)
	for i := range senders {
		senders[i] = dial(t, s, "/room")
		read(senders[i])
	}
	for _, c := range senders {
		all.Go(func() {
			for range 100 {
				if _, err := c.conn.Write(frames); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := s.Stats().Drops[DropOverloaded]; n > 0 {
		t.Errorf("%d messages were refused", n)
	}
}

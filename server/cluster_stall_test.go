package server

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"carillon/server/internal/reactor"
)

// noneInFlight waits until the broker has acknowledged all messages, and each connection's account is settled.
func noneInFlight(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, "nothing is in flight", func() bool {
		l := &s.engine.InFlight
		return l.Publishers.Load() == 0 && l.Bytes.Load() == 0 && l.Transient.Load() == 0
	})
}

// The broker stands still. Mallory's fifty connections publish as much as they can, until they are not read from any
// more. What alice publishes still reaches bob, who is at her server, at once. Her replies, and theirs, wait for the
// broker, and come in order.
func TestAStalledBrokerHoldsUpNobodyAtHome(t *testing.T) {
	const attackers = 50
	for _, row := range []struct {
		how  string
		size int
		each int
	}{{"JSON", 10, 3000}, {"raw", 10, 3000}, {"raw", 30_000, 60}} {
		t.Run(fmt.Sprintf("%s, %d bytes", row.how, row.size), func(t *testing.T) {
			s := clustered(t, newFakeNet(1), 1, topics(), unchanged)[0]
			alice, bob := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws", speakJSON)
			bob.subscribed("room")
			waiting, end := fakeOf(s).stall()
			message, path, headers := text(strings.Repeat("x", row.size)), "/ws?topic=noise", []string(nil)
			if row.how == "JSON" {
				message, path, headers = text(fmt.Sprintf(`{"publish":{"topic":"noise","data":%q}}`, strings.Repeat("x", row.size))), "/ws", []string{speakJSON}
			}
			much := repeat(message, row.each)
			var flood []*client
			for range attackers {
				c := dial(t, s, path, headers...)
				flood = append(flood, c)
				go func() { _, _ = c.conn.Write(much) }()
			}
			settled := func() bool {
				before := waiting()
				time.Sleep(2 * reactor.StallTime)
				return waiting() == before
			}
			eventually(t, "all of them wait", func() bool { return s.engine.InFlight.Publishers.Load() == attackers && settled() })
			if n := waiting(); n <= reactor.MaxPublishingOfAll || n == attackers*row.each {
				t.Errorf("%d messages wait", n)
			}
			free := int64(reactor.MaxInFlight) - s.engine.InFlight.Bytes.Load()
			if free < reactor.MaxInFlight/4 {
				t.Errorf("%d bytes are left to others", free)
			}
			for i := range 100 {
				alice.send(fmt.Sprintf(`{"id":%d,"publish":{"topic":"room","data":%q}}`, i, words(i)))
				bob.wants(words(i))
			}
			end(nil)
			for i := range 100 {
				if m := alice.said(); string(m.ID) != fmt.Sprint(i) || m.Published == nil {
					t.Fatalf("instead of reply %d: %s", i, m.text)
				}
			}
			for _, c := range flood {
				c.conn.Close()
			}
			noneInFlight(t, s)
		})
	}
}

// While the broker acknowledges messages, a connection has only its share in flight. When it no longer does, the loop
// goes on with connections that had used their share before.
func TestAStallIsNoticedByThoseThatWait(t *testing.T) {
	s := clustered(t, newFakeNet(1), 1, topics(), unchanged)[0]
	bob := dial(t, s, "/ws", speakJSON)
	bob.subscribed("room")
	waiting, end := fakeOf(s).stall()
	defer end(nil)
	alice := dial(t, s, "/ws", speakJSON)
	alice.send(`{"publish":{"topic":"room","data":"first"}}`)
	bob.wants("first")
	s.engine.InFlight.Flows(time.Hour) // it will not count as standing still until then
	const all = 3 * reactor.MaxPublishing
	for i := range all {
		alice.send(fmt.Sprintf(`{"publish":{"topic":"room","data":%q}}`, words(i)))
	}
	for i := range reactor.MaxPublishing - 1 {
		bob.wants(words(i))
	}
	time.Sleep(2 * reactor.StallTime)
	if n := waiting(); n != reactor.MaxPublishing {
		t.Errorf("%d messages are in flight", n)
	}
	s.engine.InFlight.Flows(s.engine.Uptime())
	for i := reactor.MaxPublishing - 1; i < all; i++ {
		bob.wants(words(i))
	}
}

// What asks for nothing but a reply does not hold up what is published behind it.
func TestRepliesDoNotHoldUpPublications(t *testing.T) {
	s := clustered(t, newFakeNet(1), 1, topics(), unchanged)[0]
	alice, bob := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws", speakJSON)
	bob.subscribed("room")
	_, end := fakeOf(s).stall()
	for i, request := range []string{`"publish":{"topic":"room","data":"one"}`, `"ping":{}`, `"publish":{"topic":"room","data":"two"}`, `"nonsense":1`, `"publish":{"topic":"room","data":"three"}`} {
		alice.send(fmt.Sprintf(`{"id":%d,%s}`, i, request))
	}
	bob.wants("one", "two", "three")
	end(nil)
	for i := range 5 {
		m := alice.said()
		if string(m.ID) != fmt.Sprint(i) || (m.Published != nil) != (i%2 == 0) || (m.Pong != nil) != (i == 1) || (m.Error != nil) != (i == 3) {
			t.Errorf("instead of reply %d: %s", i, m.text)
		}
	}
	noneInFlight(t, s)
}

// Broadcasts of clients count like messages for transient topics.
func TestBroadcastsOfOneClientLeaveRoomForOthers(t *testing.T) {
	s := clustered(t, newFakeNet(1), 1, Options{Endpoints: echoAndBroadcast()}, unchanged)[0]
	waiting, end := fakeOf(s).stall()
	mallory := dial(t, s, "/broadcast")
	go func() {
		for {
			if _, _, err := mallory.frame(); err != nil {
				return
			}
		}
	}()
	go func() { _, _ = mallory.conn.Write(repeat(text(strings.Repeat("x", 4<<10)), 10_000)) }()
	before := -1
	eventually(t, "she is not read from", func() bool {
		last := before
		before = waiting()
		time.Sleep(2 * reactor.StallTime)
		return before == last && before > reactor.MaxPublishing
	})
	if n := s.engine.InFlight.Bytes.Load(); n > reactor.MaxInFlight/reactor.PartInFlight+10<<10 {
		t.Errorf("%d bytes are in flight", n)
	}
	alice, bob := dial(t, s, "/broadcast"), dial(t, s, "/broadcast")
	for i := range 10 {
		alice.send(words(i))
		bob.want(words(i))
	}
	mallory.conn.Close()
	end(nil)
	noneInFlight(t, s)
}

// The broker does not acknowledge what was published. In the JSON protocol a client that waits for a reply is told; a
// raw publisher, which gets no reply, is closed. A sender of broadcasts is told nothing. All of them are counted.
func TestUnacknowledgedMessagesAreReported(t *testing.T) {
	opts := topics()
	opts.Endpoints = append(opts.Endpoints, echoAndBroadcast()...)
	opts.Internal.Listen = "127.0.0.1:0"
	s := clustered(t, newFakeNet(1), 1, opts, unchanged)[0]
	waiting, end := fakeOf(s).stall()
	alice, raw, sender := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws?topic=room"), dial(t, s, "/broadcast")
	subscribers(t, s, "room", 1)
	alice.send(`{"id":1,"publish":{"topic":"room","data":1}}`)
	raw.want("1")
	raw.send("2")
	raw.want("2")
	sender.send("3")
	sender.want("3")
	eventually(t, "all wait", func() bool { return waiting() == 3 })
	end(errors.New("no response in time"))
	if m := alice.said(); string(m.ID) != "1" || m.Error == nil || m.Error.Code != "uncertain" || !strings.Contains(m.Error.Message, "no response in time") {
		t.Error(m.text)
	}
	raw.wantClose(1013, "message not acknowledged by the cluster")
	sender.send("4")
	sender.want("4")
	if n := scrape(t, s)["carillon_cluster_publish_errors_total"]; n != 3 {
		t.Errorf("%v errors are counted", n)
	}
	noneInFlight(t, s)
}

package server

import (
	"errors"
	"strings"
	"testing"
)

// A client cannot use up a key of the application, nor of a client with another subject. The same client is known when
// it comes back, and so is one without a subject.
func TestKeysBelongToThePublisher(t *testing.T) {
	opts := topics(TopicRule{Match: "orders", History: 100})
	opts.Endpoints[0].Handler.Upgrade = func(r *Request) error {
		return r.Identify(Identity{Subject: string(r.Header("X-Subject"))})
	}
	s := start(t, opts)
	publish := func(subject string) uint64 {
		t.Helper()
		c := dial(t, s, "/ws", speakJSON, "X-Subject: "+subject)
		defer func() { _ = c.conn.Close() }()
		got := c.ask(`{"id":1,"publish":{"topic":"orders","data":%q,"key":"order-18"}}`, subject)
		if got.Published == nil {
			t.Fatal(got.text)
		}
		return got.Published.Offset
	}
	application := func(publisher string) uint64 {
		t.Helper()
		r, err := s.Publish(Publication{Topic: "orders", Payload: []byte("x"), Key: "order-18", Publisher: publisher})
		if err != nil {
			t.Fatal(err)
		}
		return r.Offset
	}
	for range 2 { // the second time each gets its own receipt
		for i, offset := range []uint64{publish("alice"), publish("bob"), publish(""), application(""), application("billing")} {
			if offset != uint64(i+1) {
				t.Errorf("publisher %d got offset %d", i, offset)
			}
		}
	}
}

// "\ud800" and "\udfff" are two keys until JSON is decoded.
func TestKeysWithHalfACharacterAreRefused(t *testing.T) {
	s := withAPI(t, topics())
	c := dial(t, s, "/ws", speakJSON)
	for _, key := range []string{`\ud800`, `\udfffx`, `order\ud83d-1`, `\ude00\ud83d`, `\ufffd`} {
		got := c.ask(`{"id":1,"publish":{"topic":"a","data":1,"key":"%s"}}`, key)
		if errorCodeOf(got) != "bad_request" || !strings.Contains(got.Error.Message, "surrogate") {
			t.Errorf("%s: %s", key, got.text)
		}
		batch := call(t, s, "POST", "/v1/messages", `{"topic":"a","data":1,"key":"`+key+`"}`, "Content-Type: application/x-ndjson").is(t, 200)
		if !strings.Contains(string(batch.body), "surrogate") {
			t.Errorf("%s: %s", key, batch.body)
		}
	}
	for _, key := range []string{`\ud83d\ude00`, `ü`, `\u00fc-`} {
		if got := c.ask(`{"id":1,"publish":{"topic":"a","data":1,"key":"%s"}}`, key); got.Published == nil {
			t.Errorf("%s: %s", key, got.text)
		}
	}
}

// What fails at the broker fails for all who use the key, also when the attempt itself is over.
func TestAKeyWhoseRelayFailed(t *testing.T) {
	opts := topics()
	b := &silentBroker{newFakeNet(1).newBroker(), make(chan func(error), 10)}
	opts.Broker = b
	s, _ := startChanged(t, opts, unchanged)
	ends := make(chan error, 2)
	p := Publication{Topic: "room", Key: "k"}
	s.PublishFunc(p, func(_ Receipt, err error) { ends <- err })
	(<-b.ends)(errors.New("the connection was lost"))
	if err := <-ends; !errors.Is(err, ErrUncertain) {
		t.Fatal(err)
	}
	if n := s.hub.Keys.Attempts.Len(); n != 0 {
		t.Fatalf("%d attempts are left", n)
	}
	s.PublishFunc(p, func(_ Receipt, err error) { ends <- err })
	if err := <-ends; !errors.Is(err, ErrUncertain) || len(b.ends) > 0 {
		t.Error(err)
	}
}

package server

import (
	"fmt"
	"strings"
	"testing"

	"carillon/codec"
)

// Alice publishes faster than she may in the JSON protocol: what is too much is refused, and the rest is
// delivered. Bob, who publishes on a raw connection, is closed for it. Cathy hears all that was taken.
func TestPublishesPerSecond(t *testing.T) {
	const rate, burst, sent = 5, 50, 400
	opts := topics()
	opts.Limits.PublishesPerSecond = rate
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/broadcast", Mode: ModeBroadcast})
	s := start(t, opts)
	cathy := dial(t, s, "/ws?topic=a")
	alice := dial(t, s, "/ws", speakJSON)
	var storm strings.Builder
	for i := range sent {
		storm.Write(text(fmt.Sprintf(`{"id":%d,"publish":{"topic":"a","data":%d}}`, i, i)))
	}
	alice.write([]byte(storm.String()))
	taken, limited := 0, 0
	for i := range sent {
		reply := alice.said()
		switch {
		case string(reply.ID) != fmt.Sprint(i):
			t.Fatalf("reply %d is %s", i, reply.text)
		case reply.Published != nil:
			cathy.want(fmt.Sprint(i))
			taken++
		case reply.Error != nil && reply.Error.Code == "rate_limited" && strings.Contains(reply.Error.Message, "limits.publishes_per_second"):
			limited++
		default:
			t.Fatal(reply.text)
		}
	}
	if taken < burst || limited == 0 || s.Stats().Limited != uint64(limited) {
		t.Errorf("%d were taken, %d refused, %d counted", taken, limited, s.Stats().Limited)
	}
	if reply := alice.ask(`{"id":1,"ping":{}}`); reply.Pong == nil {
		t.Errorf("a ping gets %s", reply.text)
	}

	for _, path := range []string{"/ws?topic=b", "/broadcast"} {
		bob := dial(t, s, path)
		bob.write(repeat(text("x"), sent))
		bob.wantClose(codec.ClosePolicyViolation, "limits.publishes_per_second")
	}
	if n := s.Stats().Cuts[CutPublishRate]; n != 2 {
		t.Errorf("%d were closed, want 2", n)
	}
	mustPublish(t, s, "a", "the application is not limited")
	cathy.want("the application is not limited")
}

// Alice subscribes and unsubscribes faster than she may, and asks for histories. What is too much is refused;
// bob, on another connection, is not concerned, and neither is what alice publishes.
func TestRequestsPerSecond(t *testing.T) {
	const rate, burst, sent = 5, 50, 300
	opts := topics()
	opts.Limits.RequestsPerSecond = rate
	s := start(t, opts)
	alice, bob := dial(t, s, "/ws", speakJSON), dial(t, s, "/ws", speakJSON)
	requests := []string{`{"id":%d,"subscribe":{"topic":"a"}}`, `{"id":%d,"unsubscribe":{"topic":"a"}}`, `{"id":%d,"history":{"topic":"a"}}`, `{"id":%d,"presence":{"topic":"a"}}`}
	var storm strings.Builder
	for i := range sent {
		storm.Write(text(fmt.Sprintf(requests[i%len(requests)], i)))
	}
	alice.write([]byte(storm.String()))
	taken, limited := 0, 0
	for range sent {
		switch reply := alice.said(); {
		case reply.Error == nil:
			taken++
		case reply.Error.Code == "rate_limited" && strings.Contains(reply.Error.Message, "limits.requests_per_second"):
			limited++
		}
	}
	if taken < burst || limited < sent/2 || s.Stats().Limited != uint64(limited) {
		t.Errorf("%d were taken, %d refused, %d counted", taken, limited, s.Stats().Limited)
	}
	if reply := alice.ask(`{"id":1,"publish":{"topic":"b","data":1}}`); reply.Published == nil {
		t.Errorf("a publish gets %s", reply.text)
	}
	bob.subscribed("b")
}

// Each rate is off unless it is set, has an upper bound, and is the only one that counts.
func TestRateOptions(t *testing.T) {
	o, err := Options{}.Resolve()
	if err != nil || o.Limits.PublishesPerSecond != -1 || o.Limits.RequestsPerSecond != -1 {
		t.Errorf("%d, %d, %v; want both off", o.Limits.PublishesPerSecond, o.Limits.RequestsPerSecond, err)
	}
	_, err = Options{Limits: Limits{PublishesPerSecond: maxMessages + 1, RequestsPerSecond: maxMessages + 1}}.Resolve()
	for _, key := range []string{"limits.publishes_per_second", "limits.requests_per_second"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

package admin

import (
	"errors"
	"fmt"
	"testing"

	"carillon/server/topic"
)

// The title of a problem says what is wrong. The detail does not say it again.
func TestProblemsDoNotSayItTwice(t *testing.T) {
	for _, test := range []struct {
		err           error
		title, detail string
	}{
		{fmt.Errorf("%w: not connected to NATS", topic.ErrNoCluster), "Cluster cannot be reached", "not connected to NATS"},
		{topic.ErrNoCluster, "Cluster cannot be reached", ""},
		{fmt.Errorf("%w: the disk", topic.ErrStoreFull), "Cluster store is full", "the disk"},
		{topic.ErrNotJSON, "Message is not valid JSON", ""},
		{topic.ErrNotText, "Message is not valid UTF-8", ""},
		{topic.ErrTooMany, "Topic limit reached (limits.max_topics)", ""},
		{ErrNotDraining, "Server is not draining", ""},
		{topic.ErrTooLarge, "Message too large", "message is larger than limits.max_message"},
		{fmt.Errorf("%w: no answer", topic.ErrUncertain), "Message not acknowledged by the cluster",
			"it may or may not be stored: no answer; with an Idempotency-Key, a message for a persistent topic can be retried"},
	} {
		if p := problemOf(test.err); p.Title != test.title || p.Detail != test.detail {
			t.Errorf("%v: %q, %q", test.err, p.Title, p.Detail)
		}
	}
}

// Each error of a backend is answered as its problem, whatever it is that failed.
func TestErrorsOfABackend(t *testing.T) {
	for _, row := range []struct {
		err          error
		status       int
		name, detail string
		retry        string // Retry-After
	}{
		{&topic.NameError{Name: "x", Problem: "is odd"}, 400, "invalid-topic", `topic "x": is odd`, ""},
		{topic.ErrKey, 400, "invalid-key", "idempotency key is longer than 128 bytes", ""},
		{fmt.Errorf("%w: %q has no subscribers", ErrNoTopic, "x"), 404, "no-such-topic", `"x" has no subscribers`, ""},
		{fmt.Errorf("%w: connection 7 is not open", ErrNoConnection), 404, "no-such-connection", "connection 7 is not open", ""},
		{fmt.Errorf("%w: %q", ErrNoEndpoint, "/x"), 404, "no-such-endpoint", `no endpoint has this path: "/x"`, ""},
		{ErrNotDraining, 409, "no-such-drain", "", ""},
		{ErrDrainUnderWay, 409, "drain-under-way", "the listening socket is closed, or the program is ending", ""},
		{topic.ErrTooLarge, 413, "too-large", "message is larger than limits.max_message", ""},
		{topic.ErrNotJSON, 422, "not-json", "", ""},
		{topic.ErrNotText, 422, "not-text", "", ""},
		{errors.New("something else"), 500, "internal-error", "", ""},
		{topic.ErrTooMany, 503, "too-many-topics", "", "60"},
		{topic.ErrOverloaded, 503, "overloaded", "limits.max_backlog is reached", "1"},
		{fmt.Errorf("%w: not every server answered", topic.ErrNoCluster), 503, "no-cluster", "not every server answered", "2"},
		{topic.ErrStoreFull, 503, "store-full", "", "10"},
		{topic.ErrUncertain, 504, "uncertain", "it may or may not be stored; with an Idempotency-Key, a message for a persistent topic can be retried", ""},
	} {
		for _, request := range []struct{ method, path string }{
			{"POST", "/v1/topics/a/messages"}, {"POST", "/v1/broadcast"}, {"GET", "/v1/topics/a"}, {"GET", "/v1/topics/a/messages"},
			{"GET", "/v1/connections/7"}, {"DELETE", "/v1/connections/7"}, {"DELETE", "/v1/drain"},
		} {
			f := &fake{err: row.err}
			w := ask(t, f, request.method, request.path, "x")
			refuses(t, w, row.status, row.name, row.detail)
			if got := w.Header().Get("Retry-After"); got != row.retry {
				t.Errorf("%s: Retry-After: %q, want %q", row.name, got, row.retry)
			}
			if isOurs := row.status == 500; isOurs != (len(f.logged) == 1) {
				t.Errorf("%v: the log has %q", row.err, f.logged)
			}
		}
	}
}

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"carillon/server/topic"
)

// What openapi.json describes is what is served, and the other way round, and so are the problems.
func TestOpenAPIIsComplete(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	stated := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			stated[method+" "+path] = true
		}
	}
	for _, r := range routes {
		if !stated[r.method+" "+r.path] {
			t.Errorf("openapi.json does not have %s %s", r.method, r.path)
		}
		delete(stated, r.method+" "+r.path)
	}
	for name := range stated {
		t.Errorf("openapi.json has %s, which is not served", name)
	}
	left := map[string]bool{}
	for name := range problems {
		left[name] = true
	}
	for _, name := range doc.Components.Schemas["Problem"].Value.Properties["type"].Value.Enum {
		if !left[name.(string)] {
			t.Errorf("openapi.json has %s, which is no problem", name)
		}
		delete(left, name.(string))
	}
	for name := range left {
		t.Errorf("openapi.json does not have %s", name)
	}
	says(t, ask(t, &fake{}, "GET", "/v1/openapi.json", ""), 200, strings.TrimSuffix(string(openAPI), "\n"))
}

// A panic is the interface's own mistake: it is answered and logged, and ends nothing else. So is an error that it does
// not know.
func TestMistakes(t *testing.T) {
	healthy := routes
	routes = append([]route{{"GET", "/v1/panic", func(*api, http.ResponseWriter, *http.Request) error { panic("a mistake") }},
		{"GET", "/v1/unexpected", func(*api, http.ResponseWriter, *http.Request) error { return fmt.Errorf("another") }}}, routes...)
	defer func() { routes = healthy }()
	for path, word := range map[string]string{"/v1/panic": "a mistake", "/v1/unexpected": "another"} {
		f := &fake{}
		refuses(t, ask(t, f, "GET", path, ""), 500, "internal-error", "")
		if len(f.logged) != 1 || !strings.Contains(f.logged[0], word) {
			t.Errorf("%q is not in the log: %q", word, f.logged)
		}
	}
	// No client is left to answer.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := &fake{err: errors.New("the client has gone")}
	if w := askIn(ctx, f, "GET", "/v1/topics/a", ""); w.Body.Len() > 0 || len(f.logged) > 0 {
		t.Errorf("%s, and the log has %q", w.Body, f.logged)
	}
}

// The token is asked for with every request but those of probes. Without one, pages from elsewhere are kept out.
func TestAdmission(t *testing.T) {
	f := &fake{token: "sesame"}
	refuses(t, ask(t, f, "GET", "/v1/nodes", ""), 401, "unauthorized", "expected the header Authorization: Bearer TOKEN")
	refuses(t, ask(t, f, "GET", "/nowhere", "", "Authorization: Bearer open"), 401, "unauthorized", "wrong token")
	says(t, ask(t, f, "GET", "/metrics", "", "Authorization: bearer sesame"), 200, "metrics")
	for _, path := range []string{"/readyz", "/livez"} {
		says(t, ask(t, f, "GET", path, ""), 200, `{"status":"ok"}`)
	}
	f.token = "" // it may change
	refuses(t, ask(t, f, "PUT", "/v1/maintenance", `{"on":true}`, "Sec-Fetch-Site: cross-site"), 403, "foreign-origin", "the request was caused by a page of another origin")
	says(t, ask(t, f, "PUT", "/v1/maintenance", `{"on":true}`, "Sec-Fetch-Site: same-origin"), 200, `{"on":true}`)
	w := httptest.NewRecorder()
	Misdirected(w, "evil.example")
	refuses(t, w, 421, "misdirected", `without a token the Host must be localhost or a loopback address, not "evil.example"`)
}

// What keeps a server from being ready, or alive, is told with the first reason as the detail.
func TestProbes(t *testing.T) {
	f := &fake{unready: []Condition{{"full", "no room"}, {"memory", "no memory"}}, stuck: []Condition{{"loop_stuck", "loop 0"}}}
	w := ask(t, f, "GET", "/readyz", "")
	refuses(t, w, 503, "not-ready", "no room")
	if want := `"reasons":[{"reason":"full","detail":"no room"},{"reason":"memory","detail":"no memory"}]`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("%s, want %s", w.Body, want)
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("it may be cached")
	}
	refuses(t, ask(t, f, "GET", "/livez", ""), 503, "not-live", "loop 0")
}

// Pages follow each other by what the server says, and none has null for a list.
func TestPages(t *testing.T) {
	f := &fake{}
	says(t, ask(t, f, "GET", "/v1/topics", ""), 200, `{"topics":[]}`)
	says(t, ask(t, f, "GET", "/v1/connections", ""), 200, `{"connections":[]}`)
	var names, ids []string
	for i := range 25 {
		names, ids = append(names, fmt.Sprintf("a.%02d", i)), append(ids, fmt.Sprint(10+i))
		f.topics = append(f.topics, topic.Info{Topic: names[i]})
		f.connections = append(f.connections, Connection{ID: ids[i]})
	}
	follow := func(path, next, key string) (seen []string) {
		for pages := 1; ; pages++ {
			body := ask(t, f, "GET", path+next, "").Body.String()
			before, after, more := strings.Cut(body, `,"next":"`)
			for _, part := range strings.Split(before, `{"`+key+`":"`)[1:] {
				id, _, _ := strings.Cut(part, `"`)
				seen = append(seen, id)
			}
			if !more {
				if pages != 4 {
					t.Errorf("%s: %d pages", path, pages)
				}
				return seen
			}
			next, _, _ = strings.Cut(after, `"`)
		}
	}
	if seen := follow("/v1/topics?limit=7&match=a.*&after=", "", "topic"); !slices.Equal(seen, names) {
		t.Errorf("topics %v", seen)
	}
	if seen := follow("/v1/connections?limit=7&after=", "", "id"); !slices.Equal(seen, ids) {
		t.Errorf("connections %v", seen)
	}
	for _, query := range []string{"limit=0", "limit=1001", "limit=x"} {
		_, text, _ := strings.Cut(query, "=")
		refuses(t, ask(t, f, "GET", "/v1/connections?"+query, ""), 400, "bad-request", fmt.Sprintf("limit=%q: expected a whole number from 1 to 1000", text))
	}
	refuses(t, ask(t, f, "GET", "/v1/topics?match=b.>.c", ""), 400, "invalid-topic", `topic "b.>.c": has > in level 2: expected it in the last level only`)
}

// A message is handed over as its request describes it, and its receipt comes back.
func TestPublish(t *testing.T) {
	f := &fake{}
	says(t, ask(t, f, "POST", "/v1/topics/a%2Fb/messages", "\ufeff[1]", "Content-Type: application/json", "Idempotency-Key: k"), 200, `{"offset":1,"epoch":"E","subscribers":2}`)
	if got := fmt.Sprintf("%+v", f.published); got != fmt.Sprintf("%+v", []topic.Publication{{Topic: "a/b", Format: topic.FormatJSON, Payload: []byte("[1]"), Key: "k"}}) {
		t.Errorf("%s was published", got)
	}
	refuses(t, ask(t, f, "POST", "/v1/topics/a/messages", strings.Repeat("x", 101)), 413, "too-large", "message is larger than limits.max_message")
	if len(f.published) > 1 {
		t.Errorf("also %+v", f.published[1:])
	}
}

// Each line of a batch has its result in its place: a receipt, or a problem of its own.
func TestBatch(t *testing.T) {
	f := &fake{unsure: map[string]bool{"slow": true}}
	lines := []struct{ line, result string }{
		{`{"topic":"a","data":{"n": 1},"key":"k"}`, `{"offset":1,"epoch":"E","subscribers":2}`},
		{`{"topic":"a..b","data":1}`, `{"error":{"type":"/problems/invalid-topic","title":"Invalid topic name","status":400,"detail":"topic \"a..b\": level 2 is empty"}}`},
		{``, ``},
		{`{"topic":"a","data":1,"data":2}`, `{"error":{"type":"/problems/bad-request","title":"Invalid request","status":400,"detail":"the line data is given twice: expected it once"}}`},
		{`{"topic":"a","data":1,"key":"\ud800"}`, `{"error":{"type":"/problems/bad-request","title":"Invalid request","status":400,"detail":"key is not Unicode text: it has an unpaired surrogate or the character U+FFFD"}}`},
		{`{"topic":"slow","data":1}`, `{"error":{"type":"/problems/uncertain","title":"Message not acknowledged by the cluster","status":504,"detail":"it may or may not be stored: no response in time; with an Idempotency-Key, a message for a persistent topic can be retried"}}`},
		{`{"topic":"b","data":"AP8=","encoding":"base64"}`, `{"offset":2,"epoch":"E","subscribers":2}`},
		{`{"topic":"b","data":"` + strings.Repeat("x", 9000) + `"}`, `{"error":{"type":"/problems/too-large","title":"Message too large","status":413,"detail":"the line is longer than any valid message"}}`},
		{`{"topic":"b","data":"text","encoding":"text"}`, `{"offset":3,"epoch":"E","subscribers":2}`},
	}
	var body, want []string
	for _, l := range lines {
		if body = append(body, l.line); l.result != "" {
			want = append(want, l.result)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // for the one that is not acknowledged
	defer cancel()
	w := askIn(ctx, f, "POST", "/v1/messages", strings.Join(body, "\n"), "Content-Type: application/x-ndjson")
	says(t, w, 200, `{"results":[`+strings.Join(want, ",")+`]}`)
	var got []string
	for _, p := range f.published {
		got = append(got, fmt.Sprintf("%s %v %s %s", p.Topic, p.Format, p.Key, p.Payload))
	}
	if want := []string{fmt.Sprint("a ", topic.FormatJSON, ` k {"n": 1}`), fmt.Sprint("b ", topic.FormatBinary, "  \x00\xff"), fmt.Sprint("b ", topic.FormatText, "  text")}; !slices.Equal(got, want) {
		t.Errorf("published %q, want %q", got, want)
	}
	f.err = errors.New("something else")
	says(t, ask(t, f, "POST", "/v1/messages", lines[0].line, "Content-Type: application/x-ndjson"), 200,
		`{"results":[{"error":{"type":"/problems/internal-error","title":"Internal error","status":500}}]}`)
	if len(f.logged) != 1 {
		t.Errorf("the log has %q", f.logged)
	}
}

// A broadcast is for all endpoints, or for one, which must be there.
func TestBroadcast(t *testing.T) {
	f := &fake{}
	says(t, ask(t, f, "POST", "/v1/broadcast", "hello"), 200, `{"connections":3}`)
	says(t, ask(t, f, "POST", "/v1/broadcast?path=/ws", "[1]", "Content-Type: application/octet-stream"), 200, `{"connections":3}`)
	for _, path := range []string{"", "/x"} {
		refuses(t, ask(t, f, "POST", "/v1/broadcast?path="+path, "\xff", "Content-Type: text/plain; charset=latin1"), 404, "no-such-endpoint", fmt.Sprintf("no endpoint has this path: %q", path))
	}
	refuses(t, ask(t, f, "POST", "/v1/broadcast", "{", "Content-Type: application/json"), 422, "not-json", "")
	if want := []string{" text hello", "/ws binary [1]"}; !slices.Equal(f.broadcast, want) {
		t.Errorf("broadcast %q, want %q", f.broadcast, want)
	}
}

// What the server says of a topic, of its history and of a connection is passed on.
func TestDescriptions(t *testing.T) {
	f := &fake{nodes: []topic.NodeInfo{{ID: "b"}, {ID: "a"}}}
	says(t, ask(t, f, "GET", "/v1/topics/x", ""), 200, `{"topic":"x","offset":0,"epoch":"","subscribers":0,"history":0,"historyBytes":0,"oldest":0}`)
	says(t, ask(t, f, "GET", "/v1/topics/x/messages?since=7&epoch=E&limit=5", ""), 200, `{"topic":"x","messages":[],"limit":5}`)
	if f.since == nil || *f.since != (topic.Position{Offset: 7, Epoch: "E"}) {
		t.Errorf("since %v", f.since)
	}
	says(t, ask(t, f, "GET", "/v1/connections/7", ""), 200, `{"id":"7","new":"in another version"}`)
	says(t, ask(t, f, "DELETE", "/v1/connections/7?code=4000&reason=enough", ""), 204, "")
	says(t, ask(t, f, "DELETE", "/v1/connections/8", ""), 204, "")
	refuses(t, ask(t, f, "DELETE", "/v1/connections/9?code=1005", ""), 400, "bad-request", `code="1005" is not allowed: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999`)
	if want := []string{"7 4000 enough", "8 1001 "}; !slices.Equal(f.closed, want) {
		t.Errorf("closed %q, want %q", f.closed, want)
	}
	if body := ask(t, f, "GET", "/v1/nodes", "").Body.String(); !strings.HasPrefix(body, `{"node":"b","nodes":[{"id":"a"`) {
		t.Errorf("the nodes are %s", body)
	}
	says(t, ask(t, f, "GET", "/v1/version", ""), 200, `{"version":"v1","changed":false,"go":"","platform":""}`)
	says(t, ask(t, f, "GET", "/v1/memory", ""), 200, `{"max":-1,"source":"limits.max_memory","used":0,"held":0,"refusing":false}`)
}

// An operator's switches: a body that could be read in two ways turns nothing.
func TestSwitches(t *testing.T) {
	f := &fake{drain: Drain{State: "serving"}}
	says(t, ask(t, f, "POST", "/v1/drain", ""), 202, `{"state":"draining","began":1,"listening":false,"total":0,"remaining":0,"eta":2}`)
	says(t, ask(t, f, "DELETE", "/v1/drain", ""), 200, `{"state":"serving","listening":false,"total":0,"remaining":0}`)
	says(t, ask(t, f, "PUT", "/v1/maintenance", `{"on":true}`), 200, `{"on":true}`)
	refuses(t, ask(t, f, "PUT", "/v1/maintenance", `{"on":true,"on":false}`), 400, "bad-request", "the body is not the expected JSON object: on is given twice: expected it once")
	if !f.maintenance {
		t.Error("it is off")
	}
	const private = "the application does not expose its log level: see Options.LogLevel"
	refuses(t, ask(t, f, "GET", "/v1/log", ""), 501, "not-offered", private)
	refuses(t, ask(t, f, "PUT", "/v1/log", `{"level":"debug"}`), 501, "not-offered", private)
	f.level = new(slog.LevelVar)
	says(t, ask(t, f, "PUT", "/v1/log", `{"level":"debug"}`), 200, `{"level":"debug"}`)
	refuses(t, ask(t, f, "PUT", "/v1/log", `{"level":"loud"}`), 400, "bad-request", `level is "loud": expected debug, info, warn or error`)
	if f.level.Level() != slog.LevelDebug {
		t.Errorf("the level is %v", f.level)
	}
}

package server

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Alice reads the bare messages and bob the protocol's objects. Whatever is published over HTTP reaches
// both as what its Content-Type says it is.
func TestAPIPublish(t *testing.T) {
	s := withAPI(t, Options{})
	alice, bob := dial(t, s, "/ws?topic=prices.eu"), dial(t, s, "/ws?topic=prices.eu", speakJSON)
	bob.said()
	eventually(t, "they are subscribed", func() bool { return len(s.Subscribers("prices.eu")) == 2 })
	for i, row := range []struct {
		name, kind, body string
		op               string
		data             string // for bob
	}{
		{"JSON is JSON", asJSON, `{"AAPL": 1}`, "text", `{"AAPL": 1}`},
		{"what ends in +json is JSON", "Content-Type: application/cloudevents+json", `[1]`, "text", `[1]`},
		{"text is text", asText, `say "hi"`, "text", `"say \"hi\""`},
		{"nothing said is text", "", `hello`, "text", `"hello"`},
		{"HTML is text", "Content-Type: text/html", `<b>`, "text", `"<b>"`},
		{"octets are binary", asBinary, "\x00\xff", "binary", `"AP8="`},
		{"an image is binary", "Content-Type: image/png", "png", "binary", `"cG5n"`},
		{"an empty text is a message", asText, "", "text", `""`},
	} {
		t.Run(row.name, func(t *testing.T) {
			var headers []string
			if row.kind != "" {
				headers = []string{row.kind}
			}
			var r Receipt
			call(t, s, "POST", "/v1/topics/prices.eu/messages", row.body, headers...).is(t, 200).into(t, &r)
			if r.Offset != uint64(i+1) || r.Epoch == "" || r.Subscribers != 2 {
				t.Fatalf("%+v", r)
			}
			want := Text
			if row.op == "binary" {
				want = Binary
			}
			if op, payload, err := alice.frame(); err != nil || op != want || string(payload) != row.body {
				t.Errorf("alice got %v %q, %v", op, payload, err)
			}
			if said := bob.said(); said.Offset != r.Offset || string(said.Data) != row.data {
				t.Errorf("bob got %+v", said)
			}
		})
	}
}

func TestAPIPublishIsRefused(t *testing.T) {
	s := withAPI(t, Options{Limits: Limits{MaxMessage: 100, MaxTopics: 1}, Topics: []TopicRule{{Match: "a", History: 1}}})
	call(t, s, "POST", "/v1/topics/a/messages", "x").is(t, 200)
	const at = "/v1/topics/a/messages"
	for _, row := range []struct {
		name, path, body, header string
		status                   int
		problem, words           string
	}{
		{"a topic that is none", "/v1/topics/a..b/messages", "x", "", 400, "invalid-topic", "level 2 is empty"},
		{"a pattern", "/v1/topics/a.*/messages", "x", "", 400, "invalid-topic", "is a pattern"},
		{"a topic with a line break", "/v1/topics/a%0Ab/messages", "x", "", 400, "invalid-topic", `'\n'`},
		{"a parameter that is unknown", at + "?key=1", "x", "", 400, "bad-request", `"key" is unknown`},
		{"a key that is too long", at, "x", "Idempotency-Key: " + strings.Repeat("k", 129), 400, "invalid-key", "128"},
		{"a message that is too large", at, strings.Repeat("x", 101), "", 413, "too-large", "limits.max_message"},
		{"JSON that is none", at, `{"a":}`, asJSON, 422, "not-json", ""},
		{"JSON that is empty", at, ``, asJSON, 422, "not-json", ""},
		{"text that is not UTF-8", at, "\xff", asText, 422, "not-text", ""},
		{"text in another charset", at, "x", "Content-Type: text/plain; charset=latin1", 415, "unsupported-media-type", "latin1"},
		{"a form, as curl sends it unasked", at, "x", "Content-Type: application/x-www-form-urlencoded", 415, "unsupported-media-type", "curl -H"},
		{"a form with files, as of curl -F", at, "--b\r\nContent-Disposition: form-data; name=\"m\"\r\n\r\nx\r\n--b--\r\n", "Content-Type: multipart/form-data; boundary=b", 415, "unsupported-media-type", "curl -H"},
		{"a letter that is not of ASCII", "/v1/topics/caf%C3%A9/messages", "x", "", 400, "invalid-topic", `has the character 'é', which is not allowed`},
		{"a byte that is none of UTF-8", "/v1/topics/caf%E9/messages", "x", "", 400, "invalid-topic", `has the byte 0xe9, which is not UTF-8`},
		{"a Content-Type that is none", at, "x", "Content-Type: /", 415, "unsupported-media-type", `"/"`},
		{"a body that is compressed", at, "x", "Content-Encoding: gzip", 415, "unsupported-media-type", "gzip"},
		{"one topic too many", "/v1/topics/b/messages", "x", "", 503, "too-many-topics", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var headers []string
			if row.header != "" {
				headers = []string{row.header}
			}
			call(t, s, "POST", row.path, row.body, headers...).isProblem(t, row.status, row.problem, row.words)
		})
	}
	t.Run("a message that is too large and does not say so", func(t *testing.T) {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 90)), strings.NewReader(strings.Repeat("x", 11)))
		callAt(t, s.InternalAddr().String(), "POST", at, body).isProblem(t, 413, "too-large", "")
	})
	if info, _ := s.Topic("a"); info.Offset != 1 {
		t.Errorf("something was published: %+v", info)
	}
}

// A byte order mark is no part of JSON, and of text it is one.
func TestAPIPublishWithAByteOrderMark(t *testing.T) {
	s := withAPI(t, Options{Topics: []TopicRule{{Match: "a", History: 9}}})
	c := dial(t, s, "/ws?topic=a")
	subscribers(t, s, "a", 1)
	call(t, s, "POST", "/v1/topics/a/messages", "\ufeff[1]\r\n", asJSON).is(t, 200)
	call(t, s, "POST", "/v1/topics/a/messages", "\ufeffx", asText).is(t, 200)
	call(t, s, "POST", "/v1/messages", "\ufeff{\"topic\":\"a\",\"data\":2}\r\n\ufeff{\"topic\":\"a\",\"data\":3}", "Content-Type: application/x-ndjson").is(t, 200)
	for _, payload := range []string{"[1]\r\n", "\ufeffx", "2", "3"} {
		c.want(payload)
	}
}

// A publisher that did not hear the answer repeats its request: it is delivered once.
func TestAPIPublishTwice(t *testing.T) {
	s := withAPI(t, Options{})
	alice := dial(t, s, "/ws?topic=orders")
	eventually(t, "she is subscribed", func() bool { return len(s.Subscribers("orders")) == 1 })
	post := func(body, key string) string {
		return string(call(t, s, "POST", "/v1/topics/orders/messages", body, "Idempotency-Key: "+key).is(t, 200).body)
	}
	if first, second := post("seventeen", "17"), post("seventeen", "17"); first != second {
		t.Errorf("answered %s, then %s", first, second)
	}
	line := `{"topic":"orders","data":"seventeen","encoding":"text","key":"17"}`
	call(t, s, "POST", "/v1/messages", line, asLines).is(t, 200)
	post("eighteen", "18")
	alice.want("seventeen")
	alice.want("eighteen")
}

// A server whose loops are behind says so, and when to come back.
func TestAPIOverloaded(t *testing.T) {
	s := withAPI(t, Options{Limits: Limits{MaxBacklog: 1000}})
	dial(t, s, "/ws?topic=a")
	eventually(t, "the client is subscribed", func() bool { return len(s.Subscribers("a")) == 1 })
	body := strings.Repeat("x", 2000)
	for _, path := range []string{"/v1/topics/a/messages", "/v1/broadcast"} {
		a := call(t, s, "POST", path, body).isProblem(t, 503, "overloaded", "limits.max_backlog")
		if a.header.Get("Retry-After") == "" {
			t.Error("without Retry-After")
		}
	}
}

// A batch has good lines and bad ones. Each is answered in its place, and the good ones are delivered.
func TestAPIBatch(t *testing.T) {
	s := withAPI(t, Options{Limits: Limits{MaxMessage: 100}})
	alice := dial(t, s, "/ws?topic=a")
	eventually(t, "she is subscribed", func() bool { return len(s.Subscribers("a")) == 1 })
	rows := []struct{ line, problem, words string }{
		{`{"topic":"a","data":{"n": 1}}`, "", ""},
		{`{"topic":"a..b","data":2}`, "invalid-topic", "level 2"},
		{`not JSON`, "bad-request", "not a JSON object"},
		{`null`, "bad-request", "not a JSON object"},
		{`{"topic":"a","data":"AP8=","encoding":"base64"}`, "", ""},
		{`{"topic":"a","data":"not base64","encoding":"base64"}`, "bad-request", "base64"},
		{`{"topic":"a","data":1,"encoding":"rot13"}`, "bad-request", "rot13"},
		{`{"topic":7,"data":1}`, "bad-request", "topic is a JSON number"},
		{`{"topic":"a"}`, "bad-request", "data is missing"},
		{`{"data":1}`, "invalid-topic", "is empty"},
		{`{"topic":"a","data":"` + strings.Repeat("x", 200) + `"}`, "too-large", "limits.max_message"},
		{`{"topic":"a","data":"` + strings.Repeat("x", 20_000) + `"}`, "too-large", "line is longer"},
		{`{"topic":"nobody","data":3}`, "", ""},
		{`{"topic":"a","data":"done","encoding":"text"}`, "", ""},
	}
	var body strings.Builder
	for _, row := range rows {
		body.WriteString(row.line + "\r\n \n") // an empty line is none
	}
	var got struct {
		Results []struct {
			Receipt
			Error *problem
		}
		Error *problem
	}
	text := strings.TrimSuffix(body.String(), "\r\n \n") // the last line need not end
	call(t, s, "POST", "/v1/messages", text, asLines).is(t, 200).into(t, &got)
	if len(got.Results) != len(rows) || got.Error != nil {
		t.Fatalf("%d results for %d lines: %+v", len(got.Results), len(rows), got)
	}
	for i, row := range rows {
		r := got.Results[i]
		switch {
		case row.problem == "" && (r.Error != nil || r.Offset == 0):
			t.Errorf("%.60s: %+v", row.line, r.Error)
		case row.problem != "" && (r.Error == nil || r.Error.Type != "/problems/"+row.problem || !strings.Contains(r.Error.Detail, row.words)):
			t.Errorf("%.60s: %+v, want %s with %q", row.line, r.Error, row.problem, row.words)
		}
	}
	if r := got.Results; r[0].Subscribers != 1 || r[12].Subscribers != 0 || r[13].Offset != 3 {
		t.Errorf("%+v", r)
	}
	alice.want(`{"n": 1}`)
	if op, payload, err := alice.frame(); op != Binary || string(payload) != "\x00\xff" {
		t.Error(op, payload, err)
	}
	alice.want("done")
}

func TestAPIBatchIsRefused(t *testing.T) {
	const maxPublishBatch, maxLines = 16 << 20, 10_000
	s := withAPI(t, Options{})
	line := `{"topic":"a","data":1}` + "\n"
	call(t, s, "POST", "/v1/messages", line, asJSON).isProblem(t, 415, "unsupported-media-type", "application/x-ndjson")
	call(t, s, "POST", "/v1/messages", line, asLines, "Content-Encoding: gzip").isProblem(t, 415, "unsupported-media-type", "Content-Encoding")
	call(t, s, "POST", "/v1/messages?topic=a", line, asLines).isProblem(t, 400, "bad-request", "expected none")
	call(t, s, "POST", "/v1/messages", strings.Repeat(" ", maxPublishBatch+1), asLines).isProblem(t, 413, "too-large", "16777216")
	if a := call(t, s, "POST", "/v1/messages", "", asLines).is(t, 200); string(a.body) != `{"results":[]}`+"\n" {
		t.Errorf("an empty batch is answered %s", a.body)
	}

	// What was read before the limit stays published, and it is said that the rest was not.
	var got struct {
		Results []Receipt
		Error   *problem
	}
	call(t, s, "POST", "/v1/messages", strings.Repeat(line, maxLines+5), asLines).is(t, 200).into(t, &got)
	if len(got.Results) != maxLines || got.Error == nil || !strings.Contains(got.Error.Detail, "lines") || got.Results[maxLines-1].Offset != maxLines {
		t.Errorf("%d results, %+v", len(got.Results), got.Error)
	}
	got.Results, got.Error = nil, nil
	body := io.MultiReader(strings.NewReader(line), strings.NewReader(strings.Repeat(" ", maxPublishBatch))) // of unknown length
	callAt(t, s.InternalAddr().String(), "POST", "/v1/messages", body, asLines).is(t, 200).into(t, &got)
	if len(got.Results) != 1 || got.Error == nil || !strings.Contains(got.Error.Detail, "bytes") {
		t.Errorf("%d results, %+v", len(got.Results), got.Error)
	}
}

// Alice is at the echo, bob at the broadcast, cathy at the topics, where erin speaks JSON, dora reads events,
// and fay has hers wrapped. A broadcast reaches all, or those at one endpoint, each as it reads messages.
func TestAPIBroadcast(t *testing.T) {
	s := withAPI(t, Options{})
	alice, bob, cathy := dial(t, s, "/echo"), dial(t, s, "/broadcast"), dial(t, s, "/ws")
	erin := dial(t, s, "/ws", speakJSON)
	reader := func(query string) *client {
		c := dialRaw(t, s)
		c.write([]byte("GET /ws?topic=a" + query + " HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"))
		c.response()
		return c
	}
	dora, fay := reader(""), reader("&envelope=true")
	eventually(t, "dora and fay are subscribed", func() bool { return len(s.Subscribers("a")) == 2 && s.Count() == 6 })
	count := func(path, body, header string) (n int) {
		var got struct{ Connections int }
		call(t, s, "POST", path, body, header).is(t, 200).into(t, &got)
		return got.Connections
	}
	if n := count("/v1/broadcast", "to all", asText); n != 6 {
		t.Errorf("for %d connections, want 6", n)
	}
	if n := count("/v1/broadcast?path=/echo", "\xff", asBinary); n != 1 {
		t.Errorf("for %d connections, want 1", n)
	}
	for _, c := range []*client{alice, bob, cathy} {
		c.want("to all")
	}
	if op, payload, err := alice.frame(); op != Binary || string(payload) != "\xff" {
		t.Error(op, payload, err)
	}
	erin.want(`{"broadcast":{"data":"to all"}}`)
	for c, want := range map[*client]string{dora: "data: to all\n", fay: `data: {"broadcast":{"data":"to all"}}` + "\n"} {
		for line := ""; line != want; {
			var err error
			if line, err = c.r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	call(t, s, "POST", "/v1/broadcast?path=/nowhere", "x").isProblem(t, 404, "no-such-endpoint", `"/nowhere"`)
	call(t, s, "POST", "/v1/broadcast?pat=/echo", "x").isProblem(t, 400, "bad-request", `"pat" is unknown: expected path`)
	call(t, s, "POST", "/v1/broadcast?path=/echo&path=/ws", "x").isProblem(t, 400, "bad-request", "2 times")
	call(t, s, "POST", "/v1/broadcast", "\xff", asText).isProblem(t, 422, "not-text", "")
	call(t, s, "POST", "/v1/broadcast", "{", asJSON).isProblem(t, 422, "not-json", "")
	call(t, s, "POST", "/v1/broadcast", strings.Repeat("x", 1<<20+1), asText).isProblem(t, 413, "too-large", "")
}

func TestAPIPathsAndMethods(t *testing.T) {
	s := withAPI(t, Options{})
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/topics", "/v1/topics/", "//v1/topics", "/v1/./topics", "/v1/topics/a/b/messages", "/v1/topics/a%2Fb/x"} {
		call(t, s, "GET", path, "").isProblem(t, 404, "not-found", "openapi.json")
	}
	for _, row := range []struct{ method, path, allow string }{
		{"GET", "/v1/messages", "POST"},
		{"PUT", "/v1/topics/a/messages", "GET, HEAD, POST"},
		{"POST", "/v1/connections/1", "GET, HEAD, DELETE"},
		{"OPTIONS", "/v1/topics", "GET, HEAD"},
		{"BREW", "/v1/broadcast", "POST"},
	} {
		a := call(t, s, row.method, row.path, "").isProblem(t, 405, "method-not-allowed", row.allow)
		if got := a.header.Get("Allow"); got != row.allow {
			t.Errorf("%s %s: Allow: %s, want %s", row.method, row.path, got, row.allow)
		}
	}
	if a := call(t, s, "HEAD", "/v1/topics", "").is(t, 200); len(a.body) > 0 {
		t.Errorf("HEAD has the body %s", a.body)
	}
	c := dialInternal(t, s)
	c.write([]byte("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	if resp := c.response(); resp.StatusCode != 404 {
		t.Errorf("OPTIONS * is answered %s", resp.Status)
	}
	for _, query := range []string{"?limit=0", "?limit=1001", "?limit=x", "?limit=-1"} {
		for _, path := range []string{"/v1/topics", "/v1/connections", "/v1/topics/a/messages"} {
			call(t, s, "GET", path+query, "").isProblem(t, 400, "bad-request", "1 to 1000")
		}
	}
	call(t, s, "GET", "/v1/openapi.json?x=%zz", "").isProblem(t, 400, "bad-request", "malformed")
}

// A panic is answered and logged, and ends nothing else.
func TestAPIPanic(t *testing.T) {
	debug := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a mistake") })
	s, log := startLogged(t, Options{Internal: Internal{Listen: "127.0.0.1:0", Debug: debug}, Endpoints: echoAndBroadcast()})
	call(t, s, "GET", "/debug/pprof/", "").isProblem(t, 500, "internal-error", "")
	if text := log.String(); !strings.Contains(text, "internal interface: panic") || !strings.Contains(text, "a mistake") {
		t.Errorf("it is not in the log: %s", text)
	}
}

// recorder is a response that is looked at.
type recorder struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{status: 200, header: http.Header{}} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

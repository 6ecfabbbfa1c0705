package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	neturl "net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"carillon/internal/testenv"
)

// interfaceServer stands for the internal HTTP interface. It remembers requests, and takes every message
// but those that are the text "bad".
type interfaceServer struct {
	url      string
	requests chan *http.Request
	bodies   chan string

	mu     sync.Mutex
	offset int
}

func newInterface(t *testing.T) *interfaceServer {
	t.Helper()
	s := &interfaceServer{requests: make(chan *http.Request, 100), bodies: make(chan string, 100)}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var answer string
		if r.URL.Path == "/v1/messages" {
			answer = s.takeBatch(t, string(body))
		} else {
			answer = s.take()
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, answer)
		s.requests <- r
		s.bodies <- string(body)
	}))
	t.Cleanup(h.Close)
	s.url = h.URL
	t.Setenv("CARILLON_API", s.url)
	t.Setenv("CARILLON_TOKEN", "")
	return s
}

func (s *interfaceServer) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset++
	return fmt.Sprintf(`{"offset": %d, "epoch": "k3f9", "subscribers": %d}`, s.offset, s.offset)
}

func (s *interfaceServer) takeBatch(t *testing.T, body string) string {
	var results []string
	for line := range strings.Lines(body) {
		var m struct {
			Topic string
			Data  any
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil || m.Topic == "" {
			t.Errorf("line %q: %v", line, err)
		}
		if m.Data == "bad" {
			results = append(results, `{"error": {"title": "Too large", "status": 413, "detail": "at most 1 MiB"}}`)
		} else {
			results = append(results, s.take())
		}
	}
	return `{"results": [` + strings.Join(results, ",") + `]}`
}

func TestPublish(t *testing.T) {
	for _, test := range []struct{ sentence, args, in, path, kind, body string }{
		{"a message is text", "prices.eu|hello", "", "/v1/topics/prices.eu/messages", "text/plain; charset=utf-8", "hello"},
		{"text keeps its line feed", "a|hello\n", "", "/v1/topics/a/messages", "text/plain; charset=utf-8", "hello\n"},
		{"the input is the message", "a", "one\ntwo\n", "/v1/topics/a/messages", "text/plain; charset=utf-8", "one\ntwo"},
		{"so it is with a dash", "a|-", "one\n\n", "/v1/topics/a/messages", "text/plain; charset=utf-8", "one\n"},
		{"a text file may be of Windows", "a", "\ufeffone\r\ntwo\r\n", "/v1/topics/a/messages", "text/plain; charset=utf-8", "one\r\ntwo"},
		{"and so may a JSON file", "a|--json", "\ufeff{\r\n}\r\n", "/v1/topics/a/messages", "application/json", "{\r\n}"},
		{"JSON has no byte order mark", "a|--json|\ufeff[]", "", "/v1/topics/a/messages", "application/json", "[]"},
		{"an argument is the text itself", "a|\ufeffone\r\n", "", "/v1/topics/a/messages", "text/plain; charset=utf-8", "\ufeffone\r\n"},
		{"nor is anything taken from bytes", "a|--binary", "\ufeffone\r\n", "/v1/topics/a/messages", "application/octet-stream", "\ufeffone\r\n"},
		{"JSON has a type of its own", `a|--json|{"b": "<"}`, "", "/v1/topics/a/messages", "application/json", `{"b": "<"}`},
		{"binary messages stay as they are", "a|--binary", "\xff\n", "/v1/topics/a/messages", "application/octet-stream", "\xff\n"},
		{"a topic is one part of the path", "a/b%c?d#e+f ü|x", "", "/v1/topics/a%2Fb%25c%3Fd%23e+f%20%C3%BC/messages", "text/plain; charset=utf-8", "x"},
		{"a message may begin with a dash", "a|--|-x", "", "/v1/topics/a/messages", "text/plain; charset=utf-8", "-x"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := newInterface(t)
			args := append([]string{"publish"}, strings.Split(test.args, "|")...)
			seat{in: strings.NewReader(test.in)}.begin(t, args...).end(0, "offset 1, epoch k3f9, 1 subscriber\n", "")
			r, body := <-s.requests, <-s.bodies
			if r.Method != "POST" || r.URL.EscapedPath() != test.path || r.Header.Get("Content-Type") != test.kind || body != test.body {
				t.Errorf("sent %s %s, %s, %q", r.Method, r.URL.EscapedPath(), r.Header.Get("Content-Type"), body)
			}
			if r.Header["Authorization"] != nil || r.Header["Idempotency-Key"] != nil {
				t.Errorf("sent %v", r.Header)
			}
		})
	}
}

func TestPublishSendsTokenAndKey(t *testing.T) {
	s := newInterface(t)
	t.Setenv("CARILLON_TOKEN", "secret")
	seat{}.begin(t, "publish", "a", "b", "--key", "order-17").end(0, "...", "")
	if r := <-s.requests; r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Idempotency-Key") != "order-17" {
		t.Errorf("sent %v", r.Header)
	}
	<-s.bodies

	t.Setenv("CARILLON_API", "http://"+closedPort(t))
	seat{}.begin(t, "publish", "a", "b", "--api", strings.TrimPrefix(s.url, "http://")+"/", "--token", "other").end(0, "...", "")
	if r := <-s.requests; r.Header.Get("Authorization") != "Bearer other" || r.URL.Path != "/v1/topics/a/messages" {
		t.Errorf("sent %s, %v", r.URL.Path, r.Header)
	}
}

func TestPublishPrintsTheServersJSON(t *testing.T) {
	newInterface(t)
	seat{}.begin(t, "publish", "a", "b", "--output", "json").end(0, `{"offset":1,"epoch":"k3f9","subscribers":1}`+"\n", "")
	seat{}.begin(t, "publish", "a", "b").end(0, "offset 2, epoch k3f9, 2 subscribers\n", "")
}

func TestPublishRefusesWhatIsNoMessage(t *testing.T) {
	s := newInterface(t)
	for _, test := range []struct{ args, in, problem string }{
		{"--json", "{", "the message is not valid JSON: unexpected end of JSON input"},
		{"--json", "1 2", "the message is not valid JSON: invalid character '2' after top-level value"},
		{"", "\xff", "the message is not valid UTF-8; use --binary to publish any bytes"},
	} {
		args := append([]string{"publish", "a"}, strings.Fields(test.args)...)
		seat{in: strings.NewReader(test.in)}.begin(t, args...).end(1, "...", "carillon: "+test.problem+"\n")
	}
	if n := len(s.requests); n != 0 {
		t.Errorf("sent %d requests", n)
	}
}

func TestWhatTheServerSaysAgainstAMessage(t *testing.T) {
	for _, test := range []struct {
		sentence, kind string
		status         int
		body, problem  string
	}{
		{"a problem document", "application/problem+json", 422, `{"type":"about:blank","title":"Invalid topic","status":422,"detail":"level 2 is empty"}`,
			"publish to a..b: Invalid topic: level 2 is empty"},
		{"one without a detail", "application/problem+json; charset=utf-8", 401, `{"title":"Unauthorized"}`, "publish to a..b: Unauthorized"},
		{"one that says nothing", "application/problem+json", 500, `{}`, "publish to a..b: HTTP 500 Internal Server Error"},
		{"one that would move the cursor", "application/problem+json", 500, `{"title":"\u001b[2J"}`, `publish to a..b: \u001b[2J`},
		{"a proxy's page", "text/html", 502, "<h1>no</h1>\nmore", "publish to a..b: HTTP 502 Bad Gateway: <h1>no</h1>"},
		{"a redirect", "text/plain", 301, "", "publish to a..b: HTTP 301 Moved Permanently"},
		{"an answer from something else", "text/html", 200, "<h1>hello</h1>", "unexpected response from the server: <h1>hello</h1>"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", test.kind)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			}))
			defer s.Close()
			seat{}.begin(t, "publish", "a..b", "x", "--api", s.URL).end(1, "", "carillon: "+test.problem+"\n")
		})
	}
	t.Run("nothing, since nothing listens", func(t *testing.T) {
		api := "http://" + closedPort(t)
		seat{}.begin(t, "publish", "a", "x", "--api", api).end(1, "", "carillon: publish to a: reach "+api+": connection refused\n")
	})
	t.Run("nothing in time", func(t *testing.T) {
		done := make(chan bool)
		s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-done }))
		defer s.Close()
		defer close(done)
		seat{}.begin(t, "publish", "a", "x", "--api", s.URL, "--timeout", "100ms").
			end(1, "", "carillon: publish to a: reach "+s.URL+": no answer within 100ms\n")
	})
}

func TestLinesGoOutInBatches(t *testing.T) {
	s := newInterface(t)
	var in strings.Builder
	for i := range 2500 {
		fmt.Fprintf(&in, "line <%d>\n", i)
	}
	j := seat{in: strings.NewReader(in.String())}.begin(t, "publish", "a", "--lines")
	j.end(0, "offset 1, epoch k3f9, 1 subscriber\n...", "")
	if n := strings.Count(j.out.String(), "\n"); n != 2500 {
		t.Errorf("printed %d results", n)
	}
	var got strings.Builder
	var sizes []int
	for len(s.bodies) > 0 {
		r, body := <-s.requests, <-s.bodies
		if r.URL.Path != "/v1/messages" || r.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("sent %s, %s", r.URL.Path, r.Header.Get("Content-Type"))
		}
		n := 0
		for line := range strings.Lines(body) {
			n++
			text, ok := strings.CutPrefix(line, `{"topic":"a","data":"`)
			text, ok2 := strings.CutSuffix(text, `","encoding":"text"}`+"\n")
			if !ok || !ok2 {
				t.Fatalf("sent %q", line)
			}
			got.WriteString(text + "\n")
		}
		sizes = append(sizes, n)
	}
	if got.String() != in.String() {
		t.Error("the lines are not those of the input, or not in order")
	}
	for _, n := range sizes {
		if n > 1000 {
			t.Errorf("batches of %v lines", sizes)
		}
	}
	if len(sizes) > 10 {
		t.Errorf("%d requests for 2500 lines that were all there", len(sizes))
	}
}

func TestABatchIsBoundedInBytes(t *testing.T) {
	s := newInterface(t)
	line := strings.Repeat("x", 600<<10) + "\n"
	seat{in: strings.NewReader(strings.Repeat(line, 4))}.begin(t, "publish", "a", "--lines").end(0, "...", "")
	for _, body := range taken(s.bodies) {
		if n := strings.Count(body, "\n"); n > 2 {
			t.Errorf("%d lines of 600 KiB in one request", n)
		}
	}
}

func TestALineIsPublishedWhileTheInputIsOpen(t *testing.T) {
	s := newInterface(t)
	in, keyboard := io.Pipe()
	j := seat{in: in}.begin(t, "publish", "a", "--lines", "--json", "--output", "json")
	for i, body := range []string{`{"topic":"a","data":{"b":1}}`, `{"topic":"a","data":[2]}`} {
		_, _ = io.WriteString(keyboard, []string{"{ \"b\": 1 }\n", "[2]\n"}[i])
		select {
		case got := <-s.bodies:
			if got != body+"\n" {
				t.Errorf("sent %q, want %q", got, body)
			}
		case <-time.After(soon):
			t.Fatal("waits for more")
		}
	}
	keyboard.Close()
	j.end(0, `{"offset":1,"epoch":"k3f9","subscribers":1}`+"\n"+`{"offset":2,"epoch":"k3f9","subscribers":2}`+"\n", "")
}

func TestARefusedLineDoesNotStopTheOthers(t *testing.T) {
	newInterface(t)
	seat{in: strings.NewReader("one\nbad\nthree\n")}.begin(t, "publish", "a", "--lines").end(1,
		"offset 1, epoch k3f9, 1 subscriber\noffset 2, epoch k3f9, 2 subscribers\n",
		"carillon: line 2: Too large: at most 1 MiB\n")
	seat{in: strings.NewReader("bad\n")}.begin(t, "publish", "a", "--lines", "--output", "json").end(1,
		`{"error":{"title":"Too large","status":413,"detail":"at most 1 MiB"}}`+"\n",
		"carillon: line 1: Too large: at most 1 MiB\n")
}

func TestALineThatIsNoMessageDoesNotStopTheOthers(t *testing.T) {
	const offsets = "offset 1, epoch k3f9, 1 subscriber\noffset 2, epoch k3f9, 2 subscribers\n"
	for _, test := range []struct{ sentence, flags, in, bodies, problems string }{
		{"text is UTF-8", "", "one\n\xff\nthree\n",
			`{"topic":"a","data":"one","encoding":"text"}` + "\n" + `{"topic":"a","data":"three","encoding":"text"}` + "\n",
			"carillon: line 2: the message is not valid UTF-8; use --binary to publish any bytes\n"},
		{"JSON is JSON", "--json", "1\n\n{\n3\n\xff\n", `{"topic":"a","data":1}` + "\n" + `{"topic":"a","data":3}` + "\n",
			"carillon: line 3: the message is not valid JSON: unexpected end of JSON input\n" +
				"carillon: line 5: the message is not valid JSON: invalid character 'ÿ' looking for beginning of value\n"},
		{"the last line too", "", "one\nbad\nthree\n\xff",
			`{"topic":"a","data":"one","encoding":"text"}` + "\n" + `{"topic":"a","data":"bad","encoding":"text"}` + "\n" + `{"topic":"a","data":"three","encoding":"text"}` + "\n",
			"carillon: line 2: Too large: at most 1 MiB\ncarillon: line 4: the message is not valid UTF-8; use --binary to publish any bytes\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := newInterface(t)
			args := append([]string{"publish", "a", "--lines"}, strings.Fields(test.flags)...)
			seat{in: strings.NewReader(test.in)}.begin(t, args...).end(1, offsets, test.problems)
			if got := strings.Join(taken(s.bodies), ""); got != test.bodies {
				t.Errorf("sent %q", got)
			}
		})
	}
	t.Run("with --output json each line has a result", func(t *testing.T) {
		s := newInterface(t)
		seat{in: strings.NewReader("{\n2\n]\n")}.begin(t, "publish", "a", "--lines", "--json", "--output", "json").end(1,
			`{"error":{"title":"The line was not published","status":422,"detail":"the message is not valid JSON: unexpected end of JSON input"}}`+"\n"+
				`{"offset":1,"epoch":"k3f9","subscribers":1}`+"\n"+
				`{"error":{"title":"The line was not published","status":422,"detail":"the message is not valid JSON: invalid character ']' looking for beginning of value"}}`+"\n",
			"carillon: line 1: ...")
		taken(s.bodies)
		seat{in: strings.NewReader("{")}.begin(t, "publish", "a", "--lines", "--json").end(1, "", "carillon: line 1: ...")
		if len(s.bodies) > 0 {
			t.Error("sent a batch without a message")
		}
	})
}

// taken is what a channel has.
func taken(bodies chan string) (list []string) {
	for len(bodies) > 0 {
		list = append(list, <-bodies)
	}
	return list
}

func TestLinesOfATextFileOfWindows(t *testing.T) {
	for _, test := range []struct{ flags, in, body string }{
		{"", "\ufeffone\r\n\r\n\ufefft\rwo\r\nend\r", `{"topic":"a","data":"one","encoding":"text"}` + "\n" + `{"topic":"a","data":"","encoding":"text"}` + "\n" +
			`{"topic":"a","data":"` + "\ufeff" + `t\rwo","encoding":"text"}` + "\n" + `{"topic":"a","data":"end\r","encoding":"text"}` + "\n"},
		{"--json", "\ufeff1\r\n\r\n\ufeff{\t}\r\n3", `{"topic":"a","data":1}` + "\n" + `{"topic":"a","data":{}}` + "\n" + `{"topic":"a","data":3}` + "\n"},
	} {
		s := newInterface(t)
		args := append([]string{"publish", "a", "--lines"}, strings.Fields(test.flags)...)
		seat{in: strings.NewReader(test.in)}.begin(t, args...).end(0, "...", "")
		if got := strings.Join(taken(s.bodies), ""); got != test.body {
			t.Errorf("of %q sent\n%q, want\n%q", test.in, got, test.body)
		}
	}
}

// The server takes no request of more than 16 MiB, and a proxy before it perhaps less. Only the line that is so large
// is refused.
func TestALineThatNoRequestCanHoldDoesNotStopTheOthers(t *testing.T) {
	const limit = 2 << 20
	s := newInterface(t)
	backend, err := neturl.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"application/problem+json", "text/html"} {
		behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > limit {
				w.Header().Set("Content-Type", kind)
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				fmt.Fprint(w, `{"title":"Too large","status":413}`)
				return
			}
			httputil.NewSingleHostReverseProxy(backend).ServeHTTP(w, r)
		}))
		in := "one\n" + strings.Repeat("x", limit) + "\nthree\n"
		j := seat{in: strings.NewReader(in)}.begin(t, "publish", "a", "--lines", "--api", behind.URL)
		j.end(1, "offset ...", "carillon: line 2: ...")
		if got := strings.Join(taken(s.bodies), ""); strings.Count(got, "\n") != 2 || !strings.Contains(got, "three") || strings.Count(j.err.String(), "\n") != 1 {
			t.Errorf("%s: sent %q, said %s", kind, got, j.err)
		}
		behind.Close()
	}
}

func TestABatchThatFailsSaysWhichLines(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"results":[]}`) }))
	seat{in: strings.NewReader("one\ntwo\n")}.begin(t, "publish", "a", "--lines", "--api", s.URL).end(1, "",
		"carillon: publish lines 1 to 2: the server returned 0 results for 2 messages\n")
	s.Close()
	nowhere := "http://" + testenv.Address(t)
	seat{in: strings.NewReader("\xff\ntwo\n")}.begin(t, "publish", "a", "--lines", "--api", nowhere).end(1, "",
		"carillon: line 1: the message is not valid UTF-8; use --binary to publish any bytes\n"+
			"carillon: publish lines 1 to 2: reach "+nowhere+": connection refused\n")
}

// inMemory answers every request for a batch of one line, and remembers the bodies.
type inMemory struct{ bodies chan string }

func (m *inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	m.bodies <- string(body)
	answer := `{"results":[{"offset":1,"epoch":"e"}]}`
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer))}, err
}

func TestALineWaitsForOthersButNotLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, keyboard := io.Pipe()
		defer keyboard.Close()
		server := &inMemory{make(chan string, 10)}
		p := &publisher{
			publishOptions: publishOptions{api: &neturl.URL{Scheme: "http", Host: "x"}, topic: "a", lines: true},
			streams:        streams{in: in, out: io.Discard, err: io.Discard},
			client:         &http.Client{Transport: server},
		}
		ctx, interrupt := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.publishLines(ctx) }()

		_, _ = io.WriteString(keyboard, "one\n")
		time.Sleep(batchDelay - 1)
		synctest.Wait()
		if n := len(server.bodies); n != 0 {
			t.Error("does not wait")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := len(server.bodies); n != 1 {
			t.Errorf("sent %d batches after %v", n, batchDelay)
		}
		time.Sleep(time.Hour)
		if n := len(server.bodies); n != 1 {
			t.Errorf("sent %d batches of nothing", n-1)
		}

		_, _ = io.WriteString(keyboard, "two\n")
		synctest.Wait()
		interrupt()
		if err := <-ended; err != nil || len(server.bodies) != 2 {
			t.Errorf("after Ctrl-C %v, and sent %d batches", err, len(server.bodies))
		}
	})
}

package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server"
)

// A page of another origin reads event streams in a real browser, whose rules (CORS) decide what it gets.

// hall is a server, with pages that come from elsewhere.
type hall struct {
	server         *server.Server
	listed, others *httptest.Server       // whose origin the server lists, and does not
	seen           chan map[string]string // headers of each request for an event stream
}

func startHall(t *testing.T) *hall {
	t.Helper()
	blank := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><title>page</title><link rel="icon" href="data:,">`)
	})
	h := &hall{listed: httptest.NewServer(blank), others: httptest.NewServer(blank), seen: make(chan map[string]string, 100)}
	t.Cleanup(h.listed.Close)
	t.Cleanup(h.others.Close)
	upgrade := func(r *server.Request) error {
		seen := map[string]string{}
		for _, name := range []string{"Cookie", "Authorization", "Last-Event-ID", "Origin"} {
			seen[name] = string(r.Header(name))
		}
		h.seen <- seen
		if seen["Authorization"] == "Bearer bad" {
			return &codec.Rejection{Status: 401, Reason: "no"}
		}
		return nil
	}
	d := New(Options{})
	t.Cleanup(d.Close)
	endpoint := func(path, origin string) server.Endpoint {
		return server.Endpoint{Path: path, Mode: server.ModeTopics, Origins: []string{origin},
			Handler: server.Handler{Upgrade: upgrade}, Topics: server.TopicAccess{Subscribe: []string{">"}}}
	}
	s, err := server.New(server.Options{
		Listen:    "127.0.0.1:0",
		Endpoints: []server.Endpoint{endpoint("/ws", h.listed.URL), endpoint("/all", "*")},
		Topics:    []server.TopicRule{{Match: ">", History: 10}},
		HTTP:      d.Handler(),
		Drain:     server.Drain{Duration: -1, Deadline: time.Second},
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	h.server = s
	if _, err := s.Publish(server.Publication{Topic: "a", Format: server.FormatText, Payload: []byte("first")}); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hall) address(path string) string { return "http://" + h.server.Addr().String() + path }

// wantsSeen takes the headers of the next request for an event stream.
func (h *hall) wantsSeen(t *testing.T, what, cookie, authorization, lastEventID string) {
	t.Helper()
	select {
	case seen := <-h.seen:
		got, want := fmt.Sprintf("%q %q %q", seen["Cookie"], seen["Authorization"], seen["Last-Event-ID"]), fmt.Sprintf("%q %q %q", cookie, authorization, lastEventID)
		if got != want {
			t.Errorf("%s: the server gets %s, want %s", what, got, want)
		}
	case <-time.After(patience):
		t.Fatalf("%s: no request", what)
	}
}

// readFirst asks for an event stream with fetch, and reads until its first message.
const readFirst = `(async () => {
	try {
		const response = await fetch(%s, { ...%s, headers: { Accept: "text/event-stream", ...%s } })
		if (response.status !== 200) return String(response.status)
		const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
		for (let text = ""; ;) {
			text += (await reader.read()).value
			const found = /\ndata: (first)\n/.exec(text)
			if (found) { reader.cancel(); return found[1] }
		}
	} catch (error) { return error.name }
})()`

func TestEventStreamsOfAnotherOriginInABrowser(t *testing.T) {
	h, b := startHall(t), startBrowser(t)
	info, _ := h.server.Topic("a")
	page := b.visit(h.listed.URL, 800, 600, false)
	page.eval(nil, `document.cookie = "session=42"`) // cookies are for a host, whatever the port
	with, without := map[string]string{"credentials": "include"}, map[string]string{"credentials": "omit"}
	bearer := func(token string) map[string]string { return map[string]string{"Authorization": "Bearer " + token} }
	stream, all := h.address("/ws?topic=a&last=1"), h.address("/all?topic=a&last=1")
	for _, row := range []struct {
		what, url         string
		options, headers  map[string]string
		want              string // what the page gets
		cookie, token, id string // what the server gets
	}{
		{"with cookies", stream, with, nil, "first", "session=42", "", ""},
		{"without", stream, without, nil, "first", "", "", ""},
		{"with Authorization", stream, without, bearer("good"), "first", "", "Bearer good", ""},
		{"with Authorization and cookies", stream, with, bearer("good"), "first", "session=42", "Bearer good", ""},
		{"with Last-Event-ID", stream, without, map[string]string{"Last-Event-ID": info.Epoch + ":0"}, "first", "", "", info.Epoch + ":0"},
		{"refused, and told so", stream, without, bearer("bad"), "401", "", "Bearer bad", ""},
		{"from anywhere", all, without, bearer("good"), "first", "", "Bearer good", ""},
		{"from anywhere with cookies, which no page may read", all, with, nil, "TypeError", "session=42", "", ""},
	} {
		var got string
		page.eval(&got, readFirst, row.url, row.options, row.headers)
		h.wantsSeen(t, row.what, row.cookie, row.token, row.id)
		if got != row.want {
			t.Errorf("%s: the page gets %q, want %q", row.what, got, row.want)
		}
	}
	var got string
	b.visit(h.others.URL, 800, 600, false).eval(&got, readFirst, stream, without, bearer("good"))
	if got != "TypeError" || len(h.seen) != 0 {
		t.Errorf("a page that is not listed gets %q, %d requests pass", got, len(h.seen))
	}
}

// The browser's EventSource comes back with Last-Event-ID and its cookies, and carillon.js can be imported and asked to
// send cookies too.
func TestEventSourceOfAnotherOriginInABrowser(t *testing.T) {
	h, b := startHall(t), startBrowser(t)
	info, _ := h.server.Topic("a")
	page := b.visit(h.listed.URL, 800, 600, false)
	page.eval(nil, `{
		document.cookie = "session=42"
		window.got = []
		const source = new EventSource(%s, { withCredentials: true })
		source.onmessage = ({ data }) => got.push(data)
	}`, h.address("/ws?topic=a&last=1"))
	page.until("a message has come", `got.length === 1`)
	h.wantsSeen(t, "EventSource", "session=42", "", "")
	for c := range h.server.Conns() {
		if err := c.Close(codec.CloseServiceRestart, "come back; retry=20"); err != nil {
			t.Error(err)
		}
	}
	h.wantsSeen(t, "EventSource again", "session=42", "", info.Epoch+":1")
	if _, err := h.server.Publish(server.Publication{Topic: "a", Format: server.FormatText, Payload: []byte("second")}); err != nil {
		t.Fatal(err)
	}
	page.until("the next one has come, once", `got.join() === "first,second"`)

	for _, row := range []struct {
		page, path      string
		withCredentials bool
		cookie          string
	}{
		{h.listed.URL, "/ws", true, "session=42"},
		{h.listed.URL, "/ws", false, ""},
		{h.others.URL, "/all", false, ""},
	} {
		p := b.visit(row.page, 800, 600, false)
		p.eval(nil, `document.cookie = "session=42"`)
		p.eval(nil, `import(%s).then(({ Carillon }) => {
			window.client = new Carillon(%s, { eventSource: "only", withCredentials: %s })
			client.subscribe("a", () => {})
		})`, h.address("/carillon.js"), h.address(row.path), row.withCredentials)
		p.until("carillon.js is open", `window.client?.transport === "events"`)
		h.wantsSeen(t, fmt.Sprint("carillon.js ", row), row.cookie, "", "")
	}
}

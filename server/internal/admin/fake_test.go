package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"carillon/codec"
	"carillon/server/topic"
)

// fake is a server as a test describes it. It fails as a whole with err, if that is set.
type fake struct {
	token  string
	err    error
	unsure map[string]bool // topics whose messages the broker never acknowledges

	topics      []topic.Info
	connections []Connection
	nodes       []topic.NodeInfo
	unready     []Condition
	stuck       []Condition
	drain       Drain
	maintenance bool
	level       *slog.LevelVar

	published []topic.Publication
	broadcast []string // path, opcode and payload
	closed    []string // id, code and reason
	since     *topic.Position
	logged    []string
}

func (f *fake) Token() string     { return f.token }
func (f *fake) MaxMessage() int64 { return 100 }

func (f *fake) Publish(_ context.Context, p topic.Publication) (topic.Receipt, error) {
	if f.err != nil {
		return topic.Receipt{}, f.err
	}
	p.Payload = []byte(string(p.Payload)) // the buffer is used again
	f.published = append(f.published, p)
	return topic.Receipt{Offset: uint64(len(f.published)), Epoch: "E", Subscribers: 2}, nil
}

func (f *fake) PublishFunc(p topic.Publication, done func(topic.Receipt, error)) {
	if !f.unsure[p.Topic] {
		done(f.Publish(context.Background(), p))
	}
}

func (f *fake) HasEndpoint(path string) bool { return path == "/ws" }

func (f *fake) Broadcast(_ context.Context, path string, frame *codec.Frame) (int, error) {
	f.broadcast = append(f.broadcast, fmt.Sprintf("%s %v %s", path, frame.Opcode(), frame.Payload()))
	return 3, f.err
}

func (f *fake) Topics(pattern, after string, limit int) (list []topic.Info, next string) {
	for _, t := range f.topics {
		if t.Topic <= after || !topic.Matches(pattern, t.Topic) {
			continue
		}
		if len(list) == limit {
			return list, list[limit-1].Topic
		}
		list = append(list, t)
	}
	return list, ""
}

func (f *fake) Topic(_ context.Context, name string) (Topic, error) {
	return Topic{Info: topic.Info{Topic: name}}, f.err
}

func (f *fake) History(name string, since *topic.Position, limit int) (json.Marshaler, error) {
	f.since = since
	return json.RawMessage(fmt.Sprintf(`{"topic": %q, "messages": [], "limit": %d}`, name, limit)), f.err
}

func (f *fake) Nodes() []topic.NodeInfo { return f.nodes }

func (f *fake) Connections(after uint64, limit int) (list []Connection, more bool) {
	for _, c := range f.connections {
		var id uint64
		_, _ = fmt.Sscan(c.ID, &id)
		if id <= after {
			continue
		}
		if len(list) == limit {
			return list, true
		}
		list = append(list, c)
	}
	return list, false
}

func (f *fake) Connection(_ context.Context, id uint64) (json.RawMessage, error) {
	return json.RawMessage(fmt.Sprintf(`{"id":"%d","new":"in another version"}`, id)), f.err
}

func (f *fake) CloseConnection(_ context.Context, id uint64, code codec.CloseCode, reason string) error {
	f.closed = append(f.closed, fmt.Sprintf("%d %d %s", id, code, reason))
	return f.err
}

func (f *fake) Drain() Drain           { return f.drain }
func (f *fake) StartDrain()            { f.drain = Drain{State: "draining", Began: 1, ETA: 2} }
func (f *fake) CancelDrain() error     { f.drain = Drain{State: "serving"}; return f.err }
func (f *fake) Maintenance() bool      { return f.maintenance }
func (f *fake) SetMaintenance(on bool) { f.maintenance = on }
func (f *fake) Unready() []Condition   { return f.unready }
func (f *fake) Stuck() []Condition     { return f.stuck }
func (f *fake) Memory() Memory         { return Memory{Max: -1, Source: "limits.max_memory"} }
func (f *fake) Build() Build           { return Build{Version: "v1"} }

func (f *fake) LogLevel() (slog.Level, bool) {
	if f.level == nil {
		return 0, false
	}
	return f.level.Level(), true
}

func (f *fake) SetLogLevel(_ context.Context, level slog.Level) {
	if f.level != nil {
		f.level.Set(level)
	}
}

func (f *fake) LogError(what string, args ...any) {
	f.logged = append(f.logged, fmt.Sprint(append([]any{what}, args...)...))
}

// ask sends a request to the interface of a server. Headers are written "Name: value".
func ask(t *testing.T, b Backend, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	return askIn(t.Context(), b, method, path, body, headers...)
}

func askIn(ctx context.Context, b Backend, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(body))
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics") })
	New(b, metrics, nil).ServeHTTP(w, r)
	return w
}

// says checks the status and the whole body, without the end of its line.
func says(t *testing.T, w *httptest.ResponseRecorder, status int, body string) {
	t.Helper()
	if got := strings.TrimSuffix(w.Body.String(), "\n"); w.Code != status || got != body {
		t.Errorf("answered %d %s, want %d %s", w.Code, got, status, body)
	}
}

// refuses checks that the answer is a problem, and its detail.
func refuses(t *testing.T, w *httptest.ResponseRecorder, status int, name, detail string) {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != status || p.Status != status || p.Type != "/problems/"+name || p.Detail != detail {
		t.Errorf("answered %d %s, want %d %s with the detail %q", w.Code, w.Body, status, name, detail)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("the problem %s comes as %s", name, got)
	}
}

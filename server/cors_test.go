package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"carillon/codec"
)

// A browser asks before a script of another origin may send a header of its own.
func TestPreflight(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{
		{Path: "/ws", Mode: ModeTopics, Origins: []string{"https://app.example.org"}},
		{Path: "/open", Mode: ModeTopics, Origins: []string{"*"}},
		{Path: "/token", Mode: ModeTopics, Origins: []string{"https://app.example.org"}, Auth: Auth{JWT: JWT{Algorithms: []string{"HS256"}, KeyFile: newIssuer(t).File("HS256")}}},
		{Path: "/echo", Mode: ModeEcho, Origins: []string{"*"}},
	}, HTTP: http.HandlerFunc(mirror)})
	const asks, wants = "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization,last-event-id"
	app := "Origin: https://app.example.org"
	for _, test := range []struct {
		sentence, path string
		headers        []string
		status         int
		answer         map[string]string
	}{
		{"a listed origin", "/ws", []string{app, asks, wants}, 204, map[string]string{
			"Access-Control-Allow-Origin": "https://app.example.org", "Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Methods": "GET",
			"Access-Control-Allow-Headers": "authorization,last-event-id", "Access-Control-Max-Age": "600", "Vary": "Origin|Access-Control-Request-Headers"}},
		{"before there is a token", "/token", []string{app, asks, wants}, 204, map[string]string{"Access-Control-Allow-Origin": "https://app.example.org"}},
		{"without headers of its own", "/ws", []string{app, asks}, 204, map[string]string{"Access-Control-Allow-Headers": "", "Vary": "Origin"}},
		{"any origin, without cookies", "/open", []string{"Origin: https://evil.example", asks}, 204, map[string]string{
			"Access-Control-Allow-Origin": "https://evil.example", "Access-Control-Allow-Credentials": ""}},
		{"an origin that is not listed", "/ws", []string{"Origin: https://evil.example", asks}, 403, map[string]string{"Access-Control-Allow-Origin": ""}},
		{"OPTIONS of a program", "/ws", []string{asks}, 405, map[string]string{"Allow": "GET"}},
		{"OPTIONS that is no preflight", "/ws", []string{app}, 405, map[string]string{"Allow": "GET"}},
		{"an endpoint without event streams", "/echo", []string{app, asks}, 405, map[string]string{"Allow": "GET"}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			for _, first := range []bool{true, false} { // of its connection, or behind a page
				c := dialRaw(t, s)
				if !first {
					c.write([]byte(requestHead("GET / HTTP/1.1")))
					c.wantPage("GET /")
				}
				c.write([]byte(requestHead("OPTIONS "+test.path+"?topic=a HTTP/1.1", test.headers...)))
				resp := c.response()
				if resp.StatusCode != test.status {
					t.Errorf("answered %s, want %d", resp.Status, test.status)
				}
				for name, want := range test.answer {
					if got := strings.Join(resp.Header.Values(name), "|"); got != want {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
			}
		})
	}
	eventually(t, "all are closed", func() bool { return s.Stats().Open == 0 })
	if n := s.Stats().Opened; n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

// A script can read why its event stream was refused. What the application has set itself is not there twice.
func TestCORSOfAnswers(t *testing.T) {
	refuse := func(r *Request) error {
		switch string(r.Query) {
		case "topic=later":
			r.Defer(func(context.Context, *Request) error { return &codec.Rejection{Status: 401, Reason: "no"} })
		case "topic=now":
			return &codec.Rejection{Status: 401, Reason: "no", Header: [][2]string{{"X-Own", "1"}}}
		default:
			r.ResponseHeader = append(r.ResponseHeader, [2]string{"access-control-allow-origin", "https://app.example.org"}, [2]string{"Vary", "Cookie"})
		}
		return nil
	}
	s := start(t, Options{Endpoints: []Endpoint{{
		Path: "/ws", Mode: ModeTopics, Origins: []string{"https://app.example.org"}, Handler: Handler{Upgrade: refuse}, Topics: TopicAccess{Subscribe: []string{">"}},
	}}})
	for _, test := range []struct {
		topic  string
		status int
		vary   string
	}{{"now", 401, "Origin"}, {"later", 401, "Origin"}, {"$bad", 400, "Origin"}, {"a", 200, "Origin|Cookie"}} {
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET /ws?topic="+test.topic+" HTTP/1.1", "Accept: text/event-stream", "Origin: https://app.example.org")))
		resp := c.response()
		got := fmt.Sprint(resp.StatusCode, resp.Header.Values("Access-Control-Allow-Origin"), resp.Header.Values("Access-Control-Allow-Credentials"), strings.Join(resp.Header.Values("Vary"), "|"))
		if want := fmt.Sprint(test.status, []string{"https://app.example.org"}, []string{"true"}, test.vary); got != want {
			t.Errorf("%s: got %s, want %s", test.topic, got, want)
		}
	}
}

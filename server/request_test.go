package server

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"carillon/codec"
)

// What a login check reads from the request, and that it may keep it.
func TestRequestHelpers(t *testing.T) {
	for _, row := range []struct {
		sentence string
		target   string
		headers  []string
		cookies  map[string]string
		query    url.Values
	}{
		{"nothing at all", "/", nil, map[string]string{"session": ""}, url.Values{}},
		{"one of several cookies", "/", []string{"Cookie: a=1; session=s3cret; b=2"}, map[string]string{"a": "1", "session": "s3cret", "b": "2", "c": ""}, url.Values{}},
		{"the first of two with one name", "/", []string{"Cookie: session=1; session=2"}, map[string]string{"session": "1"}, url.Values{}},
		{"a name in other case is another cookie", "/", []string{"cookie: Session=1"}, map[string]string{"session": "", "Session": "1"}, url.Values{}},
		{"two headers", "/", []string{"Cookie: a=1", "COOKIE: session=2"}, map[string]string{"a": "1", "session": "2"}, url.Values{}},
		{"a name that only begins like it", "/", []string{"Cookie2: session=1"}, map[string]string{"session": ""}, url.Values{}},
		{"malformed cookies and a good one", "/", []string{"Cookie: ;;=; b =1; session=ok; x"}, map[string]string{"session": "ok"}, url.Values{}},
		{"quotes", "/", []string{`Cookie: session="two words"`}, map[string]string{"session": "two words"}, url.Values{}},
		{"an equals sign in the value", "/", []string{"Cookie: session=YQ=="}, map[string]string{"session": "YQ=="}, url.Values{}},
		{"a name that no cookie can have", "/", []string{"Cookie: a=1"}, map[string]string{"": "", "a b": ""}, url.Values{}},
		{"a query", "/?room=a%20b&room=c&x=+", nil, nil, url.Values{"room": {"a b", "c"}, "x": {" "}}},
		{"a query that is malformed in part", "/?room=%41&bad=%zz&x", nil, nil, url.Values{"room": {"A"}, "x": {""}}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			head := []byte(upgradeHead(row.target, row.headers...))
			var r Request
			if err := r.Parse(head); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for name := range row.cookies {
				got[name] = r.Cookie(name)
			}
			query := r.QueryValues()
			clear(head) // as the loop's buffer is, after Upgrade
			for name, want := range row.cookies {
				if got[name] != want {
					t.Errorf("the cookie %q is %q, want %q", name, got[name], want)
				}
			}
			if row.query != nil && query.Encode() != row.query.Encode() {
				t.Errorf("the query is %v, want %v", query, row.query)
			}
		})
	}
}

// A login check that looks at all that a request has. A client that is refused is refused in the handshake: the only
// bytes it ever gets are those of the refusal, and the application never sees a connection.
func TestLoginIsRefusedInTheHandshake(t *testing.T) {
	opened := make(chan *Conn, 10)
	endpoint := Endpoint{Path: "/account", Handler: Handler{
		Upgrade: func(r *Request) error {
			switch {
			case !r.RemoteAddr.Addr().IsLoopback():
				return &codec.Rejection{Status: 403, Reason: "only from this machine"}
			case r.Cookie("session") != "s3cret" && string(r.Header("Authorization")) != "Bearer s3cret":
				return &codec.Rejection{Status: 401, Reason: "log in first", Header: [][2]string{{"WWW-Authenticate", "Bearer"}}}
			case r.QueryValues().Get("room") == "":
				return &codec.Rejection{Status: 400, Reason: "which room?"}
			}
			r.Value = r.QueryValues().Get("room")
			return nil
		},
		Open:    func(c *Conn) { opened <- c },
		Message: func(*Conn, Opcode, []byte) { t.Error("a message of a stranger") },
		Error:   func(_ *Conn, err error) { t.Error(err) },
	}}
	s := start(t, Options{Endpoints: []Endpoint{endpoint}})
	for _, row := range []struct {
		sentence, target string
		headers          []string
		status           int
		body             string
	}{
		{"no login", "/account?room=x", nil, 401, "log in first\n"},
		{"a wrong cookie", "/account?room=x", []string{"Cookie: session=guess"}, 401, "log in first\n"},
		{"no room", "/account", []string{"Cookie: session=s3cret"}, 400, "which room?\n"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write(append([]byte(upgradeHead(row.target, row.headers...)), text("let me in")...))
			all, err := io.ReadAll(c.r)
			if err != nil || strings.Contains(string(all), "101") || strings.Count(string(all), "HTTP/1.1 ") != 1 {
				t.Fatalf("answered %q, %v", all, err)
			}
			c.r.Reset(strings.NewReader(string(all)))
			resp := c.response()
			if body, _ := io.ReadAll(resp.Body); resp.StatusCode != row.status || string(body) != row.body {
				t.Errorf("answered %s with %q; want %d with %q", resp.Status, body, row.status, row.body)
			}
			if row.status == http.StatusUnauthorized && resp.Header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("answered with the headers %v", resp.Header)
			}
		})
	}
	if st := s.Stats(); len(opened) != 0 || st.Opened != 0 || st.Refusals[RefuseHandler] != 3 {
		t.Errorf("%d connections were opened, refusals %v", st.Opened, st.Refusals)
	}
	dial(t, s, "/account?room=green", "Authorization: Bearer s3cret")
	if c := <-opened; c.Value() != "green" {
		t.Errorf("the value is %v", c.Value())
	}
}

package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"carillon/codec"
)

// change is the sample handshake with one text replaced by another.
func change(t *testing.T, old, replacement string) string {
	t.Helper()
	head := upgradeHead("/echo")
	if !strings.Contains(head, old) {
		t.Fatalf("%q is not in the handshake", old)
	}
	return strings.Replace(head, old, replacement, 1)
}

const (
	hostLine    = "Host: example.com\r\n"
	upgradeLine = "Upgrade: websocket\r\n"
	connLine    = "Connection: Upgrade\r\n"
	keyLine     = "Sec-WebSocket-Key: " + sampleKey + "\r\n"
	versionLine = "Sec-WebSocket-Version: 13\r\n"
)

func TestHandshakeIsAnswered(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, test := range []struct{ sentence, head string }{
		{"the plain handshake of the RFC", upgradeHead("/echo")},
		{"a query does not change the endpoint", upgradeHead("/echo?room=1")},
		{"a target may be absolute", strings.Replace(upgradeHead("/echo"), "/echo", "ws://example.com/echo", 1)},
		{"header names and values may be in any case", strings.ToLower(connLine) +
			"UPGRADE: WebSocket\r\nhost: h\r\nsec-websocket-KEY: " + sampleKey + "\r\n" + strings.ToUpper(versionLine)},
		{"Firefox also keeps alive", change(t, "Connection: Upgrade", "Connection: keep-alive, Upgrade")},
		{"headers that mean nothing here may come", upgradeHead("/echo", "Origin: http://example.com", "X-Forwarded-For: 1.2.3.4")},
		{"the host may be an IPv6 address with a port", change(t, "example.com", "[::1]:8080")},
		{"a head may be as large as the limit", padded(8 << 10)},
		{"an empty line may come first", "\r\n" + upgradeHead("/echo")},
		{"a body of zero length is none, as the JDK's client says", upgradeHead("/echo", "Content-Length: 0")},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			head := test.head
			if !strings.HasPrefix(strings.TrimSpace(head), "GET ") {
				head = "GET /echo HTTP/1.1\r\n" + head + "\r\n"
			}
			c := dialRaw(t, s)
			c.write([]byte(head))
			resp := c.response()
			if resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("answered %s", resp.Status)
			}
			for name, want := range map[string]string{
				"Upgrade":    "websocket",
				"Connection": "Upgrade",
				// The answer to the key, as RFC 6455, section 1.3, works it out.
				"Sec-WebSocket-Accept":     "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
				"Sec-WebSocket-Protocol":   "",
				"Sec-WebSocket-Extensions": "",
				"Content-Length":           "",
				"Transfer-Encoding":        "",
			} {
				if got := strings.Join(resp.Header.Values(name), "|"); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			c.send("hello")
			c.want("hello")
		})
	}
}

// padded is a handshake of so many bytes.
func padded(size int) string {
	return upgradeHead("/echo", "X-Padding: "+strings.Repeat("x", size-len(upgradeHead("/echo", "X-Padding: "))))
}

type refusal struct {
	sentence string
	head     string
	status   int
	says     string // a part of the answer's headers, written "Name: value", or of its body
	why      RefuseReason
}

func refusals(t *testing.T) []refusal {
	plain := "GET /echo HTTP/1.1\r\n" + hostLine + "\r\n"
	hixie := "GET /echo HTTP/1.1\r\n" + hostLine + "Upgrade: WebSocket\r\nConnection: Upgrade\r\n"
	bad := func(sentence, head, says string) refusal {
		return refusal{sentence, head, 400, says, RefuseMalformed}
	}
	return []refusal{
		bad("a request line needs three parts", "GET /echo\r\n"+hostLine+"\r\n", "request line"),
		bad("a request line has one space between its parts", change(t, "GET /echo", "GET  /echo"), "request"),
		bad("empty lines end somewhere", strings.Repeat("\r\n", 5)+upgradeHead("/echo"), "request line"),
		{"TLS is not spoken here", "\x16\x03\x01\x00\x05hello", 400, "this port does not speak TLS", RefuseTLS},
		bad("a target must not hold control bytes", change(t, "/echo", "/ec\x01ho"), "target"),
		bad("a target must not hold a tab", change(t, "/echo", "/ec\tho"), "target"),
		bad("a target must not hold half an escape", change(t, "/echo", "/echo%2"), "target"),
		bad("lines must not end in bare LF", strings.ReplaceAll(upgradeHead("/echo"), "\r\n", "\n"), "CR LF"),
		bad("a single line must not end in bare LF", change(t, upgradeLine, "Upgrade: websocket\n"), "CR LF"),
		bad("a header must not hold a bare CR", change(t, "example.com", "example\r.com"), "header value"),
		bad("a header must not hold NUL", upgradeHead("/echo", "X-A: a\x00b"), "header value"),
		bad("a header must not hold DEL", upgradeHead("/echo", "X-A: a\x7fb"), "header value"),
		bad("a header must not go on in the next line", upgradeHead("/echo", "X-A: a\r\n b"), "header name"),
		bad("no space may stand before the colon", change(t, "Upgrade: ", "Upgrade : "), "header name"),
		bad("a header needs a name", upgradeHead("/echo", ": value"), "header name"),
		bad("a header needs a colon", upgradeHead("/echo", "X-A"), "header name"),

		bad("Host must not be missing", change(t, hostLine, ""), "Host"),
		bad("Host must not come twice", change(t, hostLine, hostLine+hostLine), "Host"),
		bad("Host must not be empty", change(t, hostLine, "Host: \r\n"), "Host"),
		bad("Host must be a host", change(t, "example.com", "a b"), "Host"),
		bad("the key must not be missing", change(t, keyLine, ""), "Sec-WebSocket-Key"),
		bad("the key must not come twice", change(t, keyLine, keyLine+keyLine), "Sec-WebSocket-Key"),
		bad("the key must not be empty", change(t, sampleKey, ""), "Sec-WebSocket-Key"),
		bad("the key must be base64", change(t, sampleKey, strings.Repeat("!", 24)), "Sec-WebSocket-Key"),
		bad("the key must not be 15 bytes", change(t, sampleKey, "AAAAAAAAAAAAAAAAAAAA"), "Sec-WebSocket-Key"),
		bad("the key must not be 17 bytes", change(t, sampleKey, "AAAAAAAAAAAAAAAAAAAAAAA="), "Sec-WebSocket-Key"),
		bad("the version must not be missing", change(t, versionLine, ""), "Sec-WebSocket-Version"),
		bad("the version must not come twice", change(t, versionLine, versionLine+versionLine), "Sec-WebSocket-Version"),
		bad("the version must not be empty", change(t, "Version: 13", "Version: "), "Sec-WebSocket-Version"),
		bad("the version must be a number", change(t, "Version: 13", "Version: 013"), "Sec-WebSocket-Version"),
		bad("Connection must name the upgrade", change(t, connLine, ""), "Connection"),
		bad("a handshake has no body of a length", upgradeHead("/echo", "Content-Length: 5"), "body"),
		bad("a handshake has no body in chunks", upgradeHead("/echo", "Transfer-Encoding: chunked"), "body"),
		bad("subprotocols must be tokens", upgradeHead("/echo", "Sec-WebSocket-Protocol: a b"), "Sec-WebSocket-Protocol"),
		bad("extensions must be a list", upgradeHead("/echo", "Sec-WebSocket-Extensions: ;"), "Sec-WebSocket-Extensions"),

		{"version 8 is no longer spoken", change(t, "Version: 13", "Version: 8"), 426, "Sec-Websocket-Version: 13", RefuseNoUpgrade},
		{"version 14 is not spoken yet", change(t, "Version: 13", "Version: 14"), 426, "Sec-Websocket-Version: 13", RefuseNoUpgrade},
		{"draft 75 had neither key nor version", hixie + "\r\n", 426, "Sec-Websocket-Version: 13", RefuseNoUpgrade},
		{"draft 76 had two keys and bytes behind the head",
			hixie + "Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\nSec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\n\r\n^n:ds[4U",
			426, "Sec-Websocket-Version: 13", RefuseNoUpgrade},
		{"some clients of draft 76 gave those bytes a length",
			hixie + "Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\nSec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\nContent-Length: 8\r\n\r\n^n:ds[4U",
			426, "Sec-Websocket-Version: 13", RefuseNoUpgrade},
		{"a browser's visit is told what is here", plain, 426, "Upgrade: websocket", RefuseNoUpgrade},
		{"a browser's visit gets a word to read", plain, 426, "this is a WebSocket endpoint", RefuseNoUpgrade},
		{"an upgrade to HTTP/2 is none to WebSocket", change(t, "Upgrade: websocket", "Upgrade: h2c"), 426, "Upgrade: websocket", RefuseNoUpgrade},
		{"POST is no handshake", change(t, "GET", "POST"), 405, "Allow: GET", RefuseMethod},
		{"POST with a body is none either", "POST /echo HTTP/1.1\r\n" + hostLine + "Content-Length: 3\r\n\r\nabc", 405, "Allow: GET", RefuseMethod},
		{"HTTP/1.0 cannot be upgraded", change(t, "HTTP/1.1", "HTTP/1.0"), 505, "proxy_http_version 1.1", RefuseVersion},
		{"HTTP/1.0 finds no more than HTTP/1.1", "GET /ecco HTTP/1.0\r\n\r\n", 404, "no endpoint", RefuseNotFound},
		{"the preface of HTTP/2 is understood as such", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1", RefuseVersion},
		{"another path is not found", change(t, "/echo", "/ecco"), 404, "no endpoint", RefuseNotFound},
		{"paths have a case", change(t, "/echo", "/Echo"), 404, "no endpoint", RefuseNotFound},
		{"a slash at the end is another path", change(t, "/echo", "/echo/"), 404, "no endpoint", RefuseNotFound},
		{"an escaped path is another path", change(t, "/echo", "/%65cho"), 404, "no endpoint", RefuseNotFound},
		{"a head above the limit is too large", padded(8<<10 + 1), 431, "8KiB", RefuseHeadTooLong},
		{"a head that never ends is too large", "GET /echo HTTP/1.1\r\n" + strings.Repeat("X-A: b\r\n", 8<<10), 431, "8KiB", RefuseHeadTooLong},
		{"a line that never ends is too large", "GET /" + strings.Repeat("a", 1<<20), 431, "8KiB", RefuseHeadTooLong},
	}
}

func TestHandshakeIsRefused(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, test := range refusals(t) {
		t.Run(test.sentence, func(t *testing.T) {
			before := s.Stats().Refusals
			c := dialRaw(t, s)
			c.write([]byte(test.head))
			c.wantRefusal(test.status, test.says)
			s.wantRefused(t, before, test.why)
		})
	}
	if n := s.Stats().Opened; n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

// A client that has not waited for the answer, and goes on sending, must get the answer all the same:
// closing the socket on unread bytes would reset the connection and could take the answer with it.
func TestARefusalReachesAClientThatKeepsSending(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	more := []byte(strings.Repeat("all the frames it wanted to send ", 8<<10))
	for _, test := range refusals(t) {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write(append([]byte(test.head), more...))
			c.write(more)
			c.wantRefusal(test.status, test.says)
			c.write(more)
		})
	}
}

// wantRefusal reads an answer that is complete by itself, and then the orderly end of the connection.
func (c *client) wantRefusal(status int, says string) {
	c.t.Helper()
	resp := c.response()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read the answer's body: %v", err)
	}
	if resp.StatusCode != status {
		c.t.Errorf("answered %s %q, want %d", resp.Status, body, status)
	}
	if !resp.Close {
		c.t.Errorf("Connection is %q, want close", resp.Header["Connection"])
	}
	if resp.ContentLength != int64(len(body)) || len(body) == 0 {
		c.t.Errorf("Content-Length is %d, the body has %d bytes", resp.ContentLength, len(body))
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		c.t.Errorf("Content-Type is %q", resp.Header.Get("Content-Type"))
	}
	var whole strings.Builder
	_ = resp.Header.Write(&whole)
	whole.Write(body)
	if !strings.Contains(whole.String(), says) {
		c.t.Errorf("the answer does not say %q:\n%s", says, &whole)
	}
	c.wantEOF()
}

// wantRefused checks that one more connection was refused, and for this reason.
func (s *Server) wantRefused(t *testing.T, before map[RefuseReason]uint64, why RefuseReason) {
	t.Helper()
	before[why]++
	for reason, n := range s.Stats().Refusals {
		if n != before[reason] {
			t.Errorf("%d refusals are counted as %v, want %d", n, reason, before[reason])
		}
	}
}

func TestAClientThatLeavesBeforeItsHeadIsCompleteIsCounted(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/echo")[:40]))
	s.arrived(t, 40)
	_ = c.conn.Close()
	eventually(t, "one connection is lost", func() bool { return s.Stats().Refusals[RefuseLost] == 1 })
}

// arrived waits until the server has read so many bytes, from all clients together.
func (s *Server) arrived(t testing.TB, bytes int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d bytes have arrived", bytes), func() bool { return s.Stats().BytesIn >= uint64(bytes) })
}

func TestFramesBehindTheHead(t *testing.T) {
	head := []byte(upgradeHead("/echo"))
	half := text("the second half comes later")
	for _, test := range []struct {
		sentence     string
		first, later []byte // behind the head, and when that has arrived
		want         []string
	}{
		{"a frame in the head's segment is served", text("one"), nil, []string{"one"}},
		{"several frames are", join(text("one"), text("two"), text("three")), nil, []string{"one", "two", "three"}},
		{"a part of a payload is kept", half[:10], half[10:], []string{"the second half comes later"}},
		{"a part of a header is kept", half[:1], half[1:], []string{"the second half comes later"}},
		{"a part behind a whole frame is kept", join(text("one"), half[:3]), half[3:], []string{"one", "the second half comes later"}},
		{"the first fragment is kept", masked(0x01, []byte("Hel")), masked(0x80, []byte("lo")), []string{"Hello"}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := start(t, Options{Endpoints: echoAndBroadcast()})
			c := dialRaw(t, s)
			first := join(head, test.first)
			c.write(first)
			s.arrived(t, len(first))
			c.write(test.later)
			if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("answered %s", resp.Status)
			}
			for _, w := range test.want {
				c.want(w)
			}
		})
	}
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestAHeadMayArriveByteByByte(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dialRaw(t, s)
	for i, b := range []byte(upgradeHead("/echo") + string(text("hello"))) {
		c.write([]byte{b})
		s.arrived(t, i+1) // so that the next byte is read by itself
	}
	if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %s", resp.Status)
	}
	c.want("hello")
}

func TestSubprotocol(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{{
		Path:         "/echo",
		Subprotocols: []string{"chat.v1", "chat.v2"},
		Handler:      Handler{Open: func(c *Conn) { _ = c.Send(Text, []byte("you speak "+c.Subprotocol())) }},
	}}})
	for _, test := range []struct {
		sentence string
		headers  []string
		want     string
	}{
		{"a client that offers none gets none", nil, ""},
		{"the only common one is chosen", []string{"Sec-WebSocket-Protocol: chat.v1"}, "chat.v1"},
		{"the client's order counts", []string{"Sec-WebSocket-Protocol: chat.v2, chat.v1"}, "chat.v2"},
		{"unknown ones are passed over", []string{"Sec-WebSocket-Protocol: mqtt, chat.v1"}, "chat.v1"},
		{"nothing in common is accepted without one", []string{"Sec-WebSocket-Protocol: mqtt"}, ""},
		{"names have a case", []string{"Sec-WebSocket-Protocol: Chat.v1"}, ""},
		{"a list may come in two headers", []string{"Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: chat.v2"}, "chat.v2"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead("/echo", test.headers...)))
			resp := c.response()
			if got := strings.Join(resp.Header.Values("Sec-WebSocket-Protocol"), "|"); resp.StatusCode != 101 || got != test.want {
				t.Errorf("answered %s with %q, want %q", resp.Status, got, test.want)
			}
			c.want("you speak " + test.want)
		})
	}
}

func TestUpgradeSeesTheRequest(t *testing.T) {
	seen := make(chan string, 1)
	remote := make(chan netip.AddrPort, 1)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/login", Handler: Handler{
		Upgrade: func(r *Request) error {
			remote <- r.RemoteAddr
			all := fmt.Sprintf("%s %s %s?%s at %s, cookie %s, tokens", r.Method, r.Target, r.Path, r.Query, r.Host, r.Header("COOKIE"))
			for name, value := range r.Headers() {
				if strings.EqualFold(string(name), "x-token") {
					all += " " + string(value)
				}
			}
			seen <- all
			r.Value = "alice"
			r.ResponseHeader = [][2]string{{"Set-Cookie", "seen=1"}, {"X-Node", "a\r\nb"}, {"Sec-WebSocket-Accept", "forged"}}
			return nil
		},
		Open: func(c *Conn) { _ = c.Send(Text, fmt.Appendf(nil, "hello %v on %s", c.Value(), c.Path())) },
	}}}})
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/login?user=a%20b&x", "Cookie: session=7; b=c", "X-Token: one", "x-token:two")))
	resp := c.response()
	c.want("hello alice on /login")
	if got, want := <-seen, "GET /login?user=a%20b&x /login?user=a%20b&x at example.com, cookie session=7; b=c, tokens one two"; got != want {
		t.Errorf("saw %q, want %q", got, want)
	}
	if got, local := (<-remote).String(), c.conn.LocalAddr().String(); got != local {
		t.Errorf("saw the address %s, want %s", got, local)
	}
	if got := resp.Header.Get("Set-Cookie"); got != "seen=1" {
		t.Errorf("Set-Cookie is %q", got)
	}
	if got := resp.Header.Get("X-Node"); got != "a  b" {
		t.Errorf("X-Node is %q, want it on one line", got)
	}
	if got := strings.Join(resp.Header.Values("Sec-WebSocket-Accept"), "|"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("Sec-WebSocket-Accept is %q", got)
	}
}

func TestUpgradeRefuses(t *testing.T) {
	login := &codec.Rejection{Status: 401, Reason: "log in first", Header: [][2]string{{"WWW-Authenticate", "Bearer"}}}
	answers := map[string]func() error{
		"login":   func() error { return login },
		"wrapped": func() error { return fmt.Errorf("check the session: %w", login) },
		"other":   func() error { return errors.New("no such user in the table of passwords") },
		"panic":   func() error { panic("alas") },
		"accept":  func() error { return nil },
	}
	endpoint := Endpoint{Path: "/login", Handler: Handler{
		Upgrade: func(r *Request) error { return answers[string(r.Query)]() },
		Message: echo,
	}}
	s, log := startLogged(t, Options{Loops: 1, Endpoints: []Endpoint{endpoint}})
	bystander := dial(t, s, "/login?accept")
	for _, test := range []refusal{
		{"a Rejection is the answer", "login", 401, "log in first", RefuseHandler},
		{"a Rejection brings its headers", "login", 401, "Www-Authenticate: Bearer", RefuseHandler},
		{"a Rejection may be wrapped", "wrapped", 401, "log in first", RefuseHandler},
		{"another error is 403 and keeps its text to itself", "other", 403, "forbidden\n", RefuseHandler},
		{"a panic is 500 and keeps its text to itself", "panic", 500, "internal server error\n", RefusePanic},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			before := s.Stats().Refusals
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead("/login?" + test.head)))
			c.wantRefusal(test.status, test.says)
			s.wantRefused(t, before, test.why)
			bystander.send("still here")
			bystander.want("still here")
		})
	}
	if n := s.Stats().Panics; n != 1 {
		t.Errorf("%d panics are counted, want 1", n)
	}
	for _, words := range []string{"no such user in the table of passwords", "handler panicked", "alas", "handshake_test.go"} {
		if !strings.Contains(log.String(), words) {
			t.Errorf("the log does not say %q:\n%s", words, log)
		}
	}
}

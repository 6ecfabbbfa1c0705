package codec

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// lines makes a head of its lines.
func lines(ls ...string) string { return strings.Join(ls, "\r\n") + "\r\n\r\n" }

func TestHeadLen(t *testing.T) {
	tests := []struct {
		rule string
		buf  string
		want int
	}{
		{"nothing is no head", "", 0},
		{"a head ends with its blank line", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 27},
		{"what follows is not part of it", "GET / HTTP/1.1\r\n\r\n\x81\x80", 18},
		{"a line is not enough", "GET / HTTP/1.1\r\n", 0},
		{"half a blank line is not enough", "GET / HTTP/1.1\r\n\r", 0},
		{"CR without LF is no line end", "GET / HTTP/1.1\r\r\r\r", 0},
		{"two bare LF end a head", "GET / HTTP/1.1\n\nrest", 16},
		{"a bare LF after CR LF ends it", "GET / HTTP/1.1\r\n\nrest", 17},
		{"CR LF after a bare LF ends it", "GET / HTTP/1.1\n\r\nrest", 17},
		{"the first blank line counts", "a\r\n\r\nb\r\n\r\n", 5},
		{"blank lines at the start are a head, to be refused", "\r\n\r\nGET /", 4},
		{"CR CR LF is not blank", "a\r\n\r\r\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			buf := []byte(tt.buf)
			if got := HeadLen(buf, 0); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
			if got := headLenInPieces(buf); got != tt.want {
				t.Errorf("byte by byte: got %d, want %d", got, tt.want)
			}
			for i := range buf {
				if n := HeadLen(buf[:i], 0); n == 0 && HeadLen(buf, i) != tt.want {
					t.Errorf("after %d bytes in vain: got %d, want %d", i, HeadLen(buf, i), tt.want)
				}
			}
		})
	}
}

func headLenInPieces(buf []byte) int {
	for i := range buf {
		if n := HeadLen(buf[:i+1], i); n > 0 {
			return n
		}
	}
	return 0
}

func TestParse(t *testing.T) {
	get := func(target string) string { return lines("GET "+target+" HTTP/1.1", "Host: h") }
	host := func(host string) string { return lines("GET / HTTP/1.1", "Host: "+host) }
	with := func(header string) string { return lines("GET / HTTP/1.1", "Host: h", header, "X: y") }
	tests := []struct {
		rule   string
		head   string
		status int // 0: accepted
	}{
		{"the smallest request", get("/"), 0},
		{"any method that is a token", lines("M-SEARCH / HTTP/1.1", "Host: h"), 0},
		{"a path with a query", get("/a/b?c=d&e=%zz?/"), 0},
		{"an escaped path", get("/caf%C3%A9"), 0},
		{"an absolute target", get("http://example.com/a?b"), 0},
		{"an absolute target without path", get("ws://example.com"), 0},
		{"an absolute target with a query only", get("WSS://example.com:1?b"), 0},
		{"a header without value", with("Empty:"), 0},
		{"a header with white space around its value", with("A: \t b \t "), 0},
		{"a tab within a value", with("A: b\tc"), 0},
		{"bytes above 0x7F in a value", with("A: caf\xc3\xa9 \xff"), 0},
		{"any character of a token in a name", with("!#$%&'*+-.^_`|~09azAZ: b"), 0},
		{"a header line of 7000 bytes", with("Cookie: " + strings.Repeat("c", 7000)), 0},
		{"header names in any case", lines("GET / HTTP/1.1", "hOST: h"), 0},
		{"a host with a port", host("example.com:8080"), 0},
		{"a host with an empty port", host("example.com:"), 0},
		{"a host that is an IPv4 address", host("127.0.0.1:8080"), 0},
		{"a host that is an IPv6 address", host("[::1]"), 0},
		{"a host that is an IPv6 address with port", host("[2001:db8::192.0.2.1]:8080"), 0},

		{"bare LF line ends", "GET / HTTP/1.1\nHost: h\n\n", 400},
		{"one bare LF", "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", 400},
		{"a bare LF behind the Host", "GET / HTTP/1.1\r\nHost: hh\nA: b\r\n\r\n", 400},
		{"a bare LF behind another header", "GET / HTTP/1.1\r\nA: b\nHost: h\r\n\r\n", 400},
		{"a bare LF behind the last header", "GET / HTTP/1.1\r\nHost: h\r\nA: bb\n\r\n", 400},
		{"a bare LF as blank line", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400},
		{"a bare CR in a value", with("A: b\rC: d"), 400},
		{"a bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"CR CR LF", "GET / HTTP/1.1\r\r\nHost: h\r\n\r\n", 400},
		{"an empty line before the request line", "\r\n" + get("/"), 400},
		{"only a blank line", "\r\n\r\n", 400},
		{"nothing", "", 400},
		{"no blank line", "GET / HTTP/1.1\r\nHost: h\r\n", 400},
		{"something behind the blank line", get("/") + "x", 400},

		{"HTTP/1.0", lines("GET / HTTP/1.0", "Host: h"), 505},
		{"HTTP/1.0 without a Host", lines("GET / HTTP/1.0"), 505},
		{"HTTP/1.0 with two Hosts", lines("GET / HTTP/1.0", "Host: h", "Host: h"), 400},
		{"HTTP/1.0 with a bad target", lines("GET a HTTP/1.0"), 400},
		{"HTTP/1.0 with a bad header", lines("GET / HTTP/1.0", "A : b"), 400},
		{"HTTP/1.9", lines("GET / HTTP/1.9", "Host: h"), 505},
		{"HTTP/2.0", lines("GET / HTTP/2.0", "Host: h"), 505},
		{"HTTP/0.9", lines("GET / HTTP/0.9", "Host: h"), 505},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505},
		{"HTTP/1.10 is no version", lines("GET / HTTP/1.10", "Host: h"), 400},
		{"HTTP/11 is no version", lines("GET / HTTP/11", "Host: h"), 400},
		{"HTTP/1.x is no version", lines("GET / HTTP/1.x", "Host: h"), 400},
		{"http/1.1 is no version", lines("GET / http/1.1", "Host: h"), 400},
		{"no version", lines("GET /", "Host: h"), 400},
		{"a space behind the version", lines("GET / HTTP/1.1 ", "Host: h"), 400},
		{"two spaces", lines("GET  / HTTP/1.1", "Host: h"), 400},
		{"a tab for a space", lines("GET\t/ HTTP/1.1", "Host: h"), 400},
		{"a leading space", lines(" GET / HTTP/1.1", "Host: h"), 400},
		{"no target", lines("GET HTTP/1.1", "Host: h"), 400},
		{"an empty method", lines(" / HTTP/1.1", "Host: h"), 400},
		{"a method that is no token", lines("GE(T / HTTP/1.1", "Host: h"), 400},

		{"a control character in the target", get("/a\x01b"), 400},
		{"NUL in the target", get("/a\x00b"), 400},
		{"DEL in the target", get("/a\x7fb"), 400},
		{"a space in the target", get("/a b"), 400},
		{"bytes above 0x7F in the target", get("/caf\xc3\xa9"), 400},
		{"a fragment", get("/a#b"), 400},
		{"a relative target", get("a"), 400},
		{"an escape that is none", get("/%zz"), 400},
		{"an escape cut short", get("/%4"), 400},
		{"the asterisk form", lines("OPTIONS * HTTP/1.1", "Host: h"), 400},
		{"the authority form", lines("CONNECT h:80 HTTP/1.1", "Host: h"), 400},
		{"a target of another scheme", get("ftp://example.com/"), 400},
		{"an absolute target without host", get("http:///a"), 400},
		{"an absolute target with a user", get("http://user@example.com/"), 400},

		{"a space before the colon", with("A : b"), 400},
		{"a tab before the colon", with("A\t: b"), 400},
		{"an empty name", with(": b"), 400},
		{"a name that is no token", with("A(b): c"), 400},
		{"a name with bytes above 0x7F", with("caf\xc3\xa9: c"), 400},
		{"a line without colon", with("A b"), 400},
		{"a folded line", with("A: b\r\n c"), 400},
		{"a line folded with a tab", with("A: b\r\n\tc"), 400},
		{"white space before the first header", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
		{"NUL in a value", with("A: b\x00c"), 400},
		{"a control character in a value", with("A: b\x1bc"), 400},
		{"DEL in a value", with("A: b\x7fc"), 400},

		{"no Host", lines("GET / HTTP/1.1", "A: b"), 400},
		{"no headers at all", lines("GET / HTTP/1.1"), 400},
		{"no Host with an absolute target", lines("GET http://h/ HTTP/1.1", "A: b"), 400},
		{"two Hosts", lines("GET / HTTP/1.1", "Host: h", "Host: h"), 400},
		{"two Hosts in different case", lines("GET / HTTP/1.1", "Host: h", "hosT: h"), 400},
		{"an empty Host", host(""), 400},
		{"a Host of white space", host(" \t "), 400},
		{"a Host that is only a port", host(":80"), 400},
		{"a Host with a user", host("user@h"), 400},
		{"a Host with a path", host("h/a"), 400},
		{"a list of Hosts", host("a, b"), 400},
		{"a Host with a space", host("a b"), 400},
		{"a port that is no number", host("h:http"), 400},
		{"two ports", host("h:80:80"), 400},
		{"an IPv6 address without brackets", host("::1"), 400},
		{"an IPv6 address that is not closed", host("[::1"), 400},
		{"an IPv6 address with something behind it", host("[::1]x"), 400},
		{"brackets around a name", host("[name]"), 400},
		{"brackets around an IPv4 address", host("[1.2.3.4]"), 400},
		{"empty brackets", host("[]"), 400},
		{"a bad escape in the Host", host("h%4"), 400},
		{"bytes above 0x7F in the Host", host("caf\xc3\xa9"), 400},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			var r Request
			err := r.Parse([]byte(tt.head))
			if tt.status == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tt.head))); err != nil {
					t.Errorf("net/http refuses it: %v", err)
				}
				return
			}
			var rejection *Rejection
			if !errors.As(err, &rejection) || rejection.Status != tt.status {
				t.Errorf("got %v, want a %d", err, tt.status)
			}
		})
	}
}

func TestRequestParts(t *testing.T) {
	tests := []struct{ target, path, query, host string }{
		{"/", "/", "", "h:80"},
		{"/a/b?c=d", "/a/b", "c=d", "h:80"},
		{"/?", "/", "", "h:80"},
		{"/a?b?c", "/a", "b?c", "h:80"},
		{"//a", "//a", "", "h:80"},
		{"http://other:1/a?b", "/a", "b", "other:1"},
		{"http://other?b", "/", "b", "other"},
		{"HTTPS://other", "/", "", "other"},
	}
	for _, tt := range tests {
		var r Request
		if err := r.Parse([]byte(lines("POST "+tt.target+" HTTP/1.1", "Host: h:80"))); err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		if string(r.Method) != "POST" || string(r.Target) != tt.target || string(r.Path) != tt.path ||
			string(r.Query) != tt.query || string(r.Host) != tt.host {
			t.Errorf("%s: method %q, target %q, path %q, query %q, host %q", tt.target, r.Method, r.Target, r.Path, r.Query, r.Host)
		}
	}
}

// A handshake cannot be HTTP/1.0, but a server of pages has to know what was asked for.
func TestARequestOfHTTP10CanBeRead(t *testing.T) {
	var r Request
	err := r.Parse([]byte(lines("GET /a?b HTTP/1.0", "Host: h", "X-One: 1")))
	if err != error(errVersion) || !r.HTTP10 || string(r.Path) != "/a" || string(r.Query) != "b" ||
		string(r.Host) != "h" || string(r.Header("x-one")) != "1" {
		t.Errorf("%v; HTTP10 %v, path %q, query %q, host %q", err, r.HTTP10, r.Path, r.Query, r.Host)
	}
	if err := r.Parse([]byte(lines("GET / HTTP/1.0", "Host: h", "A : b"))); err != error(errHeaderName) || r.HTTP10 {
		t.Errorf("a malformed one: %v, HTTP10 %v", err, r.HTTP10)
	}
	for _, version := range []string{"1.1", "1.9", "2.0"} {
		if _ = r.Parse([]byte(lines("GET / HTTP/"+version, "Host: h"))); r.HTTP10 {
			t.Errorf("HTTP/%s is taken for 1.0", version)
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	var r Request
	if err := r.Parse([]byte(lines("GET / HTTP/1.1", "Host: h", "X-One:  1 ", "x-one: 2", "Empty:", "X_One: 3"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"x-ONE": "1", "X-One": "1", "HOST": "h", "x_one": "3"} {
		if got := r.Header(name); string(got) != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := r.Header("empty"); got == nil || len(got) != 0 {
		t.Errorf("an empty header is %v, want an empty slice that is not nil", got)
	}
	if got := r.Header("absent"); got != nil {
		t.Errorf("an absent header is %q, want nil", got)
	}
	if got := r.Header("X\x0dOne"); got != nil { // "-" is 0x2D: one bit away from CR
		t.Errorf("names are compared too loosely: %q", got)
	}
	var all []string
	for name, value := range r.Headers() {
		all = append(all, fmt.Sprintf("%s=%s", name, value))
	}
	if got := strings.Join(all, " "); got != "Host=h X-One=1 x-one=2 Empty= X_One=3" {
		t.Errorf("headers: %s", got)
	}
	for range r.Headers() {
		break // stopping early is allowed
	}
	if err := r.Parse([]byte("nonsense")); err == nil || r.Header("Host") != nil || r.Host != nil {
		t.Error("a failed Parse leaves something of the last request")
	}
}

func TestIsToken(t *testing.T) {
	for c := range 256 {
		want := c > ' ' && c < 0x7F && !strings.ContainsRune("\"(),/:;<=>?@[\\]{}", rune(c))
		if got := IsToken(string([]byte{'a', byte(c)})); got != want {
			t.Errorf("byte %#02x: got %v", c, got)
		}
	}
	if IsToken("") {
		t.Error("the empty string is no token")
	}
}

func FuzzHead(f *testing.F) {
	for _, head := range []string{
		lines("GET / HTTP/1.1", "Host: h"),
		lines("GET http://a/b?c HTTP/1.1", "Host: [::1]:80", "A: b\tc"),
		lines("GET / HTTP/1.0"), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\n\n", "GET / HTTP/1.1\nHost: h\n\r\n",
		upgradeHead(), upgradeHead("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=\"1\\5\", x;y"),
		upgradeHead("Sec-WebSocket-Protocol: a, ,b"), lines("POST / HTTP/1.1", "Host: h", "Content-Length: 3", "Transfer-Encoding: chunked"),
	} {
		f.Add([]byte(head))
	}
	f.Fuzz(func(t *testing.T, buf []byte) {
		n := HeadLen(buf, 0)
		if pieces := headLenInPieces(buf); pieces != n {
			t.Fatalf("the head has %d bytes, %d when it comes byte by byte", n, pieces)
		}
		head := string(buf[:n])
		var r Request
		if err := r.Parse(buf[:n]); err != nil {
			var rejection *Rejection
			if !errors.As(err, &rejection) {
				t.Fatalf("%v is no Rejection", err)
			}
			if r.HTTP10 {
				sameAsNetHTTP(t, head, &r)
			}
			return
		}
		sameAsNetHTTP(t, head, &r)
		upgradeErr := r.CheckUpgrade()
		u := Upgrader{Subprotocols: []string{"a", "b"}, Deflate: true}
		answer, _, err := u.Upgrade(nil, &r, nil)
		if string(buf[:n]) != head {
			t.Fatal("the head was changed")
		}
		if upgradeErr == nil && err == nil {
			checkAnswer(t, head, answer)
		}
	})
}

// sameAsNetHTTP checks that what we accept net/http accepts too, and in the same sense.
func sameAsNetHTTP(t *testing.T, head string, r *Request) {
	t.Helper()
	theirs, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
	if err != nil {
		// What net/http judges beyond the grammar of the head: the framing of a body, and hosts that
		// RFC 3986 allows and package url does not.
		if r.Header("Content-Length") != nil || r.Header("Transfer-Encoding") != nil || r.Header("Trailer") != nil ||
			strings.ContainsAny(string(r.Host), "%[") || r.authority != nil {
			return
		}
		t.Fatalf("net/http refuses %q: %v", head, err)
	}
	if theirs.Method != string(r.Method) || theirs.RequestURI != string(r.Target) {
		t.Fatalf("net/http reads %s %s", theirs.Method, theirs.RequestURI)
	}
	if r.authority == nil && theirs.Host != string(r.Host) {
		t.Fatalf("net/http reads host %q, we %q", theirs.Host, r.Host)
	}
	if r.authority == nil && !strings.HasPrefix(string(r.Path), "//") && theirs.URL.RawQuery != string(r.Query) {
		t.Fatalf("net/http reads query %q, we %q", theirs.URL.RawQuery, r.Query)
	}
	for name, value := range r.Headers() {
		if sameName(name, "Host") {
			continue
		}
		if got := theirs.Header.Values(string(name)); len(got) == 0 && !sameName(name, "Transfer-Encoding") &&
			!sameName(name, "Content-Length") && !sameName(name, "Trailer") {
			t.Fatalf("net/http does not know header %q: %q", name, value)
		}
	}
}

func TestEmptyLines(t *testing.T) {
	for _, test := range []struct {
		rule, buf string
		want      int
	}{
		{"nothing", "", 0},
		{"a request line", "GET / HTTP/1.1\r\n", 0},
		{"one empty line", "\r\nGET / HTTP/1.1\r\n", 2},
		{"two", "\r\n\r\nGET / HTTP/1.1\r\n", 4},
		{"half a line waits for its end", "\r\n\r", 2},
		{"a bare LF is no line", "\nGET / HTTP/1.1\r\n", 0},
		{"a bare CR is none", "\rGET / HTTP/1.1\r\n", 0},
		{"the number has a bound", strings.Repeat("\r\n", 9), 8},
	} {
		if got := EmptyLines([]byte(test.buf)); got != test.want {
			t.Errorf("%s: got %d, want %d", test.rule, got, test.want)
		}
	}
}

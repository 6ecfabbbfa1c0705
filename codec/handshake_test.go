package codec

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

const sampleKey = "dGhlIHNhbXBsZSBub25jZQ==" // of RFC 6455, section 1.3

// upgradeHead is the handshake of RFC 6455, section 1.2, with more headers.
func upgradeHead(more ...string) string {
	return lines(append([]string{"GET /chat HTTP/1.1", "Host: server.example.com", "Upgrade: websocket",
		"Connection: Upgrade", "Sec-WebSocket-Key: " + sampleKey, "Sec-WebSocket-Version: 13"}, more...)...)
}

func parsed(t testing.TB, head string) *Request {
	t.Helper()
	r := new(Request)
	if err := r.Parse([]byte(head)); err != nil {
		t.Fatalf("%v: %q", err, head)
	}
	return r
}

func TestCheckUpgrade(t *testing.T) {
	// change is the RFC's handshake with one text replaced by another.
	change := func(old, replacement string) string {
		head := upgradeHead()
		if !strings.Contains(head, old) {
			t.Fatalf("%q is not in the handshake", old)
		}
		return strings.Replace(head, old, replacement, 1)
	}
	key := func(key string) string { return change(sampleKey, key) }
	version := func(v string) string { return change("Version: 13", "Version: "+v) }
	const (
		upgrade    = "Upgrade: websocket\r\n"
		connection = "Connection: Upgrade\r\n"
		keyLine    = "Sec-WebSocket-Key: " + sampleKey + "\r\n"
		verLine    = "Sec-WebSocket-Version: 13\r\n"
	)
	tests := []struct {
		rule   string
		head   string
		status int
		header string // that the answer must have
	}{
		{"the RFC's handshake", upgradeHead(), 0, ""},
		{"names and values in any case", lines("GET / HTTP/1.1", "host: h", "UPGRADE: WebSocket", "connection: uPgRaDe",
			"sec-websocket-key: "+sampleKey, "SEC-WEBSOCKET-VERSION: 13"), 0, ""},
		{"Firefox's Connection header", change("Connection: Upgrade", "Connection: keep-alive, Upgrade"), 0, ""},
		{"Connection in two headers", change(connection, "Connection: keep-alive\r\n"+connection), 0, ""},
		{"Connection the other way round", change(connection, connection+"Connection: keep-alive\r\n"), 0, ""},
		{"a list of protocols to upgrade to", change("Upgrade: websocket", "Upgrade: h2c, websocket"), 0, ""},
		{"an Origin is for the server to judge", upgradeHead("Origin: null"), 0, ""},
		{"a Content-Length of zero, as the JDK sends it", upgradeHead("content-length: 0"), 0, ""},
		{"any number that is zero", upgradeHead("Content-Length: 000"), 0, ""},
		{"a key whose spare bits are not zero", key("dGhlIHNhbXBsZSBub25jZR=="), 0, ""},

		{"POST", change("GET", "POST"), 405, "Allow: GET"},
		{"HEAD", change("GET", "HEAD"), 405, "Allow: GET"},
		{"methods have a case", change("GET", "get"), 405, "Allow: GET"},

		{"a browser's visit", lines("GET / HTTP/1.1", "Host: h"), 426, "Upgrade: websocket"},
		{"the answer has the version too", lines("GET / HTTP/1.1", "Host: h"), 426, "Sec-WebSocket-Version: 13"},
		{"an upgrade to something else", change("Upgrade: websocket", "Upgrade: h2c"), 426, "Upgrade: websocket"},
		{"an upgrade to something similar", change("Upgrade: websocket", "Upgrade: websockets"), 426, "Upgrade: websocket"},
		{"no Connection header", change(connection, ""), 400, ""},
		{"a Connection header without upgrade", change(connection, "Connection: keep-alive\r\n"), 400, ""},
		{"a Connection header with part of it", change(connection, "Connection: Upgrades\r\n"), 400, ""},

		{"a Content-Length", upgradeHead("Content-Length: 5"), 400, ""},
		{"a length that is no number", upgradeHead("Content-Length: zero"), 400, ""},
		{"a length without digits", upgradeHead("Content-Length:"), 400, ""},
		{"a negative length", upgradeHead("Content-Length: -0"), 400, ""},
		{"two lengths, one of them zero", upgradeHead("Content-Length: 0", "Content-Length: 5"), 400, ""},
		{"a Transfer-Encoding", upgradeHead("Transfer-Encoding: chunked"), 400, ""},
		{"two keys", upgradeHead("Sec-Websocket-Key: " + sampleKey), 400, ""},
		{"two versions", upgradeHead(verLine[:len(verLine)-2]), 400, ""},

		{"version 8", version("8"), 426, "Sec-WebSocket-Version: 13"},
		{"version 0", version("0"), 426, "Sec-WebSocket-Version: 13"},
		{"version 255", version("255"), 426, "Sec-WebSocket-Version: 13"},
		{"version 256 cannot be", version("256"), 400, ""},
		{"version 013 is no number", version("013"), 400, ""},
		{"version 13, 8 is no number", version("13, 8"), 400, ""},
		{"version thirteen is no number", version("thirteen"), 400, ""},
		{"an empty version is no number", version(""), 400, ""},
		{"a key without a version", change(verLine, ""), 400, ""},
		{"draft 75 has neither key nor version", strings.Replace(change(keyLine, ""), verLine, "", 1), 426, "Sec-WebSocket-Version: 13"},
		{"draft 76 has two keys of its own", strings.Replace(change(keyLine, "Sec-WebSocket-Key1: 18x 6]8vM;54 *(5:  {   U1]8  z [  8\r\nSec-WebSocket-Key2: 1_ tx7X d  <  nw  334J702) 7]o}` 0\r\n"), verLine, "", 1), 426, "Sec-WebSocket-Version: 13"},
		{"draft 76 has a body", strings.Replace(change(keyLine, "Sec-WebSocket-Key1: 1 2\r\nSec-WebSocket-Key2: 3 4\r\nContent-Length: 8\r\n"), verLine, "", 1), 426, "Sec-WebSocket-Version: 13"},
		{"the version counts before a body", strings.Replace(upgradeHead("Content-Length: 5"), "Version: 13", "Version: 8", 1), 426, "Sec-WebSocket-Version: 13"},
		{"draft 76 with a key of today", change(verLine, "Sec-WebSocket-Key2: 1\r\n"), 426, "Sec-WebSocket-Version: 13"},

		{"no key", change(keyLine, ""), 400, ""},
		{"an empty key", key(""), 400, ""},
		{"a key of 15 bytes", key("dGhlIHNhbXBsZSBub25j"), 400, ""},
		{"a key of 17 bytes", key("dGhlIHNhbXBsZSBub25jZTE="), 400, ""},
		{"a key of 18 bytes", key("dGhlIHNhbXBsZSBub25jZTEy"), 400, ""},
		{"24 characters that are no base64", key("????????????????????????"), 400, ""},
		{"padding where there should be none", key("dGhlIHNhbXBsZSBub25j===="), 400, ""},
		{"base64 for URLs", key("-_hlIHNhbXBsZSBub25jZQ=="), 400, ""},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			err := parsed(t, tt.head).CheckUpgrade()
			if tt.status == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var rejection *Rejection
			if !errors.As(err, &rejection) || rejection.Status != tt.status {
				t.Fatalf("got %v, want a %d", err, tt.status)
			}
			if answer := string(rejection.AppendResponse(nil)); !strings.Contains(answer, "\r\n"+tt.header+"\r\n") && tt.header != "" {
				t.Errorf("%q is not in %q", tt.header, answer)
			}
		})
	}
}

func TestRejectionIsAWholeAnswer(t *testing.T) {
	rejections := []*Rejection{errRequestLine, errVersion, errTarget, errLineEnd, errHeaderName, errHeaderValue, errHeadEnd,
		errHost, errMethod, errUpgradeHTTP10, errNoUpgrade, errNoConnection, errBody, errTwoVersions, errNoVersion, errBadVersion, errOtherVersion,
		errTwoKeys, errNoKey, errBadKey, errExtensions, errProtocols, errNotUpgraded,
		{Status: 503, Reason: "full", Header: [][2]string{{"Retry-After", "1"}}},
		{Status: 599, Reason: ""},
		{Status: 403, Reason: "two\r\nlines\x00", Header: [][2]string{{"A", "b\r\nInjected: c"}, {"Bad Name", "x"}, {"B\r\nInjected", "x"},
			{"", "x"}, {"Content-Length", "9"}, {"Transfer-Encoding", "chunked"}}},
	}
	for _, r := range rejections {
		b := r.AppendResponse([]byte("before"))
		in := bufio.NewReader(bytes.NewReader(b[len("before"):]))
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("%v: %v", r, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasSuffix(string(body), "\n") || in.Buffered() > 0 {
			t.Errorf("%v: body %q, %v, and %d bytes behind it", r, body, err, in.Buffered())
		}
		if strings.Count(string(body), "\n") != 1 || strings.ContainsAny(string(body), "\r\x00") {
			t.Errorf("%v: the body is more than a line: %q", r, body)
		}
		if resp.StatusCode != r.Status || !resp.Close || resp.ContentLength != int64(len(body)) ||
			resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%v: %+v", r, resp)
		}
		if resp.Header.Get("Injected") != "" || len(resp.Header.Values("Content-Length")) != 1 {
			t.Errorf("%v: a header was injected: %v", r, resp.Header)
		}
		if r.Status == 503 && resp.Header.Get("Retry-After") != "1" {
			t.Errorf("a header is lost: %v", resp.Header)
		}
		if r.Status == 426 && (resp.Header.Get("Upgrade") != "websocket" || !bytes.Contains(b, []byte("\r\nConnection: Upgrade\r\n"))) {
			t.Errorf("a 426 must name the protocol to upgrade to: %v", resp.Header)
		}
	}
}

// A refusal with a type of its own, as JSON or a page, has one Content-Type.
func TestRejectionWithItsOwnType(t *testing.T) {
	r := &Rejection{Status: 403, Reason: `{"error":"<b>"}`, Header: [][2]string{
		{"content-type", "application/json"}, {"X-Other", "a"}, {"Content-Type", "text/html"}, {"x-content-type-options", "none"}, {"X-Other", "b"}}}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(r.AppendResponse(nil))), nil)
	if err != nil || !resp.Close {
		t.Fatal(resp, err)
	}
	for name, want := range map[string][]string{
		"Content-Type": {"application/json"}, "X-Content-Type-Options": {"none"}, "X-Other": {"a", "b"},
	} {
		if got := resp.Header.Values(name); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != r.Reason+"\n" {
		t.Errorf("the body is %q, %v", body, err)
	}
}

// checkAnswer checks a 101 against the request, and returns it.
func checkAnswer(t testing.TB, head string, answer []byte) *http.Response {
	t.Helper()
	r := parsed(t, head)
	in := bufio.NewReader(bytes.NewReader(answer))
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatalf("%v: %q", err, answer)
	}
	sum := sha1.Sum([]byte(string(r.Header("Sec-WebSocket-Key")) + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	for name, want := range map[string]string{
		"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": base64.StdEncoding.EncodeToString(sum[:]),
	} {
		if got := resp.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Fatalf("%s: got %q, want %q", name, got, want)
		}
	}
	if resp.StatusCode != 101 || in.Buffered() > 0 {
		t.Fatalf("status %d and %d bytes behind it", resp.StatusCode, in.Buffered())
	}
	return resp
}

func TestUpgrade(t *testing.T) {
	tests := []struct {
		rule   string
		u      Upgrader
		head   string
		extra  [][2]string
		want   Handshake
		header map[string]string // "" means absent
	}{
		{"the RFC's handshake", Upgrader{}, upgradeHead(), nil, Handshake{Subprotocol: -1},
			map[string]string{"Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "Sec-WebSocket-Protocol": "", "Sec-WebSocket-Extensions": ""}},
		{"every form of head that CheckUpgrade accepts", Upgrader{}, lines("GET http://h HTTP/1.1", "host:h", "upgrade: h2c , WebSocket",
			"connection: keep-alive", "connection:close,upgrade", "cookie: "+strings.Repeat("c", 8000),
			"sec-websocket-key:"+sampleKey, "sec-websocket-version:  13"), nil, Handshake{Subprotocol: -1},
			map[string]string{"Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}},

		{"the client's first subprotocol that is spoken wins", Upgrader{Subprotocols: []string{"chat", "superchat"}},
			upgradeHead("Sec-WebSocket-Protocol: other, superchat, chat"), nil, Handshake{Subprotocol: 1},
			map[string]string{"Sec-WebSocket-Protocol": "superchat"}},
		{"subprotocols may come in two headers", Upgrader{Subprotocols: []string{"chat", "superchat"}},
			upgradeHead("Sec-WebSocket-Protocol: other", "Sec-WebSocket-Protocol: chat", "sec-websocket-protocol: superchat"), nil, Handshake{Subprotocol: 0},
			map[string]string{"Sec-WebSocket-Protocol": "chat"}},
		{"subprotocols have a case", Upgrader{Subprotocols: []string{"chat"}}, upgradeHead("Sec-WebSocket-Protocol: Chat"), nil,
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Protocol": ""}},
		{"no subprotocol in common is none", Upgrader{Subprotocols: []string{"chat"}}, upgradeHead("Sec-WebSocket-Protocol: a, b"), nil,
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Protocol": ""}},
		{"an endpoint may have no subprotocols", Upgrader{}, upgradeHead("Sec-WebSocket-Protocol: a"), nil,
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Protocol": ""}},
		{"empty elements of the list are passed over", Upgrader{Subprotocols: []string{"a"}}, upgradeHead("Sec-WebSocket-Protocol: ,, a ,"), nil,
			Handshake{Subprotocol: 0}, map[string]string{"Sec-WebSocket-Protocol": "a"}},

		{"deflate is not answered when it is off", Upgrader{}, upgradeHead("Sec-WebSocket-Extensions: permessage-deflate"), nil,
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Extensions": ""}},
		{"deflate is not answered when it was not offered", Upgrader{Deflate: true}, upgradeHead(), nil,
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Extensions": ""}},
		{"deflate and a subprotocol together", Upgrader{Subprotocols: []string{"chat"}, Deflate: true},
			upgradeHead("Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Protocol: chat"), nil, Handshake{0, true, 15},
			map[string]string{"Sec-WebSocket-Protocol": "chat", "Sec-WebSocket-Extensions": "permessage-deflate;server_no_context_takeover;client_no_context_takeover"}},

		{"extra headers are added", Upgrader{}, upgradeHead(), [][2]string{{"Set-Cookie", "a=b; Secure"}, {"X-Two", "2"}},
			Handshake{Subprotocol: -1}, map[string]string{"Set-Cookie": "a=b; Secure", "X-Two": "2"}},
		{"extra headers cannot break out of their line", Upgrader{}, upgradeHead(), [][2]string{{"A", "b\r\nInjected: c\r\n\r\n"}, {"B\r\nInjected", "c"}, {"", "c"}},
			Handshake{Subprotocol: -1}, map[string]string{"A": "b  Injected: c", "Injected": "", "B": ""}},
		{"extra headers cannot speak for the handshake", Upgrader{}, upgradeHead(), [][2]string{{"Sec-WebSocket-Accept", "x"}, {"sec-websocket-protocol", "x"},
			{"upgrade", "x"}, {"Connection", "close"}, {"Content-Length", "5"}, {"Transfer-Encoding", "chunked"}, {"Last", "y"}},
			Handshake{Subprotocol: -1}, map[string]string{"Sec-WebSocket-Protocol": "", "Content-Length": "", "Transfer-Encoding": "", "Last": "y"}},
		{"an answer of many kilobytes", Upgrader{}, upgradeHead(), [][2]string{{"Long", strings.Repeat("x", 9000)}, {"Last", "y"}},
			Handshake{Subprotocol: -1}, map[string]string{"Long": strings.Repeat("x", 9000), "Last": "y"}},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			r := parsed(t, tt.head)
			if err := r.CheckUpgrade(); err != nil {
				t.Fatal(err)
			}
			answer, got, err := tt.u.Upgrade([]byte("before"), r, tt.extra)
			if err != nil || got != tt.want || string(answer[:6]) != "before" {
				t.Fatalf("got %+v, %v, want %+v", got, err, tt.want)
			}
			resp := checkAnswer(t, tt.head, answer[6:])
			for name, want := range tt.header {
				values := resp.Header.Values(name)
				if want == "" && len(values) > 0 || want != "" && (len(values) != 1 || values[0] != want) {
					t.Errorf("%s: got %.80q, want %.80q", name, values, want)
				}
			}
			if string(r.Header("Sec-WebSocket-Key")) != sampleKey {
				t.Error("the request is not what it was")
			}
		})
	}
}

func TestUpgradeRefuses(t *testing.T) {
	tests := []struct{ rule, head string }{
		{"a subprotocol that is no token", upgradeHead("Sec-WebSocket-Protocol: a b")},
		{"an empty list of subprotocols", upgradeHead("Sec-WebSocket-Protocol:")},
		{"an empty list of extensions", upgradeHead("Sec-WebSocket-Extensions: ,")},
		{"extensions that are no list", upgradeHead("Sec-WebSocket-Extensions: a b")},
		{"a second header that is no list", upgradeHead("Sec-WebSocket-Extensions: permessage-deflate", "Sec-WebSocket-Extensions: ;")},
		{"a request that is no handshake", lines("GET / HTTP/1.1", "Host: h")},
	}
	for _, tt := range tests {
		for _, u := range []Upgrader{{}, {Subprotocols: []string{"a"}, Deflate: true}} {
			answer, _, err := u.Upgrade([]byte("before"), parsed(t, tt.head), nil)
			var rejection *Rejection
			if !errors.As(err, &rejection) || rejection.Status != 400 {
				t.Errorf("%s: got %v, want a 400", tt.rule, err)
			}
			if string(answer) != "before" {
				t.Errorf("%s: something was appended: %q", tt.rule, answer)
			}
		}
	}
	// A pooled handshake that failed leaves nothing for the next.
	answer, got, err := (&Upgrader{}).Upgrade(nil, parsed(t, upgradeHead()), nil)
	if err != nil || got.Deflate || got.Subprotocol != -1 {
		t.Error(got, err)
	}
	checkAnswer(t, upgradeHead(), answer)
}

func TestNamesWebSocket(t *testing.T) {
	for _, test := range []struct {
		header string
		want   bool
	}{
		{"A: websocket", false},
		{"Upgrade: websocket", true},
		{"uPGRADE: h2c, WebSocket", true},
		{"Upgrade: h2c\r\nUpgrade: websocket", true},
		{"Upgrade: h2c", false},
		{"Upgrade: TLS/1.0, h2c", false},
		{"Upgrade: websockets", false},
		{"Upgrade:", false},
	} {
		if got := parsed(t, lines("GET / HTTP/1.1", "Host: h", test.header)).NamesWebSocket(); got != test.want {
			t.Errorf("%q: got %v", test.header, got)
		}
	}
}

// A request of HTTP/1.0 is parsed, and is no handshake whatever its headers say.
func TestCheckUpgradeOverHTTP10(t *testing.T) {
	var r Request
	if err := r.Parse([]byte(strings.Replace(upgradeHead(), "HTTP/1.1", "HTTP/1.0", 1))); !errors.Is(err, errVersion) || !r.HTTP10 {
		t.Fatal(err, r.HTTP10)
	}
	if err := r.CheckUpgrade(); !errors.Is(err, errUpgradeHTTP10) {
		t.Errorf("got %v", err)
	}
}

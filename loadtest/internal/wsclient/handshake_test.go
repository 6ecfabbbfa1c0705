package wsclient

import (
	"strings"
	"testing"
)

func TestAcceptOfTheRFC(t *testing.T) {
	if got := AcceptFor([]byte("dGhlIHNhbXBsZSBub25jZQ==")); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Errorf("the example of RFC 6455, section 1.3, gives %q", got)
	}
}

func TestKeysDiffer(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(10_000) {
		key := string(AppendKey(nil, seed))
		if len(key) != KeySize || seen[key] {
			t.Fatalf("seed %d gives the key %q", seed, key)
		}
		seen[key] = true
	}
}

func TestAnswersToTheHandshake(t *testing.T) {
	key := []byte("dGhlIHNhbXBsZSBub25jZQ==")
	const (
		upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
		accept  = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
		good    = "HTTP/1.1 101 Switching Protocols\r\n" + upgrade + accept
	)
	for _, tt := range []struct {
		name string
		head string
		body string
		want string // part of the error; "" is success, "+" is success with compression
	}{
		{"good", good, "", ""},
		{"other letters and spaces", "HTTP/1.1 101 \r\nupgrade:WebSocket\r\nCONNECTION: keep-alive, UPGRADE\r\n" + accept, "", ""},
		{"a 101 without a reason", "HTTP/1.1 101\r\n" + upgrade + accept, "", ""},
		{"a subprotocol that was offered", good + "Sec-WebSocket-Protocol: chat\r\n", "", ""},
		{"compression", good + "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n", "", "+"},
		{"compression with a window", good + "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; server_max_window_bits=10\r\n", "", "+"},

		{"forbidden, in the server's words", "HTTP/1.1 403 Forbidden\r\n", "who are you?\n", "HTTP 403 Forbidden: who are you?"},
		{"not found, without words", "HTTP/1.1 404 Not Found\r\n", "", "HTTP 404 Not Found"},
		{"words that only repeat the status", "HTTP/1.1 404 Not Found\r\n", "Not Found\n", "HTTP 404 Not Found"},
		{"words that would move the cursor", "HTTP/1.1 500 Oops\r\n", "\x1b[2Jgone\xff", "HTTP 500 Oops: [2Jgone?"},
		{"a web page", "HTTP/1.1 200 OK\r\n", "<html>", "no WebSocket endpoint at this path"},
		{"not HTTP", "SSH-2.0-OpenSSH_9.6\r\n", "", "not HTTP"},
		{"HTTP/1.0", "HTTP/1.0 101 Switching Protocols\r\n" + upgrade + accept, "", "HTTP/1.0"},
		{"no Upgrade", "HTTP/1.1 101 X\r\nConnection: Upgrade\r\n" + accept, "", "without Upgrade"},
		{"no Connection", "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n" + accept, "", "without Connection"},
		{"no accept", "HTTP/1.1 101 X\r\n" + upgrade, "", "wrong Sec-WebSocket-Accept"},
		{"wrong accept", "HTTP/1.1 101 X\r\n" + upgrade + "Sec-WebSocket-Accept: AAAA\r\n", "", "wrong Sec-WebSocket-Accept"},
		{"accept twice", good + accept, "", "wrong Sec-WebSocket-Accept"},
		{"a broken header", good + "nonsense\r\n", "", "malformed header"},
		{"a space before the colon", good + "X : y\r\n", "", "malformed header"},
		{"a subprotocol that was not offered", good + "Sec-WebSocket-Protocol: soap\r\n", "", "subprotocol that was not offered"},
		{"another extension", good + "Sec-WebSocket-Extensions: x-webkit-thing\r\n", "", "extension that was not offered"},
		{"context kept", good + "Sec-WebSocket-Extensions: permessage-deflate\r\n", "", "without server_no_context_takeover"},
		{"a window for the client", good + "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_max_window_bits=9\r\n", "", "not offered"},
	} {
		h := NewHandshake("example.com", "/", []string{"superchat", "chat"}, true, nil)
		compressed, err := h.Verify([]byte(tt.head+"\r\n"), []byte(tt.body), key)
		switch {
		case tt.want == "" || tt.want == "+":
			if err != nil || compressed != (tt.want == "+") {
				t.Errorf("%s: compressed %v, %v", tt.name, compressed, err)
			}
		case err == nil || !strings.Contains(err.Error(), tt.want):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	h := NewHandshake("example.com", "/", nil, false, nil)
	if _, err := h.Verify([]byte(good+"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n"), nil, key); err == nil {
		t.Error("compression that was not offered is accepted")
	}
}

func TestRequestCarriesTheOptions(t *testing.T) {
	h := NewHandshake("example.com:81", "/a?b=c", []string{"one", "two"}, true, []string{"Authorization: Bearer x"})
	const want = "GET /a?b=c HTTP/1.1\r\nHost: example.com:81\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: one, two\r\n" +
		"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n" +
		"Authorization: Bearer x\r\nSec-WebSocket-Key: "
	if h.Request != want {
		t.Errorf("the request is\n%s\nwant\n%s", h.Request, want)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add("HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n", "body")
	f.Add("HTTP/1.1 403 Forbidden\r\n", "no\nway")
	h := NewHandshake("example.com", "/", nil, true, nil)
	key := AppendKey(nil, 1)
	f.Fuzz(func(t *testing.T, head, body string) {
		_, err := h.Verify([]byte(head+"\r\n\r\n"), []byte(body), key)
		if err == nil && !strings.Contains(head, AcceptFor(key)) {
			t.Errorf("%q passes without the accept key", head)
		}
	})
}

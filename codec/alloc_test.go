package codec

import (
	"bytes"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// Each claim of "no allocation" in the doc comments, measured.
func TestAllocations(t *testing.T) {
	if testenv.Race {
		t.Skip("the race detector drops pooled values")
	}
	const runs = 200
	head := []byte(upgradeHead("Origin: http://example.com", "User-Agent: test", "Cookie: a=b"))
	ipv6 := []byte(lines("GET http://[::1]:80/a?b HTTP/1.1", "Host: h"))
	var r Request
	dst := make([]byte, 0, 64<<10)
	deflater := NewDeflater(1, 0)
	text := []byte(strings.Repeat("carillon ", 1000))
	frame := NewFrame(OpText, text)
	plain, both := &Upgrader{}, &Upgrader{Subprotocols: []string{"a", "chat"}, Deflate: true}
	request := parsed(t, upgradeHead())
	offer := parsed(t, upgradeHead("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "Sec-WebSocket-Protocol: b, chat"))
	extra := [][2]string{{"Set-Cookie", "a=b"}}
	tests := []struct {
		claim string
		most  float64
		do    func()
	}{
		{"a whole text message", 0, decoding(t, client(fin|byte(OpText), strings.Repeat("é", 500)))},
		{"a whole binary message", 0, decoding(t, client(fin|byte(OpBinary), string(noise(70000))))},
		{"a ping", 0, decoding(t, client(fin|byte(OpPing), "ping"))},
		{"a close frame", 0, decoding(t, client(fin|byte(OpClose), "\x03\xe8bye"))},
		{"a fragmented message, once the buffer is there", 0, decoding(t, client(byte(OpText), "Hel")+client(fin, "lo"))},
		{"a small compressed message, once the buffer is there", 0, decoding(t, client(fin|rsv1|byte(OpText), deflated("Hello, Hello, Hello")))},
		{"HeadLen", 0, func() { HeadLen(head, 0) }},
		{"Parse", 0, func() { must(t, r.Parse(head)) }},
		{"Parse of an absolute target with an IPv6 host", 0, func() { must(t, r.Parse(ipv6)) }},
		{"CheckUpgrade", 0, func() { must(t, request.CheckUpgrade()) }},
		{"Header", 0, func() { request.Header("Sec-WebSocket-Version") }},
		{"Headers", 0, func() {
			for name := range request.Headers() {
				_ = name
			}
		}},
		{"AppendFrame", 0, func() { AppendFrame(dst[:0], OpText, text) }},
		{"AppendClose", 0, func() { AppendClose(dst[:0], CloseNormal, strings.Repeat("x", 1)) }},
		{"Deflater.AppendFrame", 0, func() { deflater.AppendFrame(dst[:0], OpText, text) }},
		{"Frame.Deflated after the first time", 0, func() { frame.Deflated(deflater) }},
		{"Deflater.AppendFrameWithin", 0, func() { deflater.AppendFrameWithin(dst[:0], OpText, text, 9) }},
		{"Frame.DeflatedWithin after the first time", 0, func() { frame.DeflatedWithin(deflater, 9) }},
		{"AppendResponse", 0, func() { errNoUpgrade.AppendResponse(dst[:0]) }},
		{"Upgrade with nothing to negotiate", 1, func() { upgrading(t, plain, dst, request, nil) }},
		{"Upgrade with everything", 1, func() { upgrading(t, both, dst, offer, extra) }},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			if got := testing.AllocsPerRun(runs, tt.do); got > tt.most {
				t.Errorf("%v allocations, at most %v are claimed", got, tt.most)
			}
		})
	}
}

// decoding decodes the same bytes again and again.
func decoding(t *testing.T, stream string) func() {
	fresh := []byte(stream)
	buf := bytes.Clone(fresh)
	d := newDeflateDecoder()
	return func() {
		copy(buf, fresh)
		for rest := buf; len(rest) > 0; {
			d.Budget = 1 << 20
			_, n, ok, err := d.Next(rest)
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			rest = rest[n:]
		}
		d.Release()
	}
}

func upgrading(t *testing.T, u *Upgrader, dst []byte, r *Request, extra [][2]string) {
	_, _, err := u.Upgrade(dst[:0], r, extra)
	must(t, err)
}

func must(t *testing.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

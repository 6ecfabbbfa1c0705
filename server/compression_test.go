package server

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"carillon/codec"
)

const (
	offerHeader  = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits" // as browsers offer it
	plainAnswer  = "permessage-deflate;server_no_context_takeover;client_no_context_takeover"
	windowAnswer = plainAnswer + ";server_max_window_bits=15"
)

// compressing are the built-in endpoints with compression for everything that is not tiny.
func compressing() []Endpoint {
	all := echoAndBroadcast()
	for i := range all {
		all[i].Compression = Compression{Enabled: true, Threshold: 100}
	}
	return all
}

// deflated compresses a payload as RFC 7692, section 7.2.1, says: DEFLATE, flushed, without the flush's
// last four bytes.
func deflated(t testing.TB, payload string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, payload); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
}

// inflated is the way back (section 7.2.2), with no memory of earlier messages.
func inflated(t testing.TB, payload []byte) string {
	t.Helper()
	const flush, end = "\x00\x00\xff\xff", "\x01\x00\x00\xff\xff"
	r := flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader(flush+end)))
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("inflate %d bytes: %v", len(payload), err)
	}
	return string(b)
}

// wantDeflated reads a message that must be compressed.
func (c *client) wantDeflated(op codec.Opcode, want string) {
	c.t.Helper()
	header, payload := c.rawFrame()
	if header[0] != 0xc0|byte(op) {
		c.t.Fatalf("the frame begins with %x, want %x", header[0], 0xc0|byte(op))
	}
	if got := inflated(c.t, payload); got != want {
		c.t.Fatalf("got %.80q of %d bytes, want %.80q of %d", got, len(got), want, len(want))
	}
}

var prose = strings.Repeat("the same words come again and again; ", 100)

func TestCompressionIsNegotiated(t *testing.T) {
	s := start(t, Options{Endpoints: append(compressing(), Endpoint{Path: "/plain", Mode: ModeEcho})})
	for _, test := range []struct{ sentence, path, offer, want string }{
		{"what browsers offer is accepted", "/echo", "permessage-deflate; client_max_window_bits", plainAnswer},
		{"a plain offer is accepted", "/echo", "permessage-deflate", plainAnswer},
		{"both takeovers switched off is what we want", "/echo", "permessage-deflate; client_no_context_takeover; server_no_context_takeover", plainAnswer},
		{"a small window of the client's is accepted", "/echo", "permessage-deflate; client_max_window_bits=8", plainAnswer},
		{"the window that we have is confirmed", "/echo", "permessage-deflate; server_max_window_bits=15", windowAnswer},
		{"a smaller window is kept to", "/echo", "permessage-deflate; server_max_window_bits=10", plainAnswer + ";server_max_window_bits=10"},
		{"a window that does not exist is declined", "/echo", "permessage-deflate; server_max_window_bits=16", ""},
		{"the second offer is the client's fallback", "/echo", "permessage-deflate; server_max_window_bits=16, permessage-deflate", plainAnswer},
		{"an unknown parameter is declined", "/echo", "permessage-deflate; level=9", ""},
		{"a parameter that comes twice is declined", "/echo", "permessage-deflate; server_no_context_takeover; server_no_context_takeover", ""},
		{"another extension is declined", "/echo", "x-webkit-deflate-frame", ""},
		{"an endpoint without compression declines", "/plain", "permessage-deflate", ""},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead(test.path, "Sec-WebSocket-Extensions: "+test.offer)))
			resp := c.response()
			if got := strings.Join(resp.Header.Values("Sec-WebSocket-Extensions"), "|"); resp.StatusCode != 101 || got != test.want {
				t.Fatalf("answered %s with %q, want %q", resp.Status, got, test.want)
			}
			c.send(prose)
			if test.want == "" {
				c.wantFrame(0x81, prose)
			} else {
				c.wantDeflated(Text, prose)
			}
		})
	}
}

func TestCompressedMessages(t *testing.T) {
	s := start(t, Options{Endpoints: compressing()})
	zipped := deflated(t, prose)
	third := len(zipped) / 3
	const rsv1 = 0x40
	for _, test := range []struct {
		sentence string
		frames   []byte
		op       codec.Opcode
		want     string
	}{
		{"a compressed message is understood", masked(0x81|rsv1, zipped), Text, prose},
		{"an uncompressed one is too", masked(0x82, []byte(prose)), Binary, prose},
		{"it may come in fragments, of which the first is marked",
			join(masked(0x01|rsv1, zipped[:third]), masked(0x00, zipped[third:2*third]), masked(0x80, zipped[2*third:])), Text, prose},
		{"fragments may be empty",
			join(masked(0x02|rsv1, nil), masked(0x00, zipped), masked(0x80, nil)), Binary, prose},
		{"text is only checked once it is inflated", masked(0x81|rsv1, deflated(t, strings.Repeat("🔔", 100))), Text, strings.Repeat("🔔", 100)},
		{"binary is not checked", masked(0x82|rsv1, deflated(t, strings.Repeat("\xff", 200))), Binary, strings.Repeat("\xff", 200)},
		{"a stored block is DEFLATE too", masked(0x82|rsv1, []byte("\x00\xc8\x00\x37\xff"+strings.Repeat("s", 200)+"\x00")), Binary, strings.Repeat("s", 200)},
		{"a message as large as the limit is understood", masked(0x82|rsv1, deflated(t, strings.Repeat("x", 1<<20))), Binary, strings.Repeat("x", 1<<20)},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dial(t, s, "/echo", offerHeader)
			c.write(test.frames)
			c.wantDeflated(test.op, test.want)
			c.write(test.frames) // no memory of the first message is needed, nor kept
			c.wantDeflated(test.op, test.want)
		})
	}
}

func TestAPingBetweenCompressedFragmentsIsNotCompressed(t *testing.T) {
	s := start(t, Options{Endpoints: compressing()})
	c := dial(t, s, "/echo", offerHeader)
	zipped := deflated(t, prose)
	ping := strings.Repeat("p", 125)
	c.write(join(masked(0x41, zipped[:5]), masked(0x89, []byte(ping)), masked(0x80, zipped[5:])))
	c.wantFrame(0x8a, ping)
	c.wantDeflated(Text, prose)
}

func TestWhatIsCompressed(t *testing.T) {
	random := make([]byte, 2000)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	endpoint := func(path string, threshold Size) Endpoint {
		return Endpoint{Path: path, Mode: ModeEcho, Compression: Compression{Enabled: true, Threshold: threshold}}
	}
	s := start(t, Options{Endpoints: []Endpoint{endpoint("/default", 0), endpoint("/all", -1), endpoint("/large", 1<<10)}})
	for _, test := range []struct {
		sentence, path, payload string
		compressed              bool
	}{
		{"nothing below 512 bytes by default", "/default", prose[:511], false},
		{"everything from there on", "/default", prose[:512], true},
		{"nothing below the threshold that is set", "/large", prose[:1023], false},
		{"and from there on everything", "/large", prose[:1024], true},
		{"small messages too, without a threshold", "/all", strings.Repeat("a", 200), true},
		{"but no empty one", "/all", "", false},
		{"and none that would become larger", "/all", "ab", false},
		{"nor random bytes, however many", "/default", string(random), false},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dial(t, s, test.path, offerHeader)
			c.write(masked(0x82, []byte(test.payload)))
			if test.compressed {
				c.wantDeflated(Binary, test.payload)
			} else {
				c.wantFrame(0x82, test.payload)
			}
		})
	}
}

func TestBrokenRulesOfCompression(t *testing.T) {
	s := start(t, Options{Endpoints: compressing()})
	zipped := deflated(t, prose)
	bomb := bytes.Repeat(join(deflated(t, strings.Repeat("\x00", 1<<20)), []byte("\x00\x00\xff\xff")), 100)
	for _, test := range []struct {
		sentence string
		offer    string
		bytes    []byte
		code     codec.CloseCode
		broken   *codec.ProtocolError
	}{
		{"RSV1 must have been negotiated", "X-Nothing: offered", masked(0xc1, zipped), 1002, codec.ErrReservedBits},
		{"an offer that was declined is no negotiation", "Sec-WebSocket-Extensions: permessage-deflate; x=y", masked(0xc1, zipped), 1002, codec.ErrReservedBits},
		{"RSV2 is not for compression", offerHeader, masked(0xe1, zipped), 1002, codec.ErrReservedBits},
		{"a ping is not compressed", offerHeader, masked(0xc9, nil), 1002, codec.ErrCompressedControl},
		{"a close frame is not compressed", offerHeader, masked(0xc8, nil), 1002, codec.ErrCompressedControl},
		{"a continuation is not marked", offerHeader, join(masked(0x41, zipped[:3]), masked(0xc0, zipped[3:])), 1002, codec.ErrCompressedContinuation},
		{"a continuation of plain text is not marked", offerHeader, join(masked(0x01, []byte("a")), masked(0xc0, zipped)), 1002, codec.ErrCompressedContinuation},
		{"a block of the reserved type is no DEFLATE", offerHeader, masked(0xc2, []byte("\x07\xff\xff\xff")), 1007, codec.ErrDeflateData},
		{"a plain payload is no DEFLATE", offerHeader, masked(0xc1, []byte("Hello, World!")), 1007, codec.ErrDeflateData},
		{"a back reference needs something behind it", offerHeader, masked(0xc2, []byte("\x4a\x04\x13\x00\xfa")), 1007, codec.ErrDeflateData},
		{"compressed text is UTF-8 all the same", offerHeader, masked(0xc1, deflated(t, prose+"\xff")), 1007, codec.ErrInvalidUTF8},
		{"100 MiB in 100 KiB are too big", offerHeader, masked(0xc2, bomb), 1009, codec.ErrMessageTooBig},
		{"a byte more than the limit is too big", offerHeader, masked(0xc2, deflated(t, strings.Repeat("x", 1<<20+1))), 1009, codec.ErrMessageTooBig},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dial(t, s, "/echo", test.offer)
			c.write(test.bytes)
			c.wantEnd(test.code, test.broken.Rule)
			c = dial(t, s, "/echo", offerHeader) // the loop's inflater is shared
			c.write(masked(0xc1, zipped))
			c.wantDeflated(Text, prose)
		})
	}
}

// Alice, Bob and Cathy compress; Dave, Erin and Frank do not. All get what is said, and the three who
// compress get the very same bytes.
func TestABroadcastIsCompressedOnce(t *testing.T) {
	s := start(t, Options{Endpoints: compressing()})
	var compress, plain []*client
	for range 3 {
		compress = append(compress, dial(t, s, "/broadcast", offerHeader))
		plain = append(plain, dial(t, s, "/broadcast"))
	}
	eventually(t, "all six are there", func() bool { return s.Count() == 6 })
	sources := map[string]func(payload string){
		"the server's own":             func(payload string) { _ = s.Broadcast("/broadcast", Text, []byte(payload)) },
		"from one who does not":        func(payload string) { plain[0].send(payload) },
		"from one who compresses":      func(payload string) { compress[0].write(masked(0xc1, deflated(t, payload))) },
		"from one who could but won't": func(payload string) { compress[0].send(payload) },
	}
	for from, say := range sources {
		t.Run(from, func(t *testing.T) {
			for i := range 20 { // those that come together are written together
				say(fmt.Sprint(i, prose))
				say(words(i)) // too small to be compressed
			}
			for i := range 20 {
				for _, c := range plain {
					c.wantFrame(0x81, fmt.Sprint(i, prose))
					c.wantFrame(0x81, words(i))
				}
				_, first := compress[0].rawFrame()
				if got := inflated(t, first); got != fmt.Sprint(i, prose) {
					t.Fatalf("got %.80q", got)
				}
				for _, c := range compress[1:] {
					if header, payload := c.rawFrame(); header[0] != 0xc1 || !bytes.Equal(payload, first) {
						t.Fatalf("a client got other bytes: %x", header)
					}
				}
				for _, c := range compress {
					c.wantFrame(0x81, words(i))
				}
			}
		})
	}
}

// Clients with windows of several sizes get the same messages, and the very same bytes as others with about their
// window. What is repeated from behind a window makes them smaller for the others only.
func TestABroadcastIsCompressedForThreeWindows(t *testing.T) {
	s := start(t, Options{Endpoints: append(compressing(), Endpoint{Path: "/ws", Mode: ModeTopics, Compression: Compression{Enabled: true, Threshold: -1}})})
	windows := []int{15, 9, 12, 9, 8, 15, 14}
	block := ""
	for i := range 60 {
		block += fmt.Sprintf("%d and ", i*i*7919)
	}
	repeated := strings.Repeat(block, 10)
	for _, path := range []string{"/broadcast", "/ws?topic=a"} {
		t.Run(path, func(t *testing.T) {
			var clients []*client
			eventually(t, "the others have left", func() bool { return s.Count() == 0 })
			for _, bits := range windows {
				clients = append(clients, dial(t, s, path, fmt.Sprintf("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=%d", bits)))
			}
			eventually(t, "all are there", func() bool { return s.Count() == len(windows) })
			if path != "/broadcast" {
				subscribers(t, s, "a", len(windows))
			}
			for i := range 20 { // those that come together are written together
				if payload := fmt.Sprint(i, repeated); path == "/broadcast" {
					_ = s.Broadcast(path, Text, []byte(payload))
				} else {
					mustPublish(t, s, "a", payload)
				}
			}
			for i := range 20 {
				got := map[uint8][]byte{}
				for n, c := range clients {
					_, payload := c.rawFrame()
					if text := inflated(t, payload); text != fmt.Sprint(i, repeated) {
						t.Fatalf("a window of %d bits: %.80q", windows[n], text)
					}
					shared := codec.SharedWindow(uint8(windows[n]))
					if before := got[shared]; before != nil && !bytes.Equal(before, payload) {
						t.Errorf("two clients with windows of %d bits got other bytes", shared)
					}
					got[shared] = payload
				}
				if near, far := len(got[11]), len(got[8]); near >= far/2 || len(got[15]) >= far/2 {
					t.Errorf("by window: 8 bits %d, 11 %d, 15 %d bytes", far, near, len(got[15]))
				}
			}
		})
	}
	c := dial(t, s, "/echo", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9")
	c.send(repeated)
	if _, payload := c.rawFrame(); inflated(t, payload) != repeated || len(payload) < len(repeated)/4 {
		t.Errorf("an echo of %d bytes is %d bytes", len(repeated), len(payload))
	}
}

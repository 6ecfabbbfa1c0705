package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// The tests of this file draw the bytes that a client sends. testMask is the masking key of the
// examples in RFC 6455, section 5.7; under the key zero a payload is itself.
const testMask, noMask = "\x37\xfa\x21\x3d", "\x00\x00\x00\x00"

// rawFrame reads one frame of the server's, header and all, and fails unless it is unmasked and its
// length is in the shortest form.
func (c *client) rawFrame() (header, payload []byte) {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	more := func(n int) (b []byte) {
		c.t.Helper()
		b = make([]byte, n)
		if _, err := io.ReadFull(c.r, b); err != nil {
			c.t.Fatalf("read a frame: %v", err)
		}
		return b
	}
	header = more(2)
	n, least := uint64(header[1]), uint64(0)
	switch n {
	case 126:
		header, least = append(header, more(2)...), 126
		n = uint64(binary.BigEndian.Uint16(header[2:]))
	case 127:
		header, least = append(header, more(8)...), 1<<16
		n = binary.BigEndian.Uint64(header[2:])
	}
	if header[1] >= 0x80 || n < least || n > 1<<28 {
		c.t.Fatalf("a frame begins with %x", header)
	}
	return header, more(int(n))
}

// wantFrame reads exactly this frame, written as first byte and payload.
func (c *client) wantFrame(first byte, want string) {
	c.t.Helper()
	header, payload := c.rawFrame()
	if header[0] != first || string(payload) != want {
		c.t.Fatalf("got %x %.80q of %d bytes, want %x %.80q of %d", header[0], payload, len(payload), first, want, len(want))
	}
}

// wantEnd reads the close frame, which must come next, and the end of the connection, for which the
// server must not wait for anything from us.
func (c *client) wantEnd(code codec.CloseCode, reason string) {
	c.t.Helper()
	c.wantFrame(0x88, string(binary.BigEndian.AppendUint16(nil, uint16(code)))+reason)
	c.wantEOF()
}

func TestBrokenRules(t *testing.T) {
	type row struct {
		sentence string
		bytes    string
		code     codec.CloseCode
		broken   *codec.ProtocolError
	}
	rows := []row{
		{"a frame must be masked", "\x81\x05Hello", 1002, codec.ErrUnmasked},
		{"an empty frame must be masked", "\x81\x00", 1002, codec.ErrUnmasked},
		{"a control frame must be masked", "\x89\x00", 1002, codec.ErrUnmasked},
		{"a close frame must be masked", "\x88\x02\x03\xe8", 1002, codec.ErrUnmasked},
		{"RSV1 needs compression", "\xc1\x81" + noMask + "a", 1002, codec.ErrReservedBits},
		{"RSV2 means nothing", "\xa1\x81" + noMask + "a", 1002, codec.ErrReservedBits},
		{"RSV3 means nothing", "\x91\x81" + noMask + "a", 1002, codec.ErrReservedBits},
		{"reserved bits mean nothing on a ping", "\xf9\x80" + noMask, 1002, codec.ErrReservedBits},
		{"reserved bits mean nothing on a fragment", "\x01\x81" + noMask + "a" + "\xa0\x81" + noMask + "b", 1002, codec.ErrReservedBits},

		{"5 bytes have a length of 7 bits, not 16", "\x81\xfe\x00\x05" + noMask + "Hello", 1002, codec.ErrNonMinimalLength},
		{"5 bytes have a length of 7 bits, not 64", "\x81\xff\x00\x00\x00\x00\x00\x00\x00\x05" + noMask + "Hello", 1002, codec.ErrNonMinimalLength},
		{"65535 bytes have a length of 16 bits, not 64", "\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff" + noMask, 1002, codec.ErrNonMinimalLength},
		{"a length has 63 bits", "\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00" + noMask, 1002, codec.ErrLengthOverflow},
		{"a length of all ones has too many", "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff" + noMask, 1002, codec.ErrLengthOverflow},

		{"a ping holds at most 125 bytes", "\x89\xfe\x00\x7e" + noMask, 1002, codec.ErrControlTooLong},
		{"a pong holds at most 125 bytes", "\x8a\xfe\x00\x7e" + noMask, 1002, codec.ErrControlTooLong},
		{"a close frame holds at most 125 bytes", "\x88\xfe\x00\x7e" + noMask, 1002, codec.ErrControlTooLong},
		{"a control frame of 2^62 bytes is too long first of all", "\x89\xff\x40\x00\x00\x00\x00\x00\x00\x00" + noMask, 1002, codec.ErrControlTooLong},
		{"a ping is not fragmented", "\x09\x81" + noMask + "a", 1002, codec.ErrControlFragmented},
		{"a close frame is not fragmented", "\x08\x82" + noMask + "\x03\xe8", 1002, codec.ErrControlFragmented},

		{"a continuation needs a message that is not complete", "\x80\x81" + noMask + "a", 1002, codec.ErrUnexpectedContinuation},
		{"a text waits for the last message's end", "\x01\x81" + noMask + "a" + "\x81\x81" + noMask + "b", 1002, codec.ErrExpectedContinuation},
		{"a binary message waits for it too", "\x01\x81" + noMask + "a" + "\x02\x81" + noMask + "b", 1002, codec.ErrExpectedContinuation},

		{"text is UTF-8", "\x81\x82" + testMask + "\xf4\x3a", 1007, codec.ErrInvalidUTF8},
		{"text holds no surrogates", "\x81\x83" + noMask + "\xed\xa0\x80", 1007, codec.ErrInvalidUTF8},
		{"text ends between characters", "\x81\x82" + noMask + "a\xce", 1007, codec.ErrInvalidUTF8},
		{"fragmented text is UTF-8", "\x01\x81" + noMask + "\xce" + "\x80\x81" + noMask + "a", 1007, codec.ErrInvalidUTF8},
		{"fragmented text ends between characters", "\x01\x81" + noMask + "\xce" + "\x80\x80" + noMask, 1007, codec.ErrInvalidUTF8},
		{"the rest of a bad text is not waited for: its fragments", "\x01\x81" + noMask + "\xff", 1007, codec.ErrInvalidUTF8},
		{"the rest of a bad text is not waited for: its frame", "\x81\xfe\x01\x00" + noMask + "abc\xff", 1007, codec.ErrInvalidUTF8},
		{"a character above U+10FFFF is certain after two bytes", "\x81\xfe\x01\x00" + noMask + "\xf4\x90", 1007, codec.ErrInvalidUTF8},
		{"an overlong character is certain after one byte", "\x81\xfe\x01\x00" + noMask + "\xc0", 1007, codec.ErrInvalidUTF8},

		{"a close frame of one byte has half a code", "\x88\x81" + noMask + "\x03", 1002, codec.ErrClosePayload},
		{"a close reason is UTF-8", "\x88\x85" + noMask + "\x03\xe8a\xce ", 1007, codec.ErrCloseReasonUTF8},
		{"a close reason ends between characters", "\x88\x84" + noMask + "\x03\xe8a\xce", 1007, codec.ErrCloseReasonUTF8},

		{"a message above the limit is refused by its header", "\x82\xff\x00\x00\x00\x00\x00\x10\x00\x01" + noMask, 1009, codec.ErrMessageTooBig},
		{"a header announces 2^63-1 bytes", "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff" + noMask, 1009, codec.ErrMessageTooBig},
		{"fragments count together", "\x02\x81" + noMask + "a" + "\x80\xff\x00\x00\x00\x00\x00\x10\x00\x00" + noMask, 1009, codec.ErrMessageTooBig},
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		rows = append(rows, row{fmt.Sprintf("opcode %d is reserved", op), string([]byte{0x80 | op, 0x80}) + noMask, 1002, codec.ErrReservedOpcode})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		payload := binary.BigEndian.AppendUint16(nil, code)
		rows = append(rows, row{fmt.Sprintf("%d is no code for the wire", code), string(masked(0x88, payload)), 1002, codec.ErrCloseCode})
	}
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, test := range rows {
		t.Run(test.sentence, func(t *testing.T) {
			c := dial(t, s, "/echo")
			c.write(join(text("what came before is served"), []byte(test.bytes)))
			c.want("what came before is served")
			c.wantEnd(test.code, test.broken.Rule)
		})
		t.Run(test.sentence+", byte by byte", func(t *testing.T) {
			c := dial(t, s, "/echo")
			for b := range slices.Chunk([]byte(test.bytes), 1) {
				c.write(b)
			}
			c.wantEnd(test.code, test.broken.Rule)
		})
	}
	eventually(t, "all connections are gone", func() bool { return s.Count() == 0 })
	if got := s.Stats(); got.Closes[1002]+got.Closes[1007]+got.Closes[1009] != uint64(2*len(rows)) {
		t.Errorf("%d rules were broken, and the counters of closes say %v", 2*len(rows), got.Closes)
	}
}

// What follows a broken rule is not looked at, and does not keep the close frame from the client.
func TestNothingIsServedAfterABrokenRule(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/echo")
	c.write(join([]byte("\x83\x80"+noMask), text("one"), masked(0x89, []byte("two")), masked(0x88, []byte{3, 0xe8}),
		bytes.Repeat(text("and so on"), 10_000)))
	c.wantEnd(1002, codec.ErrReservedOpcode.Rule)
	if n := s.Stats().MessagesIn; n != 0 {
		t.Errorf("%d messages were served", n)
	}
}

func TestClosingHandshakeOfTheClient(t *testing.T) {
	closed := make(chan *CloseError, 1)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/echo", Handler: Handler{
		Message: echo,
		Close:   func(_ *Conn, err error) { closed <- err.(*CloseError) },
	}}}})
	type row struct {
		sentence string
		payload  string
		reply    string
		code     codec.CloseCode
		reason   string
	}
	rows := []row{
		{"a close frame without code is answered without code", "", "", codec.CloseNoStatus, ""},
		{"a reason is for the application", "\x03\xe8bye", "\x03\xe8", 1000, "bye"},
		{"a reason may be 123 bytes", "\x0f\xa0" + strings.Repeat("r", 123), "\x0f\xa0", 4000, strings.Repeat("r", 123)},
		{"a reason may be any UTF-8", "\x03\xe9Grüße", "\x03\xe9", 1001, "Grüße"},
	}
	for _, code := range []codec.CloseCode{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		payload := string(binary.BigEndian.AppendUint16(nil, uint16(code)))
		rows = append(rows, row{fmt.Sprintf("%d is answered with the same", code), payload, payload, code, ""})
	}
	for _, test := range rows {
		t.Run(test.sentence, func(t *testing.T) {
			c := dial(t, s, "/echo")
			c.write(masked(0x88, []byte(test.payload)))
			got := <-closed
			c.wantFrame(0x88, test.reply)
			c.wantEOF()
			if got.Code != test.code || got.Reason != test.reason || !got.Remote || got.Err != nil {
				t.Errorf("the application got %v (%+v)", got, *got)
			}
		})
	}
}

func TestAnEchoComesBeforeTheAnswerToTheCloseFrameBehindIt(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, path := range []string{"/echo", "/broadcast"} {
		t.Run(path, func(t *testing.T) {
			c := dial(t, s, path)
			c.write(join(text("one"), masked(0x89, []byte("two")), text("three"), masked(0x88, []byte{0x03, 0xe8})))
			c.wantFrame(0x81, "one")
			c.wantFrame(0x8a, "two")
			c.wantFrame(0x81, "three")
			c.wantFrame(0x88, "\x03\xe8")
			c.wantEOF()
		})
	}
}

func TestWhatFollowsACloseFrameIsIgnored(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/echo")
	c.write(join(masked(0x88, []byte{0x03, 0xe8}), text("late"), masked(0x89, nil), []byte("and this is no frame")))
	c.wantFrame(0x88, "\x03\xe8")
	c.write(text("later still"))
	c.wantEOF()
	if n := s.Stats().MessagesIn; n != 0 {
		t.Errorf("%d messages were served", n)
	}
}

// Alice is told to go. Until her own close frame comes the server listens for nothing else, but it does
// not cut her off either.
func TestClosingHandshakeOfTheServer(t *testing.T) {
	heard := make(chan string, 10)
	opened := make(chan *Conn, 1)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Open: func(c *Conn) {
			opened <- c
			_ = c.Send(Text, []byte("welcome"))
			_ = c.Close(4001, "and goodbye")
		},
		Message: func(_ *Conn, _ codec.Opcode, payload []byte) { heard <- string(payload) },
	}}}})
	alice := dial(t, s, "/")
	alice.want("welcome")
	alice.wantFrame(0x88, "\x0f\xa1and goodbye")
	more := join(text("but I wanted to say"), masked(0x89, []byte("are you there?")))
	alice.write(more)
	s.arrived(t, len(upgradeHead("/"))+len(more))
	if state := (<-opened).core().State().Load(); state != reactor.StateClosing || s.Count() != 0 {
		t.Errorf("her connection is in state %d, want that the server has left it and waits for her close frame", state)
	}
	alice.write(masked(0x88, []byte{0x0f, 0xa1}))
	alice.wantEOF()
	if len(heard) > 0 {
		t.Errorf("the application got %q after the end", <-heard)
	}
}

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, test := range []struct {
		size   int
		length string // of the frame that comes back
	}{
		{0, "\x00"},
		{1, "\x01"},
		{125, "\x7d"},
		{126, "\x7e\x00\x7e"},
		{65535, "\x7e\xff\xff"},
		{65536, "\x7f\x00\x00\x00\x00\x00\x01\x00\x00"},
		{1 << 20, "\x7f\x00\x00\x00\x00\x00\x10\x00\x00"},
	} {
		for first, payload := range map[byte]string{
			0x81: strings.Repeat("0123456789abcde\n", test.size/16+1)[:test.size],
			0x82: strings.Repeat("\x00\xff\xfe\x80\x01\x7f\x81", test.size/7+1)[:test.size],
		} {
			for _, path := range []string{"/echo", "/broadcast"} {
				t.Run(fmt.Sprintf("%v of %d bytes at %s", codec.Opcode(first&15), test.size, path), func(t *testing.T) {
					c := dial(t, s, path)
					c.write(masked(first, []byte(payload)))
					header, got := c.rawFrame()
					if header[0] != first || string(header[1:]) != test.length {
						t.Errorf("the header is %x, want %x and the length %x", header, first, test.length)
					}
					if string(got) != payload {
						t.Errorf("the payload has changed: %.40q", got)
					}
				})
			}
		}
	}
}

func TestFragments(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	for _, test := range []struct {
		sentence string
		frames   [][]byte
		want     [][2]string // first byte and payload
	}{
		{"fragments become one message", [][]byte{masked(0x01, []byte("Hel")), masked(0x80, []byte("lo"))},
			[][2]string{{"\x81", "Hello"}}},
		{"binary stays binary", [][]byte{masked(0x02, []byte("\xff")), masked(0x00, []byte("\xfe")), masked(0x80, []byte("\xfd"))},
			[][2]string{{"\x82", "\xff\xfe\xfd"}}},
		{"fragments may be empty", [][]byte{masked(0x01, nil), masked(0x00, nil), masked(0x80, nil)},
			[][2]string{{"\x81", ""}}},
		{"a character may be cut", [][]byte{masked(0x01, []byte("\xf0\x9f")), masked(0x00, []byte("\x94")), masked(0x80, []byte("\x94"))},
			[][2]string{{"\x81", "🔔"}}},
		{"a ping in between is answered in between",
			[][]byte{masked(0x01, []byte("Hel")), masked(0x89, []byte("ping")), masked(0x00, nil), masked(0x89, nil), masked(0x80, []byte("lo"))},
			[][2]string{{"\x8a", "ping"}, {"\x8a", ""}, {"\x81", "Hello"}}},
		{"an unsolicited pong is no message", [][]byte{masked(0x01, []byte("a")), masked(0x8a, []byte("x")), masked(0x80, []byte("b"))},
			[][2]string{{"\x81", "ab"}}},
		{"a close frame may come in between", [][]byte{masked(0x01, []byte("a")), masked(0x88, []byte{0x03, 0xe9})},
			[][2]string{{"\x88", "\x03\xe9"}}},
	} {
		send := func(how string, frames [][]byte) {
			t.Run(test.sentence+", "+how, func(t *testing.T) {
				c := dial(t, s, "/echo")
				for _, f := range frames {
					c.write(f)
				}
				for _, w := range test.want {
					c.wantFrame(w[0][0], w[1])
				}
			})
		}
		send("at once", [][]byte{join(test.frames...)})
		send("frame by frame", test.frames)
		send("byte by byte", slices.Collect(slices.Chunk(join(test.frames...), 1)))
	}
}

func TestPingsAreAnsweredInOrder(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/echo")
	const pings = 1000
	payload := func(i int) string { return fmt.Sprintf("%0*d", i%126, i)[:i%126] }
	go func() {
		var flood []byte
		for i := range pings {
			flood = append(flood, masked(0x89, []byte(payload(i)))...)
			flood = append(flood, text(words(i))...)
		}
		_, _ = c.conn.Write(flood)
	}()
	for i := range pings {
		c.wantFrame(0x8a, payload(i))
		c.wantFrame(0x81, words(i))
	}
}

package codec

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func newTestDecoder() *Decoder {
	return &Decoder{MaxMessage: 1 << 20, MaxFragments: 4}
}

func TestDecoder(t *testing.T) {
	const (
		text     = fin | byte(OpText)
		binary   = fin | byte(OpBinary)
		cont     = fin | byte(OpContinuation)
		ping     = fin | byte(OpPing)
		pong     = fin | byte(OpPong)
		closing  = fin | byte(OpClose)
		textMore = byte(OpText)
		binMore  = byte(OpBinary)
		contMore = byte(OpContinuation)
	)
	long := strings.Repeat("0123456789", 7000)
	tests := []struct {
		rule   string
		stream string
		want   string // events, then the error
		err    error
	}{
		{"nothing is nothing", "", "", nil},
		// RFC 6455, section 5.7
		//       fin+text  mask+5  key.............  H    e    l    l    o
		{"the RFC's masked text message is understood",
			"\x81" + "\x85" + "\x37\xfa\x21\x3d" + "\x7f\x9f\x4d\x51\x58",
			`text "Hello"`, nil},
		{"an empty message is a message", client(text, "") + client(binary, ""), `text "", binary ""`, nil},
		{"messages follow each other", client(text, "one") + client(binary, "\xff\x00") + client(text, "two"),
			`text "one", binary "\xff\x00", text "two"`, nil},
		{"125 bytes have a length of seven bits", client(binary, long[:125]),
			fmt.Sprintf("binary %q", abbreviated([]byte(long[:125]))), nil},
		{"126 bytes have a length of 16 bits", client(binary, long[:126]),
			fmt.Sprintf("binary %q", abbreviated([]byte(long[:126]))), nil},
		{"65535 bytes have a length of 16 bits", client(binary, long[:65535]),
			fmt.Sprintf("binary %q", abbreviated([]byte(long[:65535]))), nil},
		{"65536 bytes have a length of 64 bits", client(binary, long[:65536]),
			fmt.Sprintf("binary %q", abbreviated([]byte(long[:65536]))), nil},

		{"fragments make one message", client(textMore, "Hel") + client(contMore, "") + client(cont, "lo"), `text "Hello"`, nil},
		{"fragments may all be empty", client(binMore, "") + client(cont, ""), `binary ""`, nil},
		{"the last fragment may be empty", client(textMore, "Hi") + client(cont, ""), `text "Hi"`, nil},
		{"control frames may come between fragments",
			client(textMore, "a") + client(ping, "p") + client(contMore, "b") + client(pong, "") + client(cont, "c"),
			`ping "p", pong "", text "abc"`, nil},
		{"a close frame may come between fragments", client(textMore, "a") + client(closing, "\x03\xe8"), `close "" 1000`, nil},
		{"an unfinished message is no event", client(textMore, "a") + client(contMore, "b"), "", nil},
		{"as many fragments as are allowed are",
			client(textMore, "a") + client(contMore, "b") + client(contMore, "c") + client(cont, "d"), `text "abcd"`, nil},
		{"the count of fragments starts anew with each message",
			client(textMore, "a") + client(contMore, "b") + client(cont, "c") +
				client(textMore, "a") + client(contMore, "b") + client(cont, "c"), `text "abc", text "abc"`, nil},
		{"one fragment too many is refused",
			client(textMore, "a") + client(contMore, "b") + client(contMore, "c") + client(contMore, "d") + client(cont, "e"),
			"", ErrTooManyFragments},

		{"a ping of 125 bytes is understood", client(ping, long[:125]), fmt.Sprintf("ping %q", abbreviated([]byte(long[:125]))), nil},
		{"a control frame of 126 bytes is refused", client(ping, long[:126]), "", ErrControlTooLong},
		{"a control frame must not be fragmented", client(byte(OpPing), "a"), "", ErrControlFragmented},
		{"a continuation needs a message", client(cont, "a"), "", ErrUnexpectedContinuation},
		{"a continuation needs an unfinished message", client(text, "a") + client(cont, "b"), `text "a"`, ErrUnexpectedContinuation},
		{"a new message must wait for the end of the last", client(textMore, "a") + client(text, "b"), "", ErrExpectedContinuation},
		{"a new fragmented message must wait too", client(binMore, "a") + client(binMore, "b"), "", ErrExpectedContinuation},

		{"an unmasked frame is refused", "\x81\x05Hello", "", ErrUnmasked},
		{"an unmasked empty frame is refused though nothing follows", "\x81\x00", "", ErrUnmasked},
		{"RSV1 without permessage-deflate is refused", client(text|rsv1, "a"), "", ErrReservedBits},
		{"RSV1 without permessage-deflate is refused on a control frame", client(ping|rsv1, "a"), "", ErrReservedBits},
		{"RSV2 is refused", client(text|rsv2, "a"), "", ErrReservedBits},
		{"RSV3 is refused", client(binary|rsv3, "a"), "", ErrReservedBits},
		{"all reserved bits are refused", client(ping|rsv1|rsv2|rsv3, "a"), "", ErrReservedBits},
		{"16 bits for a length below 126 are refused", "\x82\xfe\x00\x7d" + masked(long[:125]), "", ErrNonMinimalLength},
		{"64 bits for a length of 16 bits are refused", header64(binary, 65535), "", ErrNonMinimalLength},
		{"64 bits for a length below 126 are refused", header64(binary, 0), "", ErrNonMinimalLength},
		{"a length of 63 bits is only too big", header64(binary, 1<<63-1), "", ErrMessageTooBig},
		{"a length of 64 bits is refused", header64(binary, 1<<63), "", ErrLengthOverflow},

		{"a message of the largest size is understood", header64(binary, 1<<20)[:10] + masked(strings.Repeat("x", 1<<20)),
			fmt.Sprintf("binary %q", abbreviated([]byte(strings.Repeat("x", 1<<20)))), nil},
		{"a larger message is refused from its header", header64(binary, 1<<20+1), "", ErrMessageTooBig},
		{"all fragments count", client(binMore, long) + header64(cont, 1<<20-70000+1), "", ErrMessageTooBig},
		{"the size of a length without its mask is enough to refuse it", header64(binary, 1<<20+1)[:10], "", ErrMessageTooBig},

		{"close without payload has no status", client(closing, ""), `close "" 1005`, nil},
		{"close with a code", client(closing, "\x03\xe9"), `close "" 1001`, nil},
		{"close with a reason", client(closing, "\x03\xe8bye"), `close "bye" 1000`, nil},
		{"close with a reason of 123 bytes", client(closing, "\x0f\xa0"+long[:123]), `close "` + abbreviated([]byte(long[:123])) + `" 4000`, nil},
		{"close with one byte is refused", client(closing, "\x03"), "", ErrClosePayload},
		{"close with a code that is for no wire is refused", client(closing, "\x03\xed"), "", ErrCloseCode},
		{"close with a reason that is not UTF-8 is refused", client(closing, "\x03\xe8\xce\xba\xe1\xbd"), "", ErrCloseReasonUTF8},
		{"what follows a close frame is for the caller to ignore", client(closing, "") + client(text, "a"), `close "" 1005, text "a"`, nil},

		{"text may be any UTF-8", client(text, "κόσμε 🎉"), `text "κόσμε 🎉"`, nil},
		{"text that is not UTF-8 is refused", client(text, "\xff"), "", ErrInvalidUTF8},
		{"text that ends within a character is refused", client(text, "\xce"), "", ErrInvalidUTF8},
		{"a character may be split between fragments", client(textMore, "\xf0\x9f") + client(contMore, "\x8e") + client(cont, "\x89"), `text "🎉"`, nil},
		{"a character may be split by a ping", client(textMore, "\xce") + client(ping, "\xff") + client(cont, "\xba"), `ping "\xff", text "κ"`, nil},
		{"a character that the last fragment leaves open is refused", client(textMore, "a\xce") + client(cont, ""), "", ErrInvalidUTF8},
		{"bad text is refused before its message is complete", client(textMore, "\xed\xa0"), "", ErrInvalidUTF8},
		{"bad text is refused before its frame is complete", client(text, "\xf4\x90"+long[:500])[:10], "", ErrInvalidUTF8},
		{"binary may be anything", client(binMore, "\xff\xed\xa0") + client(cont, "\xf4\x90"), `binary "\xff\xed\xa0\xf4\x90"`, nil},
		{"the check of a text does not leak into the next", client(textMore, "a") + client(cont, "b") + client(textMore, "\xce") + client(cont, "\xba"), `text "ab", text "κ"`, nil},
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		tests = append(tests, struct {
			rule, stream, want string
			err                error
		}{fmt.Sprintf("opcode %d is reserved", op), client(fin|op, ""), "", ErrReservedOpcode})
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			got := feedAll(t, newTestDecoder, tt.stream)
			if !errors.Is(got.err, tt.err) {
				t.Errorf("error: got %v, want %v", got.err, tt.err)
			}
			if want := strings.ReplaceAll(tt.want, "\n", ""); strings.Join(got.events, ", ") != want {
				t.Errorf("events:\n got %s\nwant %s", strings.Join(got.events, ", "), want)
			}
			if ref := reference(tt.stream, newTestDecoder()); ref.String() != got.String() {
				t.Errorf("the reference decoder disagrees: %v", ref)
			}
		})
	}
}

func TestDecoderLimits(t *testing.T) {
	five := client(byte(OpText), "a") + strings.Repeat(client(0, "b"), 3) + client(fin, "c")
	two := client(byte(OpText), "a") + client(fin, "b")
	one := client(fin|byte(OpText), "a")
	empty := client(fin|byte(OpText), "")
	tests := []struct {
		rule   string
		d      Decoder
		stream string
		err    error
	}{
		{"a negative MaxFragments is no limit", Decoder{MaxMessage: 10, MaxFragments: -1}, five, nil},
		{"a MaxFragments of 1 forbids fragmentation", Decoder{MaxMessage: 10, MaxFragments: 1}, two, ErrTooManyFragments},
		{"a MaxFragments of 0 forbids fragmentation", Decoder{MaxMessage: 10}, two, ErrTooManyFragments},
		{"a MaxFragments of 0 lets whole messages through", Decoder{MaxMessage: 10}, one, nil},
		{"a MaxMessage of 0 lets empty messages through", Decoder{}, empty, nil},
		{"a MaxMessage of 0 refuses all others", Decoder{}, one, ErrMessageTooBig},
		{"a negative MaxMessage is no limit", Decoder{MaxMessage: -1}, header64(fin|2, 1<<62) + "abc", nil},
		{"a negative MaxMessage still refuses what is no length", Decoder{MaxMessage: -1}, header64(fin|2, 1<<63), ErrLengthOverflow},
		{"fragments add up to MaxMessage", Decoder{MaxMessage: 5, MaxFragments: -1}, five, nil},
		{"fragments must not add up to more", Decoder{MaxMessage: 4, MaxFragments: -1}, five, ErrMessageTooBig},
		{"MaxMessage does not count control frames", Decoder{MaxMessage: 0}, client(fin|9, "ping"), nil},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			got := feedAll(t, func() *Decoder { d := tt.d; return &d }, tt.stream)
			if !errors.Is(got.err, tt.err) {
				t.Errorf("got %v, want %v", got, tt.err)
			}
		})
	}
}

// A client that announces much and sends little must not cost what it announces.
func TestDecoderMemoryFollowsArrival(t *testing.T) {
	d := &Decoder{MaxMessage: 1 << 30, MaxFragments: -1}
	stream := []byte(header64(fin|byte(OpBinary), 1<<20)[:10] + masked(strings.Repeat("x", 1<<20)))
	arrived := 0
	next := func(n int) Event {
		t.Helper()
		ev, used, _, err := d.Next(stream[:n:n])
		if err != nil || used != n {
			t.Fatalf("Next took %d of %d bytes: %v", used, n, err)
		}
		stream = stream[n:]
		arrived += n
		if limit := max(512, 2*arrived); d.op != 0 && d.Buffered() > limit {
			t.Fatalf("after %d bytes the buffers have %d, want at most %d", arrived, d.Buffered(), limit)
		}
		return ev
	}
	next(14)
	next(10)
	for len(stream) > 4096 {
		next(4096)
	}
	if got := len(next(len(stream)).Payload); got != 1<<20 {
		t.Errorf("the message has %d bytes", got)
	}
	if d.Buffered() != 1<<20 {
		t.Errorf("the buffers have %d bytes, want the size of the message", d.Buffered())
	}
}

func TestDecoderSizesASmallRestExactly(t *testing.T) {
	d := newTestDecoder()
	stream := []byte(client(fin|byte(OpBinary), strings.Repeat("x", 10000)))
	if _, n, ok, err := d.Next(stream[:6000]); n != 6000 || ok || err != nil {
		t.Fatal(n, ok, err)
	}
	if cap(d.message) < 10000 || cap(d.message) > 10240 {
		t.Errorf("6000 of 10000 bytes have come, and the buffer has %d", cap(d.message))
	}
}

func TestDecoderReleaseAndReset(t *testing.T) {
	d := newTestDecoder()
	if !d.Idle() {
		t.Error("a new decoder is not idle")
	}
	feed(t, d, client(byte(OpText), "a"))
	if d.Idle() {
		t.Error("idle between fragments")
	}
	d.Release()
	if got := feed(t, d, client(fin, "b")); got.String() != `text "ab"` {
		t.Errorf("Release within a message lost something: %v", got)
	}
	if !d.Idle() {
		t.Error("not idle after a message")
	}

	big := client(byte(OpBinary), strings.Repeat("x", 70000)) + client(fin, "")
	if _, _, ok, err := d.Next([]byte(big)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if cap(d.message) < 70000 {
		t.Fatal("the test's message was not collected")
	}
	d.Release()
	if cap(d.message) != 0 {
		t.Errorf("Release kept %d bytes", cap(d.message))
	}

	feed(t, d, client(byte(OpText), "\xce"))
	d.Reset()
	if !d.Idle() || d.MaxMessage != 1<<20 || d.MaxFragments != 4 {
		t.Errorf("after Reset: %+v", d)
	}
	if got := feed(t, d, client(fin|byte(OpText), "new")); got.String() != `text "new"` {
		t.Errorf("after Reset: %v", got)
	}
	feed(t, d, "\x81\x00")
	if d.Idle() {
		t.Error("idle after an error")
	}
	d.Reset()
	if got := feed(t, d, client(fin|byte(OpText), "new")); got.String() != `text "new"` {
		t.Errorf("after an error and Reset: %v", got)
	}
}

// A read buffer full of small frames is decoded where it lies.
func TestDecoderPayloadIsAViewOfTheBuffer(t *testing.T) {
	buf := []byte(strings.Repeat(client(fin|byte(OpText), "Hello"), 32))
	d := newTestDecoder()
	for i := range 32 {
		ev, n, ok, err := d.Next(buf)
		if !ok || err != nil || n != 11 || string(ev.Payload) != "Hello" {
			t.Fatal(i, ev, n, ok, err)
		}
		if &ev.Payload[0] != &buf[6] {
			t.Fatal("the payload was copied")
		}
		if cap(ev.Payload) != 5 {
			t.Fatal("appending to the payload would overwrite the next frame")
		}
		buf = buf[n:]
	}
}

package codec

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// asClient turns a server's frame into the same frame from a client.
func asClient(frame []byte) string {
	head := map[byte]int{126: 4, 127: 10}[frame[1]]
	if head == 0 {
		head = 2
	}
	return client(frame[0], string(frame[head:]))
}

func newDeflateDecoder() *Decoder {
	return &Decoder{MaxMessage: 1 << 20, MaxFragments: 4, Inflater: NewInflater()}
}

func TestDeflateRoundTrip(t *testing.T) {
	for _, level := range []int{-2, -1, 0, 1, 6, 9} {
		d := NewDeflater(level, -1)
		for _, payload := range []string{"", "a", "Hello", strings.Repeat("Hello", 30), strings.Repeat("carillon ", 9000),
			string(noise(300)), string(noise(70000)), strings.Repeat(string(noise(40000)), 2)} {
			frame := d.AppendFrame([]byte("before"), OpBinary, []byte(payload))
			if string(frame[:6]) != "before" {
				t.Fatal("what was there is lost")
			}
			frame = frame[6:]
			if len(frame) > len(AppendFrame(nil, OpBinary, []byte(payload))) {
				t.Errorf("level %d: %d bytes grew to %d", level, len(payload), len(frame))
			}
			if FrameLen(frame) != len(frame) {
				t.Errorf("FrameLen is %d of %d", FrameLen(frame), len(frame))
			}
			got := feed(t, newDeflateDecoder(), asClient(frame))
			if want := fmt.Sprintf("binary %q", abbreviated([]byte(payload))); got.String() != want {
				t.Errorf("level %d: got %v, want %s", level, got, want)
			}
		}
	}
}

// With a smaller window nothing is repeated from further back: what comes again within the window is compressed, and
// what comes again behind it is not.
func TestDeflateWindows(t *testing.T) {
	for window := minWindow; window <= MaxWindow; window++ {
		size := 1 << window
		d := NewDeflater(1, -1)
		for _, row := range []struct {
			sentence string
			block    int // bytes that come again and again
			smaller  bool
		}{
			{"within the window", size / 2, true},
			{"just behind it", size + 1, false},
			{"far behind it", min(2*size, 40000), false},
		} {
			payload := bytes.Repeat(noise(row.block), 8)
			frame := d.AppendFrameWithin(nil, OpBinary, payload, window)
			if smaller := len(frame) < len(payload)*3/4; smaller != row.smaller {
				t.Errorf("%d bits, %s: %d bytes are %d", window, row.sentence, len(payload), len(frame))
			}
			got := feed(t, &Decoder{MaxMessage: 1 << 20, MaxFragments: 4, Inflater: NewInflater()}, asClient(frame))
			if want := fmt.Sprintf("binary %q", abbreviated(payload)); got.String() != want {
				t.Errorf("%d bits, %s: got %v, want %s", window, row.sentence, got, want)
			}
		}
	}
}

func TestDeflaterChoosesWhatToCompress(t *testing.T) {
	text := strings.Repeat("carillon ", 100)
	tests := []struct {
		rule       string
		threshold  int
		op         Opcode
		payload    string
		compressed bool
	}{
		{"text above the threshold is compressed", 512, OpText, text, true},
		{"binary is too", 512, OpBinary, text, true},
		{"at the threshold it is", len(text), OpText, text, true},
		{"below the threshold it is not", len(text) + 1, OpText, text, false},
		{"a threshold of 0 takes all that gets smaller", 0, OpText, text[:200], true},
		{"a negative threshold is the same", -1, OpText, text[:200], true},
		{"what does not get smaller stays as it is", -1, OpText, "abc", false},
		{"noise stays as it is", -1, OpBinary, string(noise(100000)), false},
		{"nothing stays as it is", -1, OpText, "", false},
		{"control frames are never compressed", -1, OpPing, text[:100], false},
		{"nor are close frames", -1, OpClose, "\x03\xe8" + text[:100], false},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			d := NewDeflater(1, tt.threshold)
			frame := d.AppendFrame(nil, tt.op, []byte(tt.payload))
			if got := frame[0]&rsv1 != 0; got != tt.compressed {
				t.Errorf("compressed: %v", got)
			}
			if plain := AppendFrame(nil, tt.op, []byte(tt.payload)); !tt.compressed && !bytes.Equal(frame, plain) {
				t.Errorf("the frame is not the plain one: %.40x", frame)
			}
		})
	}
}

func TestDeflaterLevel(t *testing.T) {
	for _, level := range []int{-3, 10} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("level %d is accepted", level)
				}
			}()
			NewDeflater(level, 0)
		}()
	}
}

// hardToDeflate are payloads with many short repetitions, which a search for the longest follows all.
func hardToDeflate(n int) map[string][]byte {
	letters, prefixes := noise(n), noise(n)
	for i := range letters {
		letters[i] &= 1
		if i%6 < 4 {
			prefixes[i] = 'a'
		}
	}
	return map[string][]byte{"two letters": letters, "equal prefixes": prefixes}
}

// No payload makes compression take much longer than others do, at any level.
func TestDeflaterTakesNoLongerForHardPayloads(t *testing.T) {
	const size, factor = 64 << 10, 60 // 3 is measured
	took := func(level int, payload []byte) time.Duration {
		d, least := NewDeflater(level, 0), time.Hour
		for range 5 {
			start := time.Now()
			d.AppendFrame(nil, OpBinary, payload)
			least = min(least, time.Since(start))
		}
		return least
	}
	most := factor * took(1, jsonText(size))
	for name, payload := range hardToDeflate(size) {
		for level := 1; level <= 9; level++ {
			if got := took(level, payload); got > most {
				t.Errorf("%s at level %d: %v, want at most %v", name, level, got, most)
			}
		}
	}
}

// deflated compresses as RFC 7692, section 7.2.1, describes it, without the code under test.
func deflated(s string) string {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, 6)
	_, _ = io.WriteString(w, s)
	_ = w.Flush()
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

func TestDecoderInflates(t *testing.T) {
	const (
		text   = fin | rsv1 | byte(OpText)
		binary = fin | rsv1 | byte(OpBinary)
		more   = rsv1 | byte(OpText)
		cont   = fin | byte(OpContinuation)
		hello  = "\xf2\x48\xcd\xc9\xc9\x07\x00"
		final  = "\xf3\x48\xcd\xc9\xc9\x07\x00" // hello with BFINAL set
		mebi   = 1 << 20
	)
	tests := []struct {
		rule   string
		stream string
		want   string
		err    error
	}{
		// The examples of RFC 7692, section 7.2.3
		{"7.2.3.1: one compressed block", client(text, hello), `text "Hello"`, nil},
		{"7.2.3.1: in two fragments", client(more, hello[:3]) + client(cont, hello[3:]), `text "Hello"`, nil},
		{"7.2.3.2: no window is shared with the last message", client(text, hello) + client(text, "\xf2\x00\x11\x00\x00"), `text "Hello"`, ErrDeflateData},
		{"7.2.3.3: a block without compression", client(text, "\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"), `text "Hello"`, nil},
		{"7.2.3.4: a block with BFINAL set", client(text, final+"\x00"), `text "Hello"`, nil},
		{"7.2.3.5: two blocks in one message", client(text, "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"), `text "Hello"`, nil},
		{"7.2.3.6: the empty message", client(text, "\x00"), `text ""`, nil},

		{"BFINAL without the empty block behind it", client(text, final), `text "Hello"`, nil},
		{"more text after BFINAL", client(text, final+hello), `text "HelloHello"`, nil},
		{"no bytes at all are an empty message", client(text, ""), `text ""`, nil},
		{"an uncompressed message among compressed ones", client(text, hello) + client(fin|1, "plain") + client(binary, hello), `text "Hello", text "plain", binary "Hello"`, nil},
		{"a ping between compressed fragments", client(more, hello[:1]) + client(fin|9, "") + client(cont, hello[1:]), `ping "", text "Hello"`, nil},
		{"an uncompressed fragmented message after a compressed one", client(more, hello[:1]) + client(cont, hello[1:]) + client(1, "pl") + client(cont, "ain"), `text "Hello", text "plain"`, nil},

		{"a block type that does not exist", client(text, "\x07"), "", ErrDeflateData},
		{"rubbish after BFINAL", client(text, final+"\xff\xff"), "", ErrDeflateData},
		{"a message cut short", client(text, hello[:4]), "", ErrDeflateData},
		{"a stored block cut short", client(text, "\x00\xff\xff\x00\x00Hello"), "", ErrDeflateData},
		{"RSV1 on a control frame", client(fin|rsv1|9, ""), "", ErrCompressedControl},
		{"RSV1 on a continuation", client(more, hello[:3]) + client(cont|rsv1, hello[3:]), "", ErrCompressedContinuation},
		{"RSV1 on a continuation of nothing", client(cont|rsv1, hello), "", ErrCompressedContinuation},
		{"RSV2 is still refused", client(text|rsv2, hello), "", ErrReservedBits},
		{"RSV3 is still refused", client(fin|rsv3|1, "a"), "", ErrReservedBits},
		{"text that is not UTF-8 once inflated", client(text, deflated("\xff")), "", ErrInvalidUTF8},
		{"text whose last character is cut", client(text, deflated("a\xe2\x82")), "", ErrInvalidUTF8},
		{"binary need not be UTF-8", client(binary, deflated("\xff")), `binary "\xff"`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			got := feedAll(t, newDeflateDecoder, tt.stream)
			if !errors.Is(got.err, tt.err) {
				t.Errorf("error: got %v, want %v", got.err, tt.err)
			}
			if events := strings.Join(got.events, ", "); events != tt.want {
				t.Errorf("events:\n got %s\nwant %s", events, tt.want)
			}
		})
	}
}

func TestInflatedSize(t *testing.T) {
	const (
		binary = fin | rsv1 | byte(OpBinary)
		mebi   = 1 << 20
	)
	zeros := func(n int) string { return deflated(strings.Repeat("\x00", n)) }
	tests := []struct {
		rule   string
		stream string
		want   string
		err    error
	}{
		{"a message of the largest size", client(binary, zeros(mebi)), fmt.Sprintf("binary %q", abbreviated(make([]byte, mebi))), nil},
		{"a byte more", client(binary, zeros(mebi+1)), "", ErrMessageTooBig},
		{"a bomb", client(binary, zeros(50<<20)), "", ErrMessageTooBig},
		{"noise of the largest size may be larger on the wire", client(binary, deflated(string(noise(mebi)))), fmt.Sprintf("binary %q", abbreviated(noise(mebi))), nil},
		{"in fragments too", client(rsv1|2, deflated(string(noise(mebi)))[:mebi/2]) + client(fin, deflated(string(noise(mebi)))[mebi/2:]),
			fmt.Sprintf("binary %q", abbreviated(noise(mebi))), nil},
		{"there is a limit to that", header64(binary, mebi+mebi/8+65), "", ErrMessageTooBig},
		{"an uncompressed message has no such allowance", header64(fin|2, mebi+1), "", ErrMessageTooBig},
		{"nor has one after a compressed one", client(rsv1|2, zeros(1)) + client(fin, "") + header64(fin|2, mebi+1), `binary "\x00"`, ErrMessageTooBig},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			half := len(tt.stream) / 2
			for _, chunks := range [][]string{{tt.stream}, {tt.stream[:half], tt.stream[half:]}} {
				got := feed(t, newDeflateDecoder(), chunks...)
				if events := strings.Join(got.events, ", "); !errors.Is(got.err, tt.err) || events != tt.want {
					t.Errorf("in %d pieces: got %v, want %s and %v", len(chunks), got, tt.want, tt.err)
				}
			}
		})
	}
}

func TestInflaterKeepsNoLargeBuffer(t *testing.T) {
	d := newDeflateDecoder()
	feed(t, d, client(fin|rsv1|2, deflated(strings.Repeat("x", 1<<20))))
	if got := cap(d.Inflater.current.out); got > maxRetained {
		t.Errorf("after a large message %d bytes are kept", got)
	}
	feed(t, d, client(fin|rsv1|2, deflated("small")))
	if cap(d.Inflater.current.out) == 0 {
		t.Error("the small buffer is not kept")
	}
}

package codec

import (
	"bytes"
	"math"
	"runtime"
	"strings"
	"testing"
)

// inflate decompresses a message in slices of the given budgets, the last of which is for the rest.
func inflate(s *inflation, message []byte, limit int64, budgets ...int) ([]byte, *ProtocolError) {
	s.begin(message)
	for {
		if _, done, err := s.run(budgets[0], limit); err != nil {
			return nil, err
		} else if done {
			return s.out, nil
		}
		if len(budgets) > 1 {
			budgets = budgets[1:]
		}
	}
}

// A bomb costs as much memory as the limit allows, not as much as it would unfold to.
func TestInflationIsBounded(t *testing.T) {
	s := new(inflation)
	bomb := []byte(deflated(strings.Repeat("\x00", 64<<20)))
	if _, err := inflate(s, bomb, 1000, math.MaxInt); err != ErrMessageTooBig {
		t.Error(err)
	}
	if cap(s.out) > 2048 {
		t.Errorf("a limit of 1000 bytes cost %d", cap(s.out))
	}
	for _, limit := range []int64{-1, 64 << 20, math.MaxInt64} {
		if out, err := inflate(new(inflation), bomb, limit, math.MaxInt); err != nil || len(out) != 64<<20 {
			t.Errorf("with a limit of %d: %d bytes and %v", limit, len(out), err)
		}
	}
}

// hostile is what makes the most work of a mebibyte: of its own, or of what it becomes.
func hostile() map[string]string {
	const mebi = 1 << 20
	return map[string]string{
		"noise":                           deflated(string(noise(mebi - 512))),
		"text":                            deflated(string(jsonText(mebi))),
		"zeros":                           deflated(strings.Repeat("\x00", mebi)),
		"streams that end at once":        strings.Repeat("\x03\x00", mebi/2),
		"fixed blocks without content":    strings.Repeat("\x02\x08\x20\x80\x00", mebi/5) + "\x00",
		"dynamic blocks without content":  strings.Repeat(emptyDynamicBlocks(), mebi/len(emptyDynamicBlocks())) + "\x00",
		"stored blocks without content":   strings.Repeat("\x00\x00\x00\xff\xff", mebi/5) + "\x00",
		"distances that overlap the most": overlapping(mebi),
	}
}

// overlapping is a message of three bytes and many repetitions of them.
func overlapping(n int) string { return deflated(strings.Repeat("abc", n/3)) }

// No call of Next does more than its budget, whatever the message, and all of them together are charged
// for each byte that is read and made, and for no more than blocks can cost.
func TestBudget(t *testing.T) {
	const (
		budget = 10_000
		most   = 40 // bytes of work that a byte of a message can make, besides what it becomes
	)
	for name, message := range hostile() {
		t.Run(name, func(t *testing.T) {
			d := newDeflateDecoder()
			stream := []byte(client(fin|rsv1|byte(OpBinary), message))
			work, calls := 0, 0
			for {
				d.Budget = budget
				ev, n, ok, err := d.Next(stream)
				stream = stream[n:]
				if err != nil {
					t.Fatal(err)
				}
				spent := budget - d.Budget
				if work, calls = work+spent, calls+1; spent > budget+1000 {
					t.Fatalf("a budget of %d bytes was overdrawn to %d", budget, spent)
				}
				if ok {
					if limit := most*len(message) + len(ev.Payload); work > limit || work < len(message)+len(ev.Payload) {
						t.Errorf("%d bytes that become %d are charged as %d", len(message), len(ev.Payload), work)
					}
					break
				}
			}
			if calls < work/(budget+1000) {
				t.Errorf("%d calls did the work of %d bytes", calls, work)
			}
			if want := max(0, work-32*len(message)); d.Amplified != want {
				t.Errorf("%d bytes of work for %d are amplified by %d, want %d", work, len(message), d.Amplified, want)
			}
			if d.Suspended() || !d.Idle() || d.Inflater.Suspended() != 0 {
				t.Error("the message is done, but something is left")
			}
		})
	}
}

// What follows a suspended message waits for it, and what has a decoder of its own does not.
func TestSuspendedMessage(t *testing.T) {
	bomb := client(fin|rsv1|byte(OpBinary), deflated(strings.Repeat("\x00", 100_000)))
	small := client(fin|rsv1|byte(OpText), deflated("small"))
	d := newDeflateDecoder()
	buf := []byte(bomb + small)
	d.Budget = 5000
	if _, n, ok, err := d.Next(buf); n != len(bomb) || ok || err != nil || !d.Suspended() {
		t.Fatal(n, ok, err, d.Suspended())
	}
	buf = buf[len(bomb):]
	if got := d.Inflater.Suspended(); got != 1 {
		t.Fatalf("%d messages are suspended", got)
	}
	d.Budget = 0
	if _, n, ok, err := d.Next(buf); n != 0 || ok || err != nil || !d.Suspended() {
		t.Fatal("without a budget:", n, ok, err, d.Suspended())
	}
	other := newDeflateDecoder()
	other.Inflater = d.Inflater
	if got := feed(t, other, small); got.String() != `text "small"` {
		t.Fatalf("another decoder: %v", got)
	}
	d.Budget = math.MaxInt
	if ev, n, ok, err := d.Next(buf); n != 0 || !ok || err != nil || len(ev.Payload) != 100_000 {
		t.Fatal("the rest:", n, ok, err)
	}
	if ev, n, ok, err := d.Next(buf); n != len(small) || !ok || err != nil || string(ev.Payload) != "small" {
		t.Fatal("the next:", n, ok, err)
	}
}

// Messages for which there is no place wait as a whole, small ones pass them, and each gets its turn.
func TestMaxSuspended(t *testing.T) {
	const most, bombs = 2, 5
	f := NewInflater()
	f.MaxSuspended = most
	var decoders []*Decoder
	bomb := client(fin|rsv1|byte(OpText), deflated(strings.Repeat("é", 50_000)))
	for range bombs {
		d := &Decoder{MaxMessage: 1 << 20, Inflater: f, Budget: 5000}
		if _, n, ok, err := d.Next([]byte(bomb)); n != len(bomb) || ok || err != nil || !d.Suspended() {
			t.Fatal(n, ok, err)
		}
		decoders = append(decoders, d)
	}
	done := 0
	for turn := 0; done < bombs; turn++ {
		if turn > 1000 {
			t.Fatalf("%d of %d are done", done, bombs)
		}
		if f.Suspended() > most {
			t.Fatalf("%d messages are suspended", f.Suspended())
		}
		d := &Decoder{MaxMessage: 1 << 20, Inflater: f}
		if got := feed(t, d, client(fin|rsv1|byte(OpText), deflated("small"))); got.String() != `text "small"` {
			t.Fatalf("a small message in turn %d: %v", turn, got)
		}
		for _, d := range decoders {
			if !d.Suspended() {
				continue
			}
			d.Budget = 5000
			ev, _, ok, err := d.Next(nil)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				done++
				if string(ev.Payload) != strings.Repeat("é", 50_000) {
					t.Fatal("a message is not what was sent")
				}
			}
		}
	}
	if f.Suspended() != 0 {
		t.Errorf("%d messages are suspended after the last one", f.Suspended())
	}
}

// A message that is given up, or that breaks a rule, leaves its place to others and its memory to none.
func TestAbandon(t *testing.T) {
	f := NewInflater()
	goroutines := runtime.NumGoroutine()
	broken := deflated(strings.Repeat("x", 50_000)) + "\x07"
	for name, message := range map[string]string{"given up": deflated(strings.Repeat("x", 1<<20)), "broken": broken} {
		for range 100 {
			d := &Decoder{MaxMessage: 1 << 20, Inflater: f, Budget: 5000}
			d.Next([]byte(client(fin|rsv1|byte(OpText), message)))
			if !d.Suspended() || f.Suspended() != 1 {
				t.Fatalf("%s: %d messages are suspended", name, f.Suspended())
			}
			if name == "broken" {
				d.Budget = math.MaxInt
				if _, _, _, err := d.Next(nil); err != ErrDeflateData {
					t.Fatal(err)
				}
				continue
			}
			d.Reset()
			if got := feed(t, d, client(fin|rsv1|byte(OpText), deflated("new"))); got.String() != `text "new"` {
				t.Fatalf("after Reset: %v", got)
			}
			if f.Suspended() != 0 || d.Suspended() {
				t.Fatalf("after Reset %d messages are suspended", f.Suspended())
			}
		}
		if f.Suspended() != 0 {
			t.Fatalf("%s: %d messages are suspended", name, f.Suspended())
		}
	}
	if len(f.free) > maxFree {
		t.Errorf("%d states are kept", len(f.free))
	}
	for _, s := range f.free {
		if s.in != nil || s.out != nil {
			t.Error("the state of no message holds on to one")
		}
	}
	if got := runtime.NumGoroutine(); got > goroutines {
		t.Errorf("%d goroutines where there were %d", got, goroutines)
	}
}

// FuzzInflate: what is made of a message, and which error, is what compress/flate says, whatever the
// slices in which it is done.
func FuzzInflate(f *testing.F) {
	f.Add([]byte("Hello"), uint16(100), []byte{1})
	f.Add([]byte("\xf2\x48\xcd\xc9\xc9\x07\x00"), uint16(5), []byte{1})
	f.Add([]byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), uint16(100), []byte{1, 200})
	f.Add([]byte("\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"), uint16(4), []byte{3})
	f.Add([]byte(deflated(strings.Repeat("carillon ", 1000))), uint16(65535), []byte{100, 1})
	f.Add([]byte(deflated(string(jsonText(5000)))), uint16(65535), []byte{20})
	f.Add([]byte("\x03\x00\x03\x00\x03\x00"), uint16(0), []byte{2})
	f.Add([]byte{}, uint16(0), []byte{})
	f.Add([]byte("\xdb\xf8p"), uint16(211), []byte{1})                 // ends within a block: wsflate.Reader puts a zero byte there
	f.Add([]byte("\x00\x09\x00\xf6\xffHello"), uint16(211), []byte{1}) // a stored block that takes the tail for content
	f.Add([]byte(emptyDynamicBlocks()), uint16(10), []byte{1})
	used := new(inflation)
	deflater := NewDeflater(1, -1)
	f.Fuzz(func(t *testing.T, data []byte, limit uint16, slices []byte) {
		want, wantErr := referenceInflate(data, int64(limit))
		if out, err := inflate(used, data, int64(limit), math.MaxInt); err != wantErr || !bytes.Equal(out, want) {
			t.Fatalf("% x: compress/flate makes %d bytes and %v, we %d and %v", data, len(want), wantErr, len(out), err)
		}
		if most := max(1<<10, 2*(int(limit)+maxMatch)); cap(used.out) > max(most, maxRetained) {
			t.Fatalf("a limit of %d bytes cost %d", limit, cap(used.out))
		}
		budgets := make([]int, 0, len(slices)+1)
		for _, n := range slices {
			budgets = append(budgets, 1+int(n))
		}
		budgets = append(budgets, 1)
		if out, err := inflate(new(inflation), data, int64(limit), budgets...); err != wantErr || !bytes.Equal(out, want) {
			t.Fatalf("% x: compress/flate makes %d bytes and %v, we in slices %d and %v", data, len(want), wantErr, len(out), err)
		}

		frame := deflater.AppendFrame(nil, OpBinary, data)
		d := &Decoder{MaxMessage: int64(len(data)), Inflater: NewInflater(), Budget: math.MaxInt}
		ev, n, ok, nextErr := d.Next([]byte(asClient(frame)))
		if !ok || nextErr != nil || n == 0 || !bytes.Equal(ev.Payload, data) {
			t.Fatalf("round trip of % x: %x, %v, %v", data, ev.Payload, ok, nextErr)
		}
	})
}

// A message that yields leaves its place to others, begins anew, becomes what was sent, and is not charged twice.
func TestYield(t *testing.T) {
	const size = 200_000
	f := NewInflater()
	f.MaxSuspended = 1
	bomb := client(fin|rsv1|byte(OpText), deflated(strings.Repeat("x", size)))
	once := &Decoder{MaxMessage: 1 << 20, Inflater: f, Budget: math.MaxInt}
	if _, _, ok, err := once.Next([]byte(bomb)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	d := &Decoder{MaxMessage: 1 << 20, Inflater: f, Budget: 150_000}
	if d.Yield() || d.InProgress() {
		t.Fatal("a decoder without a message yields")
	}
	if _, _, ok, err := d.Next([]byte(bomb)); ok || err != nil || !d.InProgress() {
		t.Fatal(ok, err, d.InProgress())
	}
	if !d.Yield() || d.InProgress() || !d.Suspended() || d.PutOff() || f.Suspended() != 0 {
		t.Fatal("it has not left its place")
	}
	other := &Decoder{MaxMessage: 1 << 20, Inflater: f, Budget: 5000}
	if _, _, _, err := other.Next([]byte(bomb)); err != nil || !other.InProgress() || !d.PutOff() {
		t.Fatal("no other message has its place", err)
	}
	d.Budget = 5000
	if _, _, ok, err := d.Next(nil); ok || err != nil || d.InProgress() {
		t.Fatal("it goes on without a place", ok, err)
	}
	other.Budget = math.MaxInt
	if _, _, ok, err := other.Next(nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	d.Budget = math.MaxInt
	ev, _, ok, err := d.Next(nil)
	if !ok || err != nil || string(ev.Payload) != strings.Repeat("x", size) {
		t.Fatal("the message is not what was sent", ok, err)
	}
	if d.Amplified != once.Amplified || once.Amplified == 0 {
		t.Errorf("%d bytes are charged, %d without a break", d.Amplified, once.Amplified)
	}
}

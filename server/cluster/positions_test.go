package cluster

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// reopened is the file as a start after a crash of the process, or of the machine, finds it.
func reopened(t *testing.T, path, boot string) *positions {
	t.Helper()
	p, err := openPositions(path, boot, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPositionsOutliveTheProcessAndReserveForTheMachine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "positions")
	p := reopened(t, path, "boot")
	check := func(p *positions, rule string, want mark, wantUnsure uint64) {
		t.Helper()
		m, _, unsure, unread := p.before(rule)
		if m != want || unsure != wantUnsure || unread {
			t.Errorf("%s: %+v, unsure up to %d, unread %v, want %+v and %d", rule, m, unsure, unread, want, wantUnsure)
		}
	}
	check(p, "a", mark{}, 0)
	p.saw("a", mark{epoch: "e1", seq: 3})
	check(reopened(t, path, "boot"), "a", mark{}, 0) // not compared yet
	p.begin("a", mark{epoch: "e1", seq: 5, at: 50})
	p.begin("b", mark{epoch: "e2", seq: 7})
	check(reopened(t, path, "another"), "a", mark{epoch: "e1", seq: 5, at: 50}, 5) // nothing is reserved while nothing comes
	for seq := uint64(6); seq <= 9; seq++ {
		p.saw("a", mark{epoch: "e1", seq: seq, at: int64(seq) * 10, loose: seq == 9})
	}
	p.saw("a", mark{epoch: "e1", seq: 8, at: 1})
	last := mark{epoch: "e1", seq: 9, at: 90, loose: true}
	check(reopened(t, path, "boot"), "a", last, 0)
	check(reopened(t, path, "another"), "a", last, 6+reserveStep)
	check(reopened(t, path, ""), "a", last, 6+reserveStep) // it is not known whether it is another
	check(reopened(t, path, "another"), "b", mark{epoch: "e2", seq: 7}, 7)

	p.tidy("a", census{}, time.Now().Add(reserveTime/2))
	check(reopened(t, path, "another"), "a", last, 6+reserveStep)
	p.tidy("a", census{1, 9, 9, 100}, time.Now().Add(2*reserveTime))
	again := reopened(t, path, "another")
	check(again, "a", last, 9)
	if _, c, _, _ := again.before("a"); c != (census{1, 9, 9, 100}) {
		t.Errorf("the census is %+v", c)
	}
	p.saw("a", mark{epoch: "e3", seq: 9})
	check(reopened(t, path, "another"), "a", mark{epoch: "e3", seq: 9}, 9)
	if past := reopened(t, path, "boot").past("a"); len(past) != 1 || past[0] != "e1" {
		t.Errorf("epochs that have ended are %v", past)
	}
	p.saw("a", mark{epoch: "e3", seq: 10})
	p.close(true)
	check(reopened(t, path, "another"), "a", mark{epoch: "e3", seq: 10}, 0)
	p.saw("a", mark{epoch: "e3", seq: 11}) // it is closed
}

func TestAReservationIsExtendedBeforeItIsUsedUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "positions")
	p := reopened(t, path, "boot")
	p.begin("a", mark{epoch: "e", seq: 0})
	for _, seq := range []uint64{1, reserveStep / 4, 3 * reserveStep / 4, 2 * reserveStep, 2*reserveStep + 1, 5 * reserveStep} {
		p.saw("a", mark{epoch: "e", seq: seq})
		p.mu.Lock()
		if e := p.entries["a"]; e.durable < seq {
			t.Errorf("%d was given out, and %d is on the disk", seq, e.durable)
		}
		p.mu.Unlock()
	}
	eventually(t, "the reservation is ahead", func() bool {
		_, _, unsure, _ := reopened(t, path, "another").before("a")
		return unsure >= 5*reserveStep
	})
}

// A slot that is torn costs the last write, and a file of which nothing can be read is not taken for one that says
// nothing.
func TestPositionsThatAreDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "positions")
	p := reopened(t, path, "boot")
	p.begin("a", mark{epoch: "e", seq: 1})
	p.begin("b", mark{epoch: "e", seq: 2})
	p.saw("a", mark{epoch: "e", seq: 9})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range 4 * slotSize {
		torn := append([]byte(nil), data...)
		torn[at] ^= 0x10
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		q := reopened(t, path, "boot")
		a, _, _, unreadA := q.before("a")
		b, _, _, unreadB := q.before("b")
		if !unreadA && a.seq != 1 && a.seq != 9 || !unreadB && b.seq != 2 {
			t.Fatalf("with byte %d changed a is at %+v, and b at %+v", at, a, b)
		}
		q.close(false)
	}
	if err := os.WriteFile(path, data[:slotSize/2], 0o600); err != nil {
		t.Fatal(err)
	}
	q := reopened(t, path, "boot")
	if _, _, _, unread := q.before("a"); !unread {
		t.Error("half a slot is taken for a file that says nothing of the stream")
	}
	q.begin("a", mark{epoch: "e", seq: 9})
	q.mend()
	q.close(true)
	if _, _, _, unread := reopened(t, path, "boot").before("b"); unread {
		t.Error("it has not been mended")
	}
}

// A sequence that was given before is a proof, unless the message is one that was repeated with its key.
func TestASequenceThatIsGivenTwiceIsNoticed(t *testing.T) {
	st := &stream{}
	st.setEpoch("e")
	if ours, twice := st.see(mark{epoch: "other", seq: 7}); ours || twice {
		t.Error("a mark of another epoch")
	}
	for _, m := range []mark{{epoch: "e", seq: 7, at: 100e9, loose: true}, {epoch: "e", seq: 7, at: 70e9}, {epoch: "e", seq: 7, at: 200e9, loose: true}, {epoch: "e", seq: 6, at: 1}} {
		if ours, twice := st.see(m); !ours || twice {
			t.Errorf("%+v: %v, %v", m, ours, twice)
		}
	}
	if given := st.given("e"); given != 7 {
		t.Errorf("%d was given", given)
	}
	if _, twice := st.see(mark{epoch: "e", seq: 7, at: 71e9}); !twice {
		t.Error("two messages have a sequence")
	}
	for _, c := range []struct {
		old, now census
		short    bool
	}{
		{census{1, 10, 10, 5}, census{1, 10, 10, 5}, false},
		{census{1, 10, 10, 5}, census{1, 10, 9, 5}, true},
		{census{1, 10, 10, 5}, census{2, 10, 9, 5}, false},
		{census{1, 10, 10, 5}, census{3, 12, 7, 5}, true},
		{census{1, 10, 10, 5}, census{1, 10, 3, 2}, false}, // the history was changed
		{census{5, 10, 6, 5}, census{1, 10, 10, 5}, false},
	} {
		if got := c.old.isShort(c.now); got != c.short {
			t.Errorf("%+v after %+v: %v", c.now, c.old, got)
		}
	}
}

func BenchmarkPositions(b *testing.B) {
	p, err := openPositions(filepath.Join(b.TempDir(), "positions"), "boot", slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	p.begin("a", mark{epoch: "e"})
	b.ReportAllocs()
	for i := range b.N {
		p.saw("a", mark{epoch: "e", seq: uint64(i + 1)})
	}
}

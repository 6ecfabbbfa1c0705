package generator

import (
	"slices"
	"testing"
	"time"
)

func TestMessagesAreDueByTheirNumberAlone(t *testing.T) {
	for _, tt := range []struct {
		name string
		i    int64
		rate float64
		want time.Duration
	}{
		{"the first at once", 0, 10, 0},
		{"the second after one interval", 1, 10, 100 * time.Millisecond},
		{"a whole second", 10, 10, time.Second},
		{"an interval that is no whole number of nanoseconds", 2, 3, 666_666_666},
		{"no drift after a year", 3 * 31_536_000, 3, 31_536_000 * time.Second},
		{"less than one a second", 3, 0.5, 6 * time.Second},
		{"a million a second", 1_500_001, 1e6, 1_500_001 * time.Microsecond},
	} {
		if got := due(tt.i, tt.rate); got < tt.want-time.Nanosecond || got > tt.want+time.Nanosecond {
			t.Errorf("%s: due(%d, %g) = %v, want %v", tt.name, tt.i, tt.rate, got, tt.want)
		}
	}
}

func TestDueNeverRunsBackwards(t *testing.T) {
	for _, rate := range []float64{0.3, 1, 3, 7, 999, 1e6 / 3} {
		for i := range int64(10_000) {
			if due(i+1, rate) <= due(i, rate) {
				t.Fatalf("at %g a second, message %d is due at %v and the next at %v", rate, i, due(i, rate), due(i+1, rate))
			}
		}
	}
}

func TestDueWithinCountsWhatIsDueBeforeTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    time.Duration
		rate float64
		want int64
	}{
		{"the message at the very end is not in it", time.Second, 10, 10},
		{"one at the start", 50 * time.Millisecond, 10, 1},
		{"a broken interval", 350 * time.Millisecond, 10, 4},
		{"thirds", time.Second, 3, 3},
		{"rarely", time.Second, 0.1, 1},
		{"often", 10 * time.Second, 1e6 / 3, 3_333_334},
	} {
		if got := dueWithin(tt.d, tt.rate); got != tt.want {
			t.Errorf("%s: dueWithin(%v, %g) = %d, want %d", tt.name, tt.d, tt.rate, got, tt.want)
		}
	}
}

func TestTurnsOfAllProcessesMakeOneSchedule(t *testing.T) {
	for _, tt := range []struct{ senders, processes int }{{1, 1}, {1, 4}, {5, 1}, {5, 2}, {7, 3}, {3, 7}, {64, 8}} {
		seen := map[int64]bool{}
		for p := range tt.processes {
			turns := newTurns(tt.senders, p, tt.processes)
			for last := int64(-1); ; turns.next() {
				i, ok := turns.index()
				if !ok || i >= 1000 {
					break
				}
				if i <= last || seen[i] || i%int64(tt.senders) != int64(turns.sender) {
					t.Fatalf("%+v: process %d has message %d after %d, of sender %d", tt, p, i, last, turns.sender)
				}
				last, seen[i] = i, true
			}
		}
		for p := range tt.processes {
			for to := range int64(3*tt.senders + 2) {
				stepped, skipped := newTurns(tt.senders, p, tt.processes), newTurns(tt.senders, p, tt.processes)
				n := int64(0)
				for i, ok := stepped.index(); ok && i < to; i, ok = stepped.index() {
					stepped.next()
					n++
				}
				if got := skipped.skip(to); got != n || skipped != stepped {
					t.Fatalf("%+v: process %d skips %d messages below %d, want %d: %+v, want %+v", tt, p, got, to, n, skipped, stepped)
				}
			}
		}
		if len(seen) != 1000 {
			t.Errorf("%+v: %d of 1000 messages have a sender", tt, len(seen))
		}
	}
}

// Each target gets an equal share of all connections, of those of each process, and of the first ones,
// which are the senders.
func TestSpreadIsEven(t *testing.T) {
	even := func(shares []int) bool { return slices.Max(shares)-slices.Min(shares) <= 1 }
	for targets := 1; targets <= 12; targets++ {
		for processes := 1; processes <= 12; processes++ {
			all, ofProcess := make([]int, targets), make([][]int, processes)
			for i := range ofProcess {
				ofProcess[i] = make([]int, targets)
			}
			for i := range 500 {
				to := spread(i, processes, targets)
				all[to]++
				ofProcess[i%processes][to]++
				if i < targets && to != i {
					t.Errorf("of %d targets, connection %d goes to %d", targets, i, to)
				}
				if !even(all) || !even(ofProcess[i%processes]) {
					t.Fatalf("%d connections from %d processes are spread like this: %v, and those of one process like this: %v",
						i+1, processes, all, ofProcess[i%processes])
				}
			}
		}
	}
}

package drain

import (
	"slices"
	"testing"
	"time"
)

// Whatever ids are left, and in whatever order they go, about as many go in one part of the time as in
// another.
func TestPlanIsEven(t *testing.T) {
	const n, pace = 50_000, 10 * time.Second
	kinds := map[string]func(i int) uint64{
		"all that ever came":      func(i int) uint64 { return uint64(i + 1) },
		"few old ones, many new":  func(i int) uint64 { return uint64(i)*uint64(i) + 1 },
		"a crowd after a million": func(i int) uint64 { return 1_000_000*uint64(i/(n/2)) + uint64(i) },
	}
	for name, id := range kinds {
		for order, random := range map[string]bool{"oldest": false, "random": true} {
			t.Run(name+", "+order, func(t *testing.T) {
				ids := make([]uint64, n)
				for i := range ids {
					ids[i] = id(i)
				}
				p := &Schedule{Began: time.Now(), Pace: pace, Random: random, quantiles: thin(slices.Clone(ids), maxQuantiles)}
				gone := 0
				for second := 1; second <= 10; second++ {
					reached := p.Progress(p.Began.Add(time.Duration(second) * time.Second))
					now := 0
					for _, id := range ids {
						if p.Position(id) < reached {
							now++
						}
					}
					if each := now - gone; each < n/10*9/10 || each > n/10*11/10 {
						t.Errorf("%d went in second %d, want %d", each, second, n/10)
					}
					gone = now
				}
				if gone != n {
					t.Errorf("%d of %d went", gone, n)
				}
			})
		}
	}
}

func TestPlanOfFew(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3} {
		ids := []uint64{7, 8, 1000}[:n]
		p := &Schedule{Began: time.Now(), Pace: time.Second, quantiles: thin(ids, maxQuantiles)}
		before := uint64(0)
		for at := time.Duration(0); at < p.Pace; at += 10 * time.Millisecond {
			if reached := p.Progress(p.Began.Add(at)); reached < before {
				t.Fatalf("of %d: %d after %d", n, reached, before)
			} else {
				before = reached
			}
		}
		if before > 1000 {
			t.Errorf("of %d: all have gone before the end", n)
		}
		if p.Progress(p.Ends()) != ^uint64(0) {
			t.Errorf("of %d: not everybody goes", n)
		}
	}
}

// A client reads the hint of every reason that has one, and no other.
func TestRetryOf(t *testing.T) {
	for reason, want := range map[string]string{
		WithRetry("bye", 3200*time.Millisecond): "3200",
		"bye; retry=5":                          "5",
		"bye; retry=":                           "",
		"bye; retry=soon":                       "",
		"bye; retry=5\ndata: forged":            "",
		"bye":                                   "",
	} {
		if got := RetryOf(reason); got != want {
			t.Errorf("%q asks for %q, want %q", reason, got, want)
		}
	}
}

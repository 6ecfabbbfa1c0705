package reactor

import "testing"

// A sample has each member at most once.
func TestSampleOfAGroup(t *testing.T) {
	for _, n := range []int{0, 1, 2, evictSamples - 1, evictSamples, evictSamples + 1, 1000} {
		g := &Table{Audience: Audience{Members: make([]member, n)}}
		for range 50 {
			seen := map[int]bool{}
			for _, i := range g.sample() {
				if i < 0 || i >= n || seen[i] {
					t.Fatalf("of %d: %d is none, or is there twice", n, i)
				}
				seen[i] = true
			}
			if len(seen) != min(n, evictSamples) {
				t.Fatalf("of %d: %d", n, len(seen))
			}
		}
	}
}

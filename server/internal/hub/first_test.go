package hub

import "testing"

// The first names are found whatever the order in which they come, without keeping all.
func TestFirstOf(t *testing.T) {
	for most := 1; most < 6; most++ {
		for turn := range 40 {
			f := firstOf[int]{most: most}
			for i := range 40 {
				f.add((i*7 + turn) % 40)
				if len(f.list) > 2*most {
					t.Fatalf("keeps %d for %d", len(f.list), most)
				}
			}
			for i, v := range f.sorted() {
				if v != i || len(f.list) != most {
					t.Fatalf("the first %d are %v", most, f.list)
				}
			}
		}
	}
}

package patterns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// stands reports whether every topic that inner stands for matches outer, in the plainest words.
func stands(outer, inner string) bool {
	o, i := strings.Split(outer, "."), strings.Split(inner, ".")
	for n := range o {
		switch {
		case n == len(i):
			return false
		case o[n] == ">":
			return true
		case i[n] == ">" || o[n] != "*" && o[n] != i[n]:
			return false
		}
	}
	return len(o) == len(i)
}

// The index finds what looking at each pattern would, whatever came and went before, and keeps nothing of what is gone.
func TestIndexAgainstEach(t *testing.T) {
	var index Index[string]
	r := rand.New(rand.NewPCG(1, 2))
	name := func(wild bool) string {
		levels := make([]string, 1+r.IntN(5))
		for i := range levels {
			levels[i] = []string{"a", "b", "ab", "c"}[r.IntN(4)]
			if wild && r.IntN(3) == 0 {
				levels[i] = "*"
			}
		}
		if wild && r.IntN(3) == 0 {
			levels[len(levels)-1] = ">"
		}
		return strings.Join(levels, ".")
	}
	live := map[string]bool{}
	look := func() {
		t.Helper()
		for range 20 {
			topic := name(false)
			var got, want []string
			for _, p := range index.Match(topic, nil) {
				got = append(got, *p)
			}
			for p := range live {
				if stands(p, topic) {
					want = append(want, p)
				}
			}
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Fatalf("%s matches %v, want %v, of %d", topic, got, want, len(live))
			}
		}
		names := []string{name(true), name(true), name(false)}
		for p := range live {
			names = append(names, p)
			if len(names) == 10 {
				break
			}
		}
		for _, name := range names {
			want := false
			for p := range live {
				want = want || p != name && stands(p, name)
			}
			if got := index.Covers(name); got != want {
				t.Fatalf("%s is covered: %v, want %v, by %v", name, got, want, live)
			}
		}
	}
	for range 600 {
		p := name(true)
		if len(live) > 40 || r.IntN(3) == 0 { // few, so that not all is covered
			for p = range live {
				break
			}
		}
		if !live[p] {
			live[p] = true
			index.Add(p, &p)
		} else {
			index.Remove(p)
			delete(live, p)
		}
		look()
		if n := index.root.nodes(); n > 2*len(live)+1 {
			t.Fatalf("%d nodes for %d patterns", n, len(live))
		}
	}
	for p := range live {
		index.Remove(p)
	}
	if n := index.root.nodes(); n != 1 || index.root.kids.Len() != 0 {
		t.Errorf("%d nodes are left", n)
	}
}

// nodes counts a node and what is below it.
func (n *node[T]) nodes() int {
	count := 1
	for _, kid := range n.kids.All() {
		count += kid.nodes()
	}
	return count
}

// A crowd of patterns gives its memory back though two that came with it stay, at the root and below a node.
func TestAnIndexGivesItsMemoryBack(t *testing.T) {
	const n = 300_000
	for _, format := range []string{"b%d.>", "a.b%d.*"} {
		var index Index[int]
		value, before := 1, testenv.HeapInUse()
		for i := range n {
			index.Add(fmt.Sprintf(format, i), &value)
		}
		full := testenv.HeapInUse() - before
		for i := range n - 2 {
			index.Remove(fmt.Sprintf(format, i))
		}
		if left := testenv.HeapInUse() - before; left > full/100 {
			t.Errorf("%s: %d B are left of %d B", format, left, full)
		}
		if last := fmt.Sprintf(strings.TrimRight(format, ".*>")+".c", n-1); len(index.Match(last, nil)) != 1 {
			t.Errorf("%s: the last one does not match %s", format, last)
		}
	}
}

// BenchmarkCovers looks whether one of so many patterns of others covers a name.
func BenchmarkCovers(b *testing.B) {
	for _, others := range []int{1, 100, 4096} {
		b.Run(fmt.Sprintf("patterns=%d", others), func(b *testing.B) {
			var index Index[int]
			for i := range others {
				index.Add(fmt.Sprintf("a.b%d.*", i), &i)
			}
			for b.Loop() {
				index.Covers("a.c.d")
			}
		})
	}
}

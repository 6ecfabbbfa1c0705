package hub

import (
	"fmt"
	"runtime"
	"testing"

	"carillon/codec"
	"carillon/internal/testenv"
)

// Whatever clients fill, and leave again, gives its memory back.
func TestWhatClientsFillGivesItsMemoryBack(t *testing.T) {
	sources := make([]Source, 100_000) // which are not counted
	for i := range sources {
		sources[i].Name = fmt.Sprintf("p.%d.*", i)
	}
	var index patternIndex
	t.Run("patterns", func(t *testing.T) {
		testenv.GivesMemoryBack(t, 64, func(i int) { index.add(&sources[i]) }, func(i int) { index.remove(&sources[i]) })
	})
	var history ring
	kept := new(Message).WithRaw(codec.NewFrame(codec.OpText, []byte("x")))
	t.Run("histories", func(t *testing.T) {
		testenv.GivesMemoryBack(t, 8, func(int) { history.push(kept) }, func(int) { history.dropOldest() })
	})
	runtime.KeepAlive([]any{sources, &index, &history, kept})
}

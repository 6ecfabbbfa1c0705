package fair

import (
	"runtime"
	"testing"
	"time"

	"carillon/server/internal/sys"
)

// A turn during which the system runs something else is charged what it took itself.
func TestWorkClockLeavesOutWhatOthersTook(t *testing.T) {
	if _, _, known := sys.ThreadTime(); !known {
		t.Skip("the processor time of a thread is not known here")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	clock := StartWorkClock()
	start := time.Now()
	time.Sleep(20 * time.Millisecond)
	if wall := time.Since(start); clock.Took(wall) > wall/4 {
		t.Errorf("sleep of %v is charged", wall)
	}
	start = time.Now()
	_, before, _ := sys.ThreadTime()
	for now := before; now-before < 10*time.Millisecond; _, now, _ = sys.ThreadTime() {
	}
	if got := clock.Took(time.Since(start)); got < 5*time.Millisecond {
		t.Errorf("%v of work are charged of %v", got, time.Since(start))
	}
	if got := clock.Took(Quantum / 2); got != Quantum/2 {
		t.Errorf("a short turn is charged %v", got)
	}
}

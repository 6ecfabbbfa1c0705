package reactor

import (
	"time"

	"golang.org/x/sys/unix"
)

// threadTime is the processor time of the thread that runs the caller, and which thread that is. It takes two system
// calls.
func threadTime() (thread int, used time.Duration, known bool) {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0, 0, false
	}
	return unix.Gettid(), time.Duration(t.Nano()), true
}

package sys

import (
	"time"

	"golang.org/x/sys/unix"
)

// ThreadTime is the processor time of the thread that runs the caller, and which thread that is. It takes two system
// calls.
func ThreadTime() (thread int, used time.Duration, known bool) {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0, 0, false
	}
	return unix.Gettid(), time.Duration(t.Nano()), true
}

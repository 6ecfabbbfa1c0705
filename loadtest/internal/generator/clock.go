package generator

import (
	"time"

	"golang.org/x/sys/unix"
)

var (
	began      = time.Now()
	beganNanos = monotonicNanos()
)

// Monotonic returns the time in nanoseconds on a clock that all processes of this machine share, so that
// one process can time messages of another. It makes no system call.
func Monotonic() int64 { return beganNanos + int64(time.Since(began)) }

// monotonicNanos reads the system's monotonic clock.
func monotonicNanos() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("no monotonic clock: " + err.Error())
	}
	return t.Nano()
}

// cpuNanos is the CPU time, user and system, that this process has used.
func cpuNanos() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// SleepUntil sleeps until a time on the monotonic clock.
func SleepUntil(at int64) { time.Sleep(time.Duration(at - Monotonic())) }

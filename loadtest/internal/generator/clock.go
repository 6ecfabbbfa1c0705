package generator

import (
	"time"

	"golang.org/x/sys/unix"
)

var (
	began      = time.Now()
	beganNanos = monotonicNanos()
)

// Monotonic is the time in nanoseconds of a clock that all processes on this machine share, so that a
// message sent by one can be timed by another. It costs no system call.
func Monotonic() int64 { return beganNanos + int64(time.Since(began)) }

// monotonicNanos asks the system for the time of its monotonic clock.
func monotonicNanos() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("no monotonic clock: " + err.Error())
	}
	return t.Nano()
}

// cpuNanos is the processor time, user and system, that this process has used.
func cpuNanos() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// SleepUntil returns at a moment of the monotonic clock.
func SleepUntil(at int64) { time.Sleep(time.Duration(at - Monotonic())) }

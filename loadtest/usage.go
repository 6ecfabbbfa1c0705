package main

import (
	"errors"
	"time"
)

// usage is what a process has used up to a moment.
type usage struct {
	at      int64 // monotonic
	cpu     time.Duration
	rss     int64 // bytes
	threads int
}

// kernelMemory is what the kernel counts for the sockets of the whole machine, in bytes.
type kernelMemory struct {
	buffers int64 // TCP's in /proc/net/sockstat
	slab    int64 // all kernel objects, of which sockets are many
}

var errNoProcess = errors.New("there is no such process")

package main

import (
	"errors"
	"time"
)

// usage is the resource usage of a process.
type usage struct {
	at      int64 // monotonic
	cpu     time.Duration
	rss     int64 // bytes
	threads int
}

// kernelMemory is kernel memory of the whole machine, in bytes.
type kernelMemory struct {
	buffers int64 // TCP buffers, from /proc/net/sockstat
	slab    int64 // Slab, from /proc/meminfo
}

var errNoProcess = errors.New("no such process")

package server

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"sync/atomic"
)

// memorySystem is how much memory this process may have, according to its environment. 0 is no limit.
type memorySystem struct {
	runtime  int64   // GOMEMLIMIT, or what the application has given to debug.SetMemoryLimit
	group    *cgroup // the one with the lowest limit; nil without any
	physical int64
}

// The default of Limits.MaxMemory is 80 % of the lowest limit. The rest is for garbage that waits for its
// collection, for what the runtime has free, and for what connections take until some of them are closed.
const (
	defaultMemoryPercent = 80
	runtimePercent       = 90 // see LimitRuntimeMemory
)

// findMemory reads the limits. The root is "" but in tests.
func findMemory(root string) memorySystem {
	m := memorySystem{group: lowestCgroup(root), physical: physicalMemory(root)}
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 && limit != ownRuntimeLimit.Load() {
		m.runtime = limit
	}
	return m
}

// defaultLimit is what Limits.MaxMemory is when it is not set, and why; -1 is off.
func (m *memorySystem) defaultLimit() (Size, string) {
	lowest, source := int64(math.MaxInt64), ""
	consider := func(limit int64, what string) {
		if limit > 0 && limit < lowest {
			lowest, source = limit, what
		}
	}
	consider(m.runtime, "GOMEMLIMIT")
	if m.group != nil {
		consider(m.group.limit, m.group.file+" of the cgroup "+m.group.name)
	}
	consider(m.physical, "the physical memory")
	if source == "" {
		return -1, "no limit from GOMEMLIMIT, a cgroup or the system"
	}
	return share(lowest, defaultMemoryPercent), fmt.Sprintf("%d%% of %s, %v", defaultMemoryPercent, source, roundedSize(lowest))
}

// share is a part of a limit, in whole MiB so that it can be read.
func share(limit, percent int64) Size {
	n := limit / 100 * percent
	if n > 1<<20 {
		n &^= 1<<20 - 1
	}
	return Size(n)
}

// roundedSize is for people.
func roundedSize(n int64) Size {
	if n > 10<<20 {
		n &^= 1<<20 - 1
	}
	return Size(n)
}

// EffectiveMaxMemory returns MaxMemory as a server in this process would apply it now, and where the value comes
// from, for people. A negative size is off. The default depends on the environment, so it is read again with each
// call: GOMEMLIMIT, the cgroups of the process, and the physical memory.
func (l *Limits) EffectiveMaxMemory() (Size, string) {
	if l.MaxMemory != 0 {
		return max(l.MaxMemory, -1), explicitMemory
	}
	m := findMemory("")
	return m.defaultLimit()
}

const explicitMemory = "limits.max_memory"

// ownRuntimeLimit is what LimitRuntimeMemory has set. It says nothing about what the process may have.
var ownRuntimeLimit atomic.Int64

// LimitRuntimeMemory sets the soft limit of the Go runtime ([debug.SetMemoryLimit]) to 90 % of the lowest memory
// limit of the cgroups that the process is in, so that garbage is collected, and memory given back, before the
// kernel ends the process. It does nothing and returns 0 when the environment variable GOMEMLIMIT or the
// application has set a limit, or when no cgroup has one. When the cgroup's limit changes, a running [Server]
// follows it.
//
// It changes the whole process, so a Server does not call it by itself. The program carillon does at its start.
func LimitRuntimeMemory() (Size, string) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0, ""
	}
	return limitRuntime(findMemory(""))
}

func limitRuntime(m memorySystem) (Size, string) {
	if m.runtime != 0 || m.group == nil {
		return 0, ""
	}
	limit := share(m.group.limit, runtimePercent)
	ownRuntimeLimit.Store(int64(limit))
	debug.SetMemoryLimit(int64(limit))
	return limit, fmt.Sprintf("%d%% of %s of the cgroup %s, %v", runtimePercent, m.group.file, m.group.name, roundedSize(m.group.limit))
}

// limitRuntimeAgain follows a limit of the cgroup that has changed, if the runtime's is still the one that was
// derived from it.
func limitRuntimeAgain(m memorySystem) {
	if own := ownRuntimeLimit.Load(); own != 0 && own == debug.SetMemoryLimit(-1) {
		_, _ = limitRuntime(m)
	}
}

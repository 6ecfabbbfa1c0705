package main

import (
	"fmt"
	"net/netip"
	"runtime"

	"carillon/loadtest/internal/generator"

	"golang.org/x/sys/unix"
)

// reservedDescriptors are what a process of the generator needs besides its connections.
const reservedDescriptors = 64

// portsPerSource is how many connections to one server are planned for one source address. Linux has
// 28,232 ports for it, but searches them one by one: at 15,000 it takes ten times as long to find a
// free one as at 5,000.
const portsPerSource = 5000

// descriptorLimit is how many descriptors one process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Max, 1<<30)) // a Go program raises its own limit to this
}

// plan says how many processes a run takes and where they connect from, or why it cannot be done.
func plan(o *options, limit int, loopback bool) (processes int, sources generator.SourceRange, err error) {
	each := limit - reservedDescriptors
	if each < 1 {
		return 0, sources, fmt.Errorf("the limit of %d open files leaves none for connections: raise it with ulimit -n", limit)
	}
	least := (o.Connections + each - 1) / each
	processes = o.Processes
	if processes == 0 {
		processes = least
		if o.sends() {
			processes = max(processes, min(runtime.NumCPU()/4, 8, o.Connections))
		}
	}
	if processes > maxProcesses || processes < least {
		one := (o.Connections+processes-1)/processes + reservedDescriptors
		return 0, sources, fmt.Errorf("%d connections in %d processes need %d open files each, and the limit is %d: "+
			"raise it (ulimit -n %d), or use --processes %d", o.Connections, processes, one, limit, one, least)
	}
	if sources, err = o.sources(); err != nil {
		return 0, sources, err
	}
	if needed := (o.Connections + portsPerSource - 1) / portsPerSource; !sources.First.IsValid() && needed > 1 && loopback && runtime.GOOS == "linux" {
		first := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		sources = generator.SourceRange{First: first, Last: first}
		for range needed - 1 {
			sources.Last = sources.Last.Next()
		}
	}
	return processes, sources, nil
}

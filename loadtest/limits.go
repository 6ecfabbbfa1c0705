package main

import (
	"fmt"
	"net/netip"
	"runtime"

	"carillon/loadtest/internal/generator"

	"golang.org/x/sys/unix"
)

// reservedDescriptors is the number of descriptors that a generator process needs besides its connections.
const reservedDescriptors = 64

// portsPerSource is the number of connections per source address. Linux has 28,232 ports, but searches them
// linearly: with 15,000 in use a search takes ten times as long as with 5,000.
const portsPerSource = 5000

// descriptorLimit is the number of descriptors that a process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return int(min(limit.Max, 1<<30)) // Go programs raise their limit to this
}

// plan chooses the number of processes and the source addresses of a run.
func plan(o *options, limit int, loopback bool) (processes int, sources generator.SourceRange, err error) {
	each := limit - reservedDescriptors
	if each < 1 {
		return 0, sources, fmt.Errorf("the limit of %d open files is too low: raise it with ulimit -n", limit)
	}
	needed := (o.Connections + each - 1) / each
	processes = o.Processes
	if processes == 0 {
		processes = needed
		if o.sends() {
			processes = max(processes, min(runtime.NumCPU()/4, 8, o.Connections))
		}
	}
	if processes > maxProcesses || processes < needed {
		one := (o.Connections+processes-1)/processes + reservedDescriptors
		return 0, sources, fmt.Errorf("%d connections in %d processes need %d open files each, and the limit is %d: "+
			"raise it (ulimit -n %d) or use --processes %d", o.Connections, processes, one, limit, one, needed)
	}
	if sources, err = o.sources(); err != nil {
		return 0, sources, err
	}
	if n := (o.Connections + portsPerSource - 1) / portsPerSource; !sources.First.IsValid() && n > 1 && loopback && runtime.GOOS == "linux" {
		first := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		sources = generator.SourceRange{First: first, Last: first}
		for range n - 1 {
			sources.Last = sources.Last.Next()
		}
	}
	return processes, sources, nil
}

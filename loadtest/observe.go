package main

import (
	"fmt"
	"net/netip"
)

// observed is the server's process, seen from outside. A nil one sees nothing.
type observed struct {
	pid   int
	doubt string // why it may be the wrong process

	before, start, end cost // before the first connection, when the window began, and after it
	full               cost // with all connections
	pss                int64

	kernelBefore, kernelFull kernelMemory

	lastCost   cost
	peakCores  float64
	peakMemory int64
}

// observe finds the server's process: the one that was named, or, on this machine, the one that
// listens. It is nil when none can be told.
func observe(pid int, address netip.AddrPort) (*observed, error) {
	if pid != 0 {
		if _, err := costOf(pid); err != nil {
			return nil, fmt.Errorf("--pid %d: %w", pid, err)
		}
		return &observed{pid: pid}, nil
	}
	if !address.Addr().IsLoopback() {
		return nil, nil
	}
	pids, _ := listeners(address)
	if len(pids) == 0 {
		return nil, nil
	}
	s := &observed{pid: pids[0]}
	if len(pids) > 1 {
		s.doubt = fmt.Sprintf("%d processes listen at %s, and only %d was measured: choose with --pid", len(pids), address, pids[0])
	}
	return s, nil
}

// read takes one of the readings below. One that fails leaves what there was: the server is gone.
func (s *observed) read(reading func(cost)) {
	if s == nil {
		return
	}
	if c, err := costOf(s.pid); err == nil {
		reading(c)
	}
}

func (s *observed) beforeAll(c cost) {
	s.before, s.lastCost, s.kernelBefore = c, c, kernelMemoryNow()
}

func (s *observed) beforeWindow(c cost) { s.start = c }

func (s *observed) withAll(c cost) {
	s.full, s.pss, s.kernelFull = c, pssOf(s.pid), kernelMemoryNow()
}

func (s *observed) afterWindow(c cost) { s.end = c }

// sample is how many cores were busy since the last sample, and the memory in use.
func (s *observed) sample() (cores float64, memory int64) {
	s.read(func(c cost) {
		if passed := c.at - s.lastCost.at; passed > 0 {
			cores = float64(c.cpu-s.lastCost.cpu) / float64(passed)
		}
		memory = c.rss
		if s.start.at != 0 && s.lastCost.at >= s.start.at {
			s.peakCores = max(s.peakCores, cores)
		}
		if s.start.at != 0 {
			s.peakMemory = max(s.peakMemory, memory)
		}
		s.lastCost = c
	})
	return cores, memory
}

// figures are what the result says about the server.
func (s *observed) figures(opened, received int64, seconds float64) *Server {
	if s == nil || s.before.at == 0 {
		return nil
	}
	end, full := s.end, s.full
	if end.at == 0 && s.start.at != 0 { // it was gone by then, and was last seen here
		end, full = s.lastCost, s.lastCost
	}
	f := &Server{PID: s.pid, RSSBefore: s.before.rss, Threads: s.before.threads}
	if s.start.at != 0 && opened > 0 {
		f.CPUPerConn = micros(int64(s.start.cpu-s.before.cpu)) / float64(opened)
	}
	if full.at != 0 {
		f.RSS, f.PSS, f.Threads = full.rss, s.pss, full.threads
	}
	if full.at != 0 && opened > 0 {
		f.RSSPerConn = float64(full.rss-s.before.rss) / float64(opened)
		// The kernel's memory is the whole machine's: it may shrink for reasons of its own.
		f.KernelPerConn = float64(max(0, s.kernelFull.buffers-s.kernelBefore.buffers)) / float64(opened)
		f.SlabPerConn = float64(max(0, s.kernelFull.slab-s.kernelBefore.slab)) / float64(opened)
	}
	if end.at != 0 && seconds > 0 {
		f.CPUSeconds = (end.cpu - s.start.cpu).Seconds()
		f.Cores = f.CPUSeconds / seconds
		if received > 0 {
			f.CPUPerMessage = f.CPUSeconds * 1e6 / float64(received)
		}
	}
	return f
}

func micros(nanos int64) float64 { return float64(nanos) / 1e3 }

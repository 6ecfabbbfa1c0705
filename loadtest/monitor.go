package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"
)

// monitor measures the server's processes. A nil monitor measures nothing.
type monitor struct {
	processes []*process
	caveat    string // why some processes may be unknown

	before, start, end usage // before the first connection, when the window began, and after it
	full               usage // with all connections
	pss                int64

	kernelBefore, kernelFull kernelMemory

	lastUsage  usage
	peakCores  float64
	peakMemory int64
}

// process is a server process.
type process struct {
	pid   int
	url   string // where it listens; empty if named by --pid
	last  usage  // latest reading
	ended int64  // when it was found to have exited, or 0
}

func (p *process) String() string {
	if p.url == "" {
		return fmt.Sprintf("process %d", p.pid)
	}
	return fmt.Sprintf("process %d at %s", p.pid, p.url)
}

// newMonitor returns a monitor of the given processes or, if there are none, of those that listen at the
// targets on this machine. It returns nil if no process is known.
func newMonitor(pids []int, targets []generator.Target) (*monitor, error) {
	s := &monitor{}
	for _, pid := range pids {
		if _, err := usageOf(pid); err != nil {
			return nil, fmt.Errorf("--pid %d: %w", pid, err)
		}
		s.add(pid, "")
	}
	if len(pids) > 0 {
		return s, nil
	}
	var addresses []netip.AddrPort
	for _, t := range targets {
		addresses = append(addresses, t.Address)
	}
	var unseen []string
	for i, pids := range listeners(addresses) {
		if !addresses[i].Addr().IsLoopback() {
			pids = nil // the address may belong to another machine
		}
		if len(pids) == 0 {
			unseen = append(unseen, targets[i].URL)
		}
		for _, pid := range pids {
			s.add(pid, targets[i].URL)
		}
	}
	if len(s.processes) == 0 {
		return nil, nil
	}
	if len(unseen) > 0 {
		s.caveat = "server CPU and memory leave out " + strings.Join(unseen, " ") + ": no process on this machine listens there"
	}
	return s, nil
}

func (s *monitor) add(pid int, url string) {
	if !slices.ContainsFunc(s.processes, func(p *process) bool { return p.pid == pid }) {
		s.processes = append(s.processes, &process{pid: pid, url: url})
	}
}

// total is the usage of all processes, and the memory of those that are alive. Of a process that has exited
// the last reading counts, so that totals do not fall. If all have exited, ok is false.
func (s *monitor) total() (sum usage, living int64, ok bool) {
	sum.at = generator.Monotonic()
	for _, p := range s.processes {
		c, err := usageOf(p.pid)
		switch {
		case err == nil && p.ended == 0:
			p.last, ok = c, true
			living += c.rss
		case p.ended == 0:
			p.ended = sum.at
		}
		sum.cpu += p.last.cpu
		sum.rss += p.last.rss
		sum.threads += p.last.threads
	}
	return sum, living, ok
}

// gone returns the processes that have exited.
func (s *monitor) gone() []*process {
	if s == nil {
		return nil
	}
	s.total()
	return slices.DeleteFunc(slices.Clone(s.processes), func(p *process) bool { return p.ended == 0 })
}

// read takes one of the readings below, unless the server has exited.
func (s *monitor) read(reading func(usage)) {
	if s == nil {
		return
	}
	if c, _, ok := s.total(); ok {
		reading(c)
	}
}

func (s *monitor) beforeAll(c usage) {
	s.before, s.lastUsage, s.kernelBefore = c, c, readKernelMemory()
}

func (s *monitor) beforeWindow(c usage) { s.start = c }

func (s *monitor) withAll(c usage) {
	s.full, s.pss, s.kernelFull = c, 0, readKernelMemory()
	for _, p := range s.processes {
		s.pss += pssOf(p.pid)
	}
}

func (s *monitor) afterWindow(c usage) { s.end = c }

// sample returns the cores busy since the last sample and the memory in use.
func (s *monitor) sample() (cores float64, memory int64) {
	if s == nil {
		return 0, 0
	}
	c, living, ok := s.total()
	if !ok {
		return 0, 0
	}
	if passed := c.at - s.lastUsage.at; passed > 0 {
		cores = float64(c.cpu-s.lastUsage.cpu) / float64(passed)
	}
	if s.start.at != 0 && s.lastUsage.at >= s.start.at {
		s.peakCores = max(s.peakCores, cores)
	}
	if s.start.at != 0 {
		s.peakMemory = max(s.peakMemory, living)
	}
	s.lastUsage = c
	return cores, living
}

// metrics returns the metrics of the server.
func (s *monitor) metrics(opened, received int64, seconds float64) *report.Server {
	if s == nil || s.before.at == 0 {
		return nil
	}
	end, full := s.end, s.full
	if end.at == 0 && s.start.at != 0 { // it exited earlier
		end, full = s.lastUsage, s.lastUsage
	}
	f := &report.Server{PID: s.processes[0].pid, Processes: len(s.processes), RSSBefore: s.before.rss, Threads: s.before.threads}
	if s.start.at != 0 && opened > 0 {
		f.CPUPerConn = micros(int64(s.start.cpu-s.before.cpu)) / float64(opened)
	}
	if full.at != 0 {
		f.RSS, f.PSS, f.Threads = full.rss, s.pss, full.threads
	}
	if full.at != 0 && opened > 0 {
		f.RSSPerConn = float64(full.rss-s.before.rss) / float64(opened)
		// Kernel memory covers the whole machine, so it may shrink for other reasons.
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

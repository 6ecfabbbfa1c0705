package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// workerCommand is the hidden command of this program that is one process of the generator.
const workerCommand = "generator-process"

// fleet are the processes of the generator, as their parent sees them.
type fleet struct {
	processes []*workerProcess
	reports   chan incoming
	stop      sync.Once
	stopped   chan struct{}

	handshakes *hdr.Histogram // since the start
	reconnects *hdr.Histogram // storm: handshakes after the cut
	latency    *hdr.Histogram
	recent     *hdr.Histogram // of latencies, since it was last reset
	back       []int64
	storming   bool
}

// process is one process.
type workerProcess struct {
	index    int
	cmd      *exec.Cmd
	commands io.WriteCloser
	last     workerReport // with what earlier ones said and this one need not repeat
	events   map[string]bool
	dead     bool
}

// incoming is a report, or the end of a process.
type incoming struct {
	from   *workerProcess
	report *workerReport
	err    error
}

// startFleet starts the processes and waits for nothing.
func startFleet(processes int) (*fleet, error) {
	f := &fleet{
		reports: make(chan incoming, 64), stopped: make(chan struct{}),
		handshakes: newHistogram(), reconnects: newHistogram(), latency: newHistogram(), recent: newHistogram(),
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	for i := range processes {
		m := &workerProcess{index: i, cmd: exec.Command(self, workerCommand), events: map[string]bool{}}
		m.cmd.Stderr = os.Stderr
		out, err := m.cmd.StdoutPipe()
		if err == nil {
			m.commands, err = m.cmd.StdinPipe()
		}
		if err == nil {
			err = m.cmd.Start()
		}
		if err != nil {
			f.close()
			return nil, fmt.Errorf("start a process of the generator: %w", err)
		}
		f.processes = append(f.processes, m)
		go f.receive(m, out)
	}
	return f, nil
}

// receive passes on what a process says.
func (f *fleet) receive(m *workerProcess, out io.Reader) {
	decode := json.NewDecoder(bufio.NewReader(out))
	for {
		a := incoming{from: m, report: &workerReport{}}
		if a.err = decode.Decode(a.report); a.err != nil {
			a.report = nil
		}
		select {
		case f.reports <- a:
		case <-f.stopped:
			return
		}
		if a.err != nil {
			return
		}
	}
}

// broadcast tells all processes the same.
func (f *fleet) broadcast(o command) {
	for _, m := range f.processes {
		m.send(o)
	}
}

func (m *workerProcess) send(o command) {
	line, err := json.Marshal(o)
	if err != nil {
		panic("an order that is not JSON: " + err.Error())
	}
	_, _ = m.commands.Write(append(line, '\n')) // a process that is gone is noticed when it is listened to
}

// apply enters a report.
func (f *fleet) apply(a incoming) error {
	m := a.from
	if a.err != nil {
		if m.dead || m.events[eventFinished] {
			return nil
		}
		m.dead = true
		return errors.New("a process of the generator has ended: its connections are not in the figures")
	}
	handshakes := f.handshakes
	if f.storming {
		handshakes = f.reconnects
	}
	r := a.report
	m.events[r.Event] = true
	if r.Event == eventFinished {
		return nil
	}
	err := errors.Join(unpack(handshakes, r.Handshake), unpack(f.latency, r.Latency), unpack(f.recent, r.Latency))
	f.back = append(f.back, r.Back...)
	if r.SentBy == nil {
		r.SentBy = m.last.SentBy
	}
	if r.Arrivals == nil {
		r.Arrivals, r.NoEcho = m.last.Arrivals, m.last.NoEcho
	}
	m.last = *r
	return err
}

// reached says whether every process has said something.
func (f *fleet) reached(say string) bool {
	for _, m := range f.processes {
		if !m.events[say] && !m.dead {
			return false
		}
	}
	return true
}

// total adds up what the processes have counted.
func (f *fleet) total() counters {
	var sum counters
	for _, m := range f.processes {
		c := m.last.counters
		sum.Open += c.Open
		sum.Opened += c.Opened
		sum.Failed += c.Failed
		sum.Lost += c.Lost
		sum.Members += c.Members
		sum.Sent += c.Sent
		sum.Unsent += c.Unsent
		sum.Received += c.Received
		sum.Expected += c.Expected
		sum.Duplicated += c.Duplicated
		sum.Reordered += c.Reordered
		sum.Foreign += c.Foreign
		sum.Bytes += c.Bytes
		sum.MaxLate = max(sum.MaxLate, c.MaxLate)
		sum.LastAt = max(sum.LastAt, c.LastAt)
		sum.CPU += c.CPU
		sum.CPUStart += c.CPUStart
		sum.CPUEnd += c.CPUEnd
		sum.CPUDrain += max(c.CPUDrain, c.CPUStart)
		sum.Attempts += c.Attempts
		if c.CutAt != 0 && (sum.CutAt == 0 || c.CutAt < sum.CutAt) {
			sum.CutAt = c.CutAt
		}
	}
	return sum
}

// shares adds up what the processes have counted for each target.
func (f *fleet) shares(targets int) []share {
	sum := make([]share, targets)
	for _, m := range f.processes {
		for i, s := range m.last.Shares {
			sum[i].Opened += s.Opened
			sum[i].Lost += s.Lost
		}
	}
	return sum
}

// reasons adds up reasons that the processes have counted.
func (f *fleet) reasons(of func(*workerReport) map[string]int) map[string]int {
	sum := map[string]int{}
	for _, m := range f.processes {
		for reason, n := range of(&m.last) {
			sum[reason] += n
		}
	}
	if len(sum) == 0 {
		return nil
	}
	return sum
}

// sentBy lists how many messages each sender of all processes has sent.
func (f *fleet) sentBy(senders int) []uint32 {
	list := make([]uint32, senders)
	for _, m := range f.processes {
		for i, n := range m.last.SentBy {
			list[i*len(f.processes)+m.index] = n
		}
	}
	return list
}

// completions are the times until each message had reached its last receiver.
func (f *fleet) completions(senders, receivers int) *hdr.Histogram {
	h := newHistogram()
	deaf := map[int]bool{}
	for _, m := range f.processes {
		for _, id := range m.last.NoEcho {
			deaf[int(id)] = true
		}
	}
	for id := range senders {
		var sum arrivals
		for _, m := range f.processes {
			if id >= len(m.last.Arrivals) {
				continue
			}
			if a, ok := unpackArrivals(m.last.Arrivals[id]); ok {
				sum.add(a)
			}
		}
		expected := receivers
		if deaf[id] {
			expected--
		}
		sum.complete(h, uint32(expected))
	}
	return h
}

// close ends all processes, whatever they do.
func (f *fleet) close() {
	f.stop.Do(func() { close(f.stopped) })
	for _, m := range f.processes {
		m.commands.Close()
		if !m.events[eventFinished] {
			_ = m.cmd.Process.Kill()
		}
		_ = m.cmd.Wait()
	}
}

package generator

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

// WorkerCommand is the hidden command that runs this program as a worker.
const WorkerCommand = "generator-process"

// Fleet is the parent's view of its worker processes.
type Fleet struct {
	Processes []*Process
	Reports   chan Incoming
	stop      sync.Once
	stopped   chan struct{}

	Handshakes *hdr.Histogram // since the start
	Reconnects *hdr.Histogram // storm: handshakes after the cut
	Latency    *hdr.Histogram
	Recent     *hdr.Histogram // of latencies, since it was last reset
	Back       []int64        // storm: when each connection was back
	Storming   bool           // new handshakes are reconnects
}

// Process is one worker process.
type Process struct {
	index    int
	cmd      *exec.Cmd
	commands io.WriteCloser
	Last     Report // including fields of earlier reports that this one omits
	events   map[string]bool
	dead     bool
}

// Incoming is a report, or the end of a process.
type Incoming struct {
	from   *Process
	report *Report
	err    error
}

// StartFleet starts the processes. It does not wait for them.
func StartFleet(processes int) (*Fleet, error) {
	f := &Fleet{
		Reports: make(chan Incoming, 64), stopped: make(chan struct{}),
		Handshakes: newHistogram(), Reconnects: newHistogram(), Latency: newHistogram(), Recent: newHistogram(),
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("locate this program: %w", err)
	}
	for i := range processes {
		p := &Process{index: i, cmd: exec.Command(self, WorkerCommand), events: map[string]bool{}}
		p.cmd.Stderr = os.Stderr
		out, err := p.cmd.StdoutPipe()
		if err == nil {
			p.commands, err = p.cmd.StdinPipe()
		}
		if err == nil {
			err = p.cmd.Start()
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("start a generator process: %w", err)
		}
		f.Processes = append(f.Processes, p)
		go f.receive(p, out)
	}
	return f, nil
}

// receive forwards the reports of a process.
func (f *Fleet) receive(p *Process, out io.Reader) {
	decode := json.NewDecoder(bufio.NewReader(out))
	for {
		a := Incoming{from: p, report: &Report{}}
		if a.err = decode.Decode(a.report); a.err != nil {
			a.report = nil
		}
		select {
		case f.Reports <- a:
		case <-f.stopped:
			return
		}
		if a.err != nil {
			return
		}
	}
}

// Broadcast sends a command to all processes.
func (f *Fleet) Broadcast(c Command) {
	for _, p := range f.Processes {
		p.Send(c)
	}
}

func (p *Process) Send(c Command) {
	line, err := json.Marshal(c)
	if err != nil {
		panic("encode a command: " + err.Error())
	}
	_, _ = p.commands.Write(append(line, '\n')) // receive notices a process that has exited
}

// Apply merges a report.
func (f *Fleet) Apply(a Incoming) error {
	p := a.from
	if a.err != nil {
		if p.dead || p.events[EventFinished] {
			return nil
		}
		p.dead = true
		return errors.New("a generator process exited: its connections are missing from the results")
	}
	handshakes := f.Handshakes
	if f.Storming {
		handshakes = f.Reconnects
	}
	r := a.report
	p.events[r.Event] = true
	if r.Event == EventFinished {
		return nil
	}
	err := errors.Join(unpack(handshakes, r.Handshake), unpack(f.Latency, r.Latency), unpack(f.Recent, r.Latency))
	f.Back = append(f.Back, r.Back...)
	if r.SentBy == nil {
		r.SentBy = p.Last.SentBy
	}
	if r.Arrivals == nil {
		r.Arrivals, r.NoEcho = p.Last.Arrivals, p.Last.NoEcho
	}
	p.Last = *r
	return err
}

// Reached reports whether every process has announced an event.
func (f *Fleet) Reached(event string) bool {
	for _, p := range f.Processes {
		if !p.events[event] && !p.dead {
			return false
		}
	}
	return true
}

// Total sums the counters of all processes.
func (f *Fleet) Total() Counters {
	var sum Counters
	for _, p := range f.Processes {
		c := p.Last.Counters
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

// Shares sums the connections of all processes by target.
func (f *Fleet) Shares(targets int) []Share {
	sum := make([]Share, targets)
	for _, p := range f.Processes {
		for i, s := range p.Last.Shares {
			sum[i].Opened += s.Opened
			sum[i].Lost += s.Lost
		}
	}
	return sum
}

// Reasons sums counts by reason over all processes.
func (f *Fleet) Reasons(of func(*Report) map[string]int) map[string]int {
	sum := map[string]int{}
	for _, p := range f.Processes {
		for reason, n := range of(&p.Last) {
			sum[reason] += n
		}
	}
	if len(sum) == 0 {
		return nil
	}
	return sum
}

// SentBy returns the number of messages sent by each sender.
func (f *Fleet) SentBy(senders int) []uint32 {
	list := make([]uint32, senders)
	for _, p := range f.Processes {
		for i, n := range p.Last.SentBy {
			list[i*len(f.Processes)+p.index] = n
		}
	}
	return list
}

// Completions returns how long each message took to reach its last receiver.
func (f *Fleet) Completions(senders, receivers int) *hdr.Histogram {
	h := newHistogram()
	noEcho := map[int]bool{}
	for _, p := range f.Processes {
		for _, id := range p.Last.NoEcho {
			noEcho[int(id)] = true
		}
	}
	for id := range senders {
		var sum arrivals
		for _, p := range f.Processes {
			if id >= len(p.Last.Arrivals) {
				continue
			}
			if a, ok := unpackArrivals(p.Last.Arrivals[id]); ok {
				sum.add(a)
			}
		}
		expected := receivers
		if noEcho[id] {
			expected--
		}
		sum.complete(h, uint32(expected))
	}
	return h
}

// Close kills the processes that have not finished.
func (f *Fleet) Close() {
	f.stop.Do(func() { close(f.stopped) })
	for _, p := range f.Processes {
		p.commands.Close()
		if !p.events[EventFinished] {
			_ = p.cmd.Process.Kill()
		}
		_ = p.cmd.Wait()
	}
}

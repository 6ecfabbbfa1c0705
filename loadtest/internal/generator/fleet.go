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

// WorkerCommand is the hidden command of this program that is one process of the generator.
const WorkerCommand = "generator-process"

// Fleet are the processes of the generator, as their parent sees them.
type Fleet struct {
	Processes []*Process
	Reports   chan Incoming
	stop      sync.Once
	stopped   chan struct{}

	Handshakes *hdr.Histogram // since the start
	Reconnects *hdr.Histogram // storm: handshakes after the cut
	Latency    *hdr.Histogram
	Recent     *hdr.Histogram // of latencies, since it was last reset
	Back       []int64
	Storming   bool
}

// Process is one process of the generator.
type Process struct {
	index    int
	cmd      *exec.Cmd
	commands io.WriteCloser
	Last     Report // with what earlier ones said and this one need not repeat
	events   map[string]bool
	dead     bool
}

// Incoming is a report, or the end of a process.
type Incoming struct {
	from   *Process
	report *Report
	err    error
}

// StartFleet starts the processes and waits for nothing.
func StartFleet(processes int) (*Fleet, error) {
	f := &Fleet{
		Reports: make(chan Incoming, 64), stopped: make(chan struct{}),
		Handshakes: newHistogram(), Reconnects: newHistogram(), Latency: newHistogram(), Recent: newHistogram(),
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	for i := range processes {
		m := &Process{index: i, cmd: exec.Command(self, WorkerCommand), events: map[string]bool{}}
		m.cmd.Stderr = os.Stderr
		out, err := m.cmd.StdoutPipe()
		if err == nil {
			m.commands, err = m.cmd.StdinPipe()
		}
		if err == nil {
			err = m.cmd.Start()
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("start a process of the generator: %w", err)
		}
		f.Processes = append(f.Processes, m)
		go f.receive(m, out)
	}
	return f, nil
}

// receive passes on what a process says.
func (f *Fleet) receive(m *Process, out io.Reader) {
	decode := json.NewDecoder(bufio.NewReader(out))
	for {
		a := Incoming{from: m, report: &Report{}}
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

// Broadcast tells all processes the same.
func (f *Fleet) Broadcast(o Command) {
	for _, m := range f.Processes {
		m.Send(o)
	}
}

func (m *Process) Send(o Command) {
	line, err := json.Marshal(o)
	if err != nil {
		panic("an order that is not JSON: " + err.Error())
	}
	_, _ = m.commands.Write(append(line, '\n')) // a process that is gone is noticed when it is listened to
}

// Apply enters a report.
func (f *Fleet) Apply(a Incoming) error {
	m := a.from
	if a.err != nil {
		if m.dead || m.events[EventFinished] {
			return nil
		}
		m.dead = true
		return errors.New("a process of the generator has ended: its connections are not in the figures")
	}
	handshakes := f.Handshakes
	if f.Storming {
		handshakes = f.Reconnects
	}
	r := a.report
	m.events[r.Event] = true
	if r.Event == EventFinished {
		return nil
	}
	err := errors.Join(unpack(handshakes, r.Handshake), unpack(f.Latency, r.Latency), unpack(f.Recent, r.Latency))
	f.Back = append(f.Back, r.Back...)
	if r.SentBy == nil {
		r.SentBy = m.Last.SentBy
	}
	if r.Arrivals == nil {
		r.Arrivals, r.NoEcho = m.Last.Arrivals, m.Last.NoEcho
	}
	m.Last = *r
	return err
}

// Reached says whether every process has said something.
func (f *Fleet) Reached(say string) bool {
	for _, m := range f.Processes {
		if !m.events[say] && !m.dead {
			return false
		}
	}
	return true
}

// Total adds up what the processes have counted.
func (f *Fleet) Total() Counters {
	var sum Counters
	for _, m := range f.Processes {
		c := m.Last.Counters
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

// Shares adds up what the processes have counted for each target.
func (f *Fleet) Shares(targets int) []Share {
	sum := make([]Share, targets)
	for _, m := range f.Processes {
		for i, s := range m.Last.Shares {
			sum[i].Opened += s.Opened
			sum[i].Lost += s.Lost
		}
	}
	return sum
}

// Reasons adds up reasons that the processes have counted.
func (f *Fleet) Reasons(of func(*Report) map[string]int) map[string]int {
	sum := map[string]int{}
	for _, m := range f.Processes {
		for reason, n := range of(&m.Last) {
			sum[reason] += n
		}
	}
	if len(sum) == 0 {
		return nil
	}
	return sum
}

// SentBy lists how many messages each sender of all processes has sent.
func (f *Fleet) SentBy(senders int) []uint32 {
	list := make([]uint32, senders)
	for _, m := range f.Processes {
		for i, n := range m.Last.SentBy {
			list[i*len(f.Processes)+m.index] = n
		}
	}
	return list
}

// Completions are the times until each message had reached its last receiver.
func (f *Fleet) Completions(senders, receivers int) *hdr.Histogram {
	h := newHistogram()
	deaf := map[int]bool{}
	for _, m := range f.Processes {
		for _, id := range m.Last.NoEcho {
			deaf[int(id)] = true
		}
	}
	for id := range senders {
		var sum arrivals
		for _, m := range f.Processes {
			if id >= len(m.Last.Arrivals) {
				continue
			}
			if a, ok := unpackArrivals(m.Last.Arrivals[id]); ok {
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

// Close ends all processes, whatever they do.
func (f *Fleet) Close() {
	f.stop.Do(func() { close(f.stopped) })
	for _, m := range f.Processes {
		m.commands.Close()
		if !m.events[EventFinished] {
			_ = m.cmd.Process.Kill()
		}
		_ = m.cmd.Wait()
	}
}

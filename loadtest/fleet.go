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
	members []*member
	reports chan arrived
	stop    sync.Once
	stopped chan struct{}

	handshakes *hdr.Histogram // since the start
	again      *hdr.Histogram // storm: handshakes after the cut
	latency    *hdr.Histogram
	recent     *hdr.Histogram // of latencies, since it was last reset
	back       []int64
	storming   bool
}

// member is one process.
type member struct {
	index  int
	cmd    *exec.Cmd
	orders io.WriteCloser
	last   report // with what earlier ones said and this one need not repeat
	said   map[string]bool
	dead   bool
}

// arrived is a report, or the end of a process.
type arrived struct {
	from   *member
	report *report
	err    error
}

// startFleet starts the processes and waits for nothing.
func startFleet(processes int) (*fleet, error) {
	f := &fleet{
		reports: make(chan arrived, 64), stopped: make(chan struct{}),
		handshakes: newHistogram(), again: newHistogram(), latency: newHistogram(), recent: newHistogram(),
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	for i := range processes {
		m := &member{index: i, cmd: exec.Command(self, workerCommand), said: map[string]bool{}}
		m.cmd.Stderr = os.Stderr
		out, err := m.cmd.StdoutPipe()
		if err == nil {
			m.orders, err = m.cmd.StdinPipe()
		}
		if err == nil {
			err = m.cmd.Start()
		}
		if err != nil {
			f.close()
			return nil, fmt.Errorf("start a process of the generator: %w", err)
		}
		f.members = append(f.members, m)
		go f.listen(m, out)
	}
	return f, nil
}

// listen passes on what a process says.
func (f *fleet) listen(m *member, out io.Reader) {
	decode := json.NewDecoder(bufio.NewReader(out))
	for {
		a := arrived{from: m, report: &report{}}
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

// order tells all processes the same.
func (f *fleet) order(o order) {
	for _, m := range f.members {
		m.tell(o)
	}
}

func (m *member) tell(o order) {
	line, err := json.Marshal(o)
	if err != nil {
		panic("an order that is not JSON: " + err.Error())
	}
	_, _ = m.orders.Write(append(line, '\n')) // a process that is gone is noticed when it is listened to
}

// take enters a report.
func (f *fleet) take(a arrived) error {
	m := a.from
	if a.err != nil {
		if m.dead || m.said[sayFinished] {
			return nil
		}
		m.dead = true
		return errors.New("a process of the generator has ended: its connections are not in the figures")
	}
	handshakes := f.handshakes
	if f.storming {
		handshakes = f.again
	}
	r := a.report
	m.said[r.Say] = true
	if r.Say == sayFinished {
		return nil
	}
	err := errors.Join(unpack(handshakes, r.Handshake), unpack(f.latency, r.Latency), unpack(f.recent, r.Latency))
	f.back = append(f.back, r.Back...)
	if r.SentBy == nil {
		r.SentBy = m.last.SentBy
	}
	if r.Arrivals == nil {
		r.Arrivals, r.Deaf = m.last.Arrivals, m.last.Deaf
	}
	m.last = *r
	return err
}

// all says whether every process has said something.
func (f *fleet) all(say string) bool {
	for _, m := range f.members {
		if !m.said[say] && !m.dead {
			return false
		}
	}
	return true
}

// sum adds up what the processes have counted.
func (f *fleet) sum() counters {
	var sum counters
	for _, m := range f.members {
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
		sum.MostLate = max(sum.MostLate, c.MostLate)
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
	for _, m := range f.members {
		for i, s := range m.last.Shares {
			sum[i].Opened += s.Opened
			sum[i].Lost += s.Lost
		}
	}
	return sum
}

// reasonsOf adds up reasons that the processes have counted.
func (f *fleet) reasonsOf(of func(*report) map[string]int) map[string]int {
	sum := map[string]int{}
	for _, m := range f.members {
		for reason, n := range of(&m.last) {
			sum[reason] += n
		}
	}
	if len(sum) == 0 {
		return nil
	}
	return sum
}

// sent lists how many messages each sender of all processes has sent.
func (f *fleet) sent(senders int) []uint32 {
	list := make([]uint32, senders)
	for _, m := range f.members {
		for i, n := range m.last.SentBy {
			list[i*len(f.members)+m.index] = n
		}
	}
	return list
}

// completions are the times until each message had reached its last receiver.
func (f *fleet) completions(senders, receivers int) *hdr.Histogram {
	h := newHistogram()
	deaf := map[int]bool{}
	for _, m := range f.members {
		for _, id := range m.last.Deaf {
			deaf[int(id)] = true
		}
	}
	for id := range senders {
		var sum arrivals
		for _, m := range f.members {
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
	for _, m := range f.members {
		m.orders.Close()
		if !m.said[sayFinished] {
			_ = m.cmd.Process.Kill()
		}
		_ = m.cmd.Wait()
	}
}

package server

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
	"carillon/server/internal/sys"
)

// quiet are options under which nothing but the benchmark happens.
func quiet(loops int) Options {
	return Options{Loops: loops, Endpoints: echoAndBroadcast(), Ping: Ping{Interval: -1}}
}

// isTrial reports whether benchmarks run once, as in .ci/bench: the figures are not used, so a few samples do.
func isTrial() bool { return flag.Lookup("test.benchtime").Value.String() == "1x" }

// samples is how many echoes a benchmark of latencies times.
func samples() int {
	if isTrial() {
		return 300
	}
	return 3000
}

// descriptors are the sockets of all members of an endpoint.
func descriptors(s *Server, path string) (fds []int32) {
	for c := range s.Conns() {
		if c.Path() == path {
			fds = append(fds, c.core().FD())
		}
	}
	return fds
}

func (s *Server) settled() {
	for s.engine.BacklogBytes() != 0 {
		time.Sleep(100 * time.Microsecond)
	}
}

// BenchmarkBroadcast compares a broadcast with a bare loop of write(2) over the same sockets, in
// turn. Times are processor time, because the clients share the processors.
func BenchmarkBroadcast(b *testing.B) {
	reactor.CheckOwner = false
	for _, loops := range []int{1, 2} {
		const conns, size = 4000, 128
		b.Run(fmt.Sprintf("conns=%d/size=%d/loops=%d", conns, size, loops), func(b *testing.B) {
			s := start(b, quiet(loops))
			startSwarm(b, s, swarmOrder{Path: "/broadcast", Conns: conns, Discard: true})
			fds := descriptors(s, "/broadcast")
			frame := codec.NewFrame(Binary, numbered(0, size))
			var ours, bare time.Duration
			b.ReportAllocs()
			for b.Loop() {
				begin := cpuTime()
				_ = s.BroadcastFrame("/broadcast", frame)
				s.settled()
				ours += cpuTime() - begin
				time.Sleep(20 * time.Millisecond) // the clients catch up

				begin = cpuTime()
				for _, fd := range fds {
					if n, errno := sys.Write(fd, frame.Plain()); n != len(frame.Plain()) {
						b.Fatal(errno)
					}
				}
				bare += cpuTime() - begin
				time.Sleep(20 * time.Millisecond)
			}
			per := float64(b.N) * conns
			b.ReportMetric(float64(ours)/per, "cpu-ns/conn")
			b.ReportMetric(float64(bare)/per, "bare-ns/conn")
			b.ReportMetric(float64(ours)/float64(bare), "ratio")
		})
	}
}

// BenchmarkCoalescing publishes many messages at once and compares the deliveries per second with a
// bare write(2) for each.
func BenchmarkCoalescing(b *testing.B) {
	reactor.CheckOwner = false
	const conns, messages, size = 2000, 1000, 128
	b.Run(fmt.Sprintf("conns=%d/messages=%d/size=%d", conns, messages, size), func(b *testing.B) {
		s := start(b, quiet(2))
		startSwarm(b, s, swarmOrder{Path: "/broadcast", Conns: conns, Discard: true})
		fds := descriptors(s, "/broadcast")
		frame := codec.NewFrame(Binary, numbered(0, size))
		var ours, bare time.Duration
		const bareMessages = 20
		for b.Loop() {
			begin := time.Now()
			for range messages {
				_ = s.BroadcastFrame("/broadcast", frame)
			}
			s.settled()
			eventually(b, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
			ours += time.Since(begin)
			time.Sleep(100 * time.Millisecond)

			begin = time.Now()
			for range bareMessages {
				for _, fd := range fds {
					if n, errno := sys.Write(fd, frame.Plain()); n != len(frame.Plain()) {
						b.Fatal(errno)
					}
				}
			}
			bare += time.Since(begin)
			time.Sleep(100 * time.Millisecond)
		}
		rate := float64(b.N) * conns * messages / ours.Seconds()
		bareRate := float64(b.N) * conns * bareMessages / bare.Seconds()
		b.ReportMetric(rate/1e6, "Mdeliveries/s")
		b.ReportMetric(bareRate/1e6, "bare-Mdeliveries/s")
		b.ReportMetric(rate/bareRate, "ratio")
	})
}

// BenchmarkEcho gives the allocations of the server, whose process holds the clients too: those send
// and read without allocating.
func BenchmarkEcho(b *testing.B) {
	reactor.CheckOwner = false
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("size=128/depth=%d", depth), func(b *testing.B) {
			s := start(b, quiet(1))
			c := dial(b, s, "/echo")
			request := bytes.Repeat(masked(0x82, make([]byte, 128)), depth)
			answer := make([]byte, 132*depth)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.conn.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.r, answer); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*depth), "ns/message")
		})
	}
}

// BenchmarkIdle gives the heap that connections cost which do nothing.
func BenchmarkIdle(b *testing.B) {
	reactor.CheckOwner = false
	const conns = 15000
	b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
		for b.Loop() {
			s := start(b, quiet(2))
			dial(b, s, "/echo")
			before := heapBytes()
			w := startSwarm(b, s, swarmOrder{Path: "/broadcast", Conns: conns, Discard: true})
			b.ReportMetric(float64(heapBytes()-before)/conns, "B/conn")
			w.end()
		}
	})
}

// BenchmarkHandshake gives the processor time and the allocations of a handshake, those of gnet and of
// the kernel included.
func BenchmarkHandshake(b *testing.B) {
	reactor.CheckOwner = false
	const conns = 2000
	b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
		s := start(b, quiet(2))
		var used time.Duration
		var allocs uint64
		var m runtime.MemStats
		for b.Loop() {
			runtime.ReadMemStats(&m)
			before, begin := m.Mallocs, cpuTime()
			w := startSwarm(b, s, swarmOrder{Path: "/echo", Conns: conns, Discard: true})
			used += cpuTime() - begin
			runtime.ReadMemStats(&m)
			allocs += m.Mallocs - before
			w.end()
			eventually(b, "all are gone", func() bool { return s.engine.Sockets.Load() == 0 })
		}
		b.ReportMetric(float64(used.Nanoseconds())/float64(b.N*conns), "cpu-ns/handshake")
		b.ReportMetric(float64(allocs)/float64(b.N*conns), "allocs/handshake")
	})
}

// BenchmarkEchoBesideBroadcast compares the latency of an echo on a quiet server with that while
// 10,000 sockets are broadcast to without pause.
//
// The clients have a processor to themselves, and the server has the others. Where they share, the
// figure is that of the kernel's scheduler: a client that is ready waits for the next clock tick, up
// to 4 ms, because the server's loops do not sleep.
func BenchmarkEchoBesideBroadcast(b *testing.B) {
	reactor.CheckOwner = false
	processors := runtime.NumCPU()
	if processors < 2 {
		b.Skip("needs two processors")
	}
	runOn(0, processors-1)
	defer runOn(0, processors)
	const conns, size = 10000, 128
	needDescriptors(b, conns)
	b.Run(fmt.Sprintf("conns=%d/size=%d", conns, size), func(b *testing.B) {
		s := start(b, quiet(processors-1))
		crowd := startSwarm(b, s, swarmOrder{Path: "/broadcast", Conns: conns, Discard: true, Publish: 4, Apart: processors - 1})
		probe := func() swarmReport {
			return startSwarm(b, s, swarmOrder{Path: "/echo", Probe: samples(), Apart: processors - 1}).end()
		}
		for b.Loop() {
			idle := probe()
			crowd.publish()
			eventually(b, "it is busy", func() bool { return s.Stats().Deliveries > 10*conns })
			before, begin := s.Stats().Deliveries, time.Now()
			busy := probe()
			rate := float64(s.Stats().Deliveries-before) / time.Since(begin).Seconds()
			b.ReportMetric(rate/1e6, "Mdeliveries/s")
			b.ReportMetric(float64(idle.P99.Microseconds()), "idle-p99-us")
			b.ReportMetric(float64(busy.P99.Microseconds()), "busy-p99-us")
			b.ReportMetric(float64(busy.P50.Microseconds()), "busy-p50-us")
			b.ReportMetric(float64(busy.P99)/float64(idle.P99), "ratio")
		}
	})
}

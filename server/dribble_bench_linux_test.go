package server

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

func init() { childMains["dribblers"] = dribble5000 }

// dribblerEnv is the server's address, how many dribble at once, and how many bytes each sends in a second.
const dribblerEnv = "CARILLON_TEST_DRIBBLERS"

// dribble5000 keeps so many handshakes open that come a byte at a time. One that the server gives up is begun
// anew.
func dribble5000() {
	var host string
	var n, rate int
	if _, err := fmt.Sscan(os.Getenv(dribblerEnv), &host, &n, &rate); err != nil {
		panic(err)
	}
	address, _ := net.ResolveTCPAddr("tcp", host)
	to := &unix.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())}
	head := []byte(upgradeHead("/echo", "X-Fill: "+strings.Repeat("x", 4000)))
	fds, sent := make([]int, n), make([]int, n)
	begin := func(i int) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, to)
		}
		if err != nil {
			panic(err)
		}
		_ = unix.SetNonblock(fd, true)
		fds[i], sent[i] = fd, 0
	}
	for i := range fds {
		begin(i)
	}
	if processors := runtime.NumCPU(); processors > 1 {
		runOn(processors-1, processors)
	}
	fmt.Println("connected")
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	const turn = 10 * time.Millisecond
	perTurn := n * rate / int(time.Second/turn)
	tick := time.NewTicker(turn)
	answer := make([]byte, 4096)
	for i := 0; ; <-tick.C {
		for range perTurn {
			got, err := unix.Read(fds[i], answer)
			if err != unix.EAGAIN || got > 0 || sent[i] == len(head) {
				_ = unix.SetsockoptLinger(fds[i], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // no port is left behind
				_ = unix.Close(fds[i])
				begin(i)
			}
			_, _ = unix.Write(fds[i], head[sent[i]:sent[i]+1])
			sent[i]++
			i = (i + 1) % n
		}
	}
}

// startDribblers has them begin in a process of their own, and returns what ends them.
func startDribblers(b *testing.B, s *Server, n, rate int) (end func()) {
	b.Helper()
	cmd := testenv.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=dribblers", dribblerEnv+"="+fmt.Sprint(s.Addr(), " ", n, " ", rate))
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill() })
	var word string
	if _, err := fmt.Fscan(out, &word); err != nil {
		b.Fatal(err)
	}
	return func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	}
}

// BenchmarkEchoBesideDribblers compares the latency of an echo on a quiet server with that while 5,000
// handshakes dribble in at once, a byte at a time, and in the second in which the server has had enough of all of
// them and they are begun anew.
// The clients have a processor to themselves: see BenchmarkEchoBesideBroadcast.
func BenchmarkEchoBesideDribblers(b *testing.B) {
	reactor.CheckOwner = false
	processors := runtime.NumCPU()
	if processors < 2 {
		b.Skip("needs two processors")
	}
	const conns = 5000
	probes, limits := samples(), Limits{}
	if isTrial() {
		limits.HandshakeTimeout = 5 * time.Second
	}
	needDescriptors(b, conns)
	runOn(0, processors-1)
	defer runOn(0, processors)
	for _, rate := range []int{1, 4} {
		b.Run("conns="+strconv.Itoa(conns)+"/bytes="+strconv.Itoa(rate), func(b *testing.B) {
			probe := func(s *Server) swarmReport {
				return startSwarm(b, s, swarmOrder{Path: "/echo", Probe: probes, Apart: processors - 1}).end()
			}
			for b.Loop() {
				opts := quiet(processors - 1)
				opts.Limits = limits
				s := start(b, opts)
				idle := probe(s)
				end := startDribblers(b, s, conns, rate)
				eventually(b, "all are there", func() bool { return s.Stats().Sockets >= conns })
				before, begin := s.Stats().BytesIn, time.Now()
				busy := probe(s)
				took := time.Since(begin).Seconds()
				b.ReportMetric(float64(s.Stats().BytesIn-before-uint64(probes*len(masked(0x82, make([]byte, 128)))))/took, "dribbled-B/s")
				if n := s.Stats().Refusals[RefuseTimeout]; n > 0 && !isTrial() {
					b.Fatalf("%d handshakes have timed out already", n)
				}
				// They began together, so they time out together, and all of them come back within a second.
				eventually(b, "the server has had enough of the first", func() bool { return s.Stats().Refusals[RefuseTimeout] > 0 })
				change := probe(s)
				b.ReportMetric(float64(idle.P99.Microseconds()), "idle-p99-us")
				b.ReportMetric(float64(busy.P50.Microseconds()), "busy-p50-us")
				b.ReportMetric(float64(busy.P99.Microseconds()), "busy-p99-us")
				b.ReportMetric(float64(busy.P99)/float64(idle.P99), "ratio")
				b.ReportMetric(float64(change.P99)/float64(idle.P99), "time-out-ratio")
				end()
				eventually(b, "all are gone", func() bool { return s.Stats().Sockets == 0 })
			}
		})
	}
}

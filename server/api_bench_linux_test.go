package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// publishers are HTTP clients in another process. They send one request again and again, each on a
// connection of its own, and wait for the answer in between.
const publishersEnv = "CARILLON_TEST_PUBLISHERS"

func init() { childMains["publishers"] = runPublishers }

type publishersOrder struct {
	Address string
	Request string
	Conns   int
}

func startPublishers(b *testing.B, order publishersOrder) (run func(requests int) (p50, p99 time.Duration)) {
	b.Helper()
	text, _ := json.Marshal(order)
	cmd := testenv.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=publishers", publishersEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	lines := bufio.NewReader(stdout)
	return func(requests int) (p50, p99 time.Duration) {
		_, _ = fmt.Fprintln(stdin, requests)
		var a, c int64
		if _, err := fmt.Fscanln(lines, &a, &c); err != nil {
			b.Fatal(err)
		}
		return time.Duration(a), time.Duration(c)
	}
}

func runPublishers() {
	var order publishersOrder
	if err := json.Unmarshal([]byte(os.Getenv(publishersEnv)), &order); err != nil {
		panic(err)
	}
	conns := make([]net.Conn, order.Conns)
	for i := range conns {
		var err error
		if conns[i], err = net.Dial("tcp", order.Address); err != nil {
			panic(err)
		}
	}
	for requests := 0; ; {
		if _, err := fmt.Fscanln(os.Stdin, &requests); err != nil {
			return
		}
		took := make([][]time.Duration, len(conns))
		var all sync.WaitGroup
		for i, conn := range conns {
			n := requests / len(conns)
			if i < requests%len(conns) {
				n++
			}
			all.Go(func() { took[i] = publishAll(conn, []byte(order.Request), n) })
		}
		all.Wait()
		sorted := slices.Concat(took...)
		slices.Sort(sorted)
		fmt.Println(int64(sorted[len(sorted)/2]), int64(sorted[len(sorted)*99/100]))
	}
}

func publishAll(conn net.Conn, request []byte, n int) (took []time.Duration) {
	answer := make([]byte, 4096)
	for range n {
		begin := time.Now()
		if _, err := conn.Write(request); err != nil {
			panic(err)
		}
		got := 0
		for got < 4 || answer[got-1] != '\n' || answer[got-2] != '}' { // the end of the body
			m, err := conn.Read(answer[got:])
			if err != nil {
				panic(err)
			}
			got += m
		}
		if !strings.HasPrefix(string(answer[:got]), "HTTP/1.1 200 ") {
			panic(string(answer[:got]))
		}
		took = append(took, time.Since(begin))
	}
	return took
}

// BenchmarkPublishHTTP publishes over keep-alive connections to a topic with 100 subscribers, and compares
// that with a handler that only reads the body, on the same net/http. Times are processor time of the
// server, since the clients share the processors.
func BenchmarkPublishHTTP(b *testing.B) {
	reactor.CheckOwner = false
	for _, conns := range []int{1, 16, 64} {
		const subscribers, size = 100, 128
		b.Run(fmt.Sprintf("conns=%d/subscribers=%d/size=%d", conns, subscribers, size), func(b *testing.B) {
			opts := quiet(2)
			opts.Endpoints = []Endpoint{topicsEndpoint()}
			opts.Internal.Listen = "127.0.0.1:0"
			s := start(b, opts)
			startSwarm(b, s, swarmOrder{Path: "/ws?topic=prices", Conns: subscribers, Discard: true})
			eventually(b, "they are subscribed", func() bool { return len(s.Subscribers("prices")) == subscribers })

			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			plain := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, `{"offset":100000,"epoch":"abcdefgh","subscribers":100}`+"\n")
			})}
			go func() { _ = plain.Serve(l) }()
			defer plain.Close()

			request := fmt.Sprintf("POST /v1/topics/prices/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
				size, strings.Repeat("x", size))
			ours := startPublishers(b, publishersOrder{s.InternalAddr().String(), request, conns})
			theirs := startPublishers(b, publishersOrder{l.Addr().String(), request, conns})
			ours(conns)
			theirs(conns)

			delivered := func(publishes int) func() bool {
				return func() bool { return s.Stats().Deliveries == uint64(publishes*subscribers) }
			}
			eventually(b, "the first are delivered", delivered(conns))
			writes := s.Stats().Writes
			b.ReportAllocs()
			b.ResetTimer()
			cpu, begin := cpuTime(), time.Now()
			p50, p99 := ours(b.N)
			eventually(b, "all are delivered", delivered(conns+b.N))
			cpu, took := cpuTime()-cpu, time.Since(begin)
			b.StopTimer()
			writes = s.Stats().Writes - writes
			plainCPU, begin := cpuTime(), time.Now()
			theirs(b.N)
			plainCPU, plainTook := cpuTime()-plainCPU, time.Since(begin)

			n := float64(b.N)
			b.ReportMetric(n/took.Seconds(), "publishes/s")
			b.ReportMetric(n/plainTook.Seconds(), "plain/s")
			b.ReportMetric(float64(cpu.Microseconds())/n, "cpu-us/publish")
			b.ReportMetric(float64(plainCPU.Microseconds())/n, "plain-cpu-us")
			b.ReportMetric(float64(writes)/n, "writes/publish")
			b.ReportMetric(float64(p50.Microseconds()), "p50-us")
			b.ReportMetric(float64(p99.Microseconds()), "p99-us")
		})
	}
}

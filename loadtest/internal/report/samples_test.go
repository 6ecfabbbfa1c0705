package report

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// sampleLatency is a made-up distribution with a long tail around a median in microseconds.
func sampleLatency(t testing.TB, median float64) *Latency {
	t.Helper()
	h := hdrhistogram.New(1, 60_000_000, 3)
	for i := range 20000 {
		p := (float64(i) + 0.5) / 20000
		if err := h.RecordValue(int64(median * math.Pow(0.5/(1-p), 0.5))); err != nil {
			t.Fatal(err)
		}
	}
	text, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		t.Fatal(err)
	}
	at := func(p float64) float64 { return float64(h.ValueAtPercentile(p)) }
	return &Latency{Count: h.TotalCount(), Mean: h.Mean(), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9),
		Max: float64(h.Max()), Histogram: string(text)}
}

// sampleResult is a made-up run of a server whose costs grow with slow.
func sampleResult(t testing.TB, command, name string, slow float64) *Result {
	t.Helper()
	r := &Result{
		Schema: Schema, Command: command, Name: name, URL: "ws://127.0.0.1:8080/" + command,
		Started: time.Date(2031, 5, 4, 12, 0, 0, 0, time.UTC), Seconds: 10,
		Settings: Settings{Connections: 1000, Size: 128, Rate: 50000, Duration: 10, Processes: 2},
		Machine:  Machine{OS: "Exemplix 9, Linux 7.1", CPU: "Example CPU", Cores: 16, Memory: 64 << 30, Go: "go1.26", OpenFiles: 1 << 20},
		Connections: Connections{Wanted: 1000, Opened: 1000, Seconds: 0.1 * slow, PerSecond: 10000 / slow,
			Handshake: sampleLatency(t, 400*slow)},
		Server: &Server{PID: 77, CPUSeconds: 9 * slow, Cores: 0.9 * slow, CPUPerMessage: 3.5 * slow, CPUPerConn: 80 * slow,
			RSSBefore: 12 << 20, RSS: 40 << 20, Threads: 12, RSSPerConn: 9000 * slow, KernelPerConn: 5200},
		Generator: Generator{Processes: 2, CPUSeconds: 8, Cores: 0.8, CPUPerMessage: 2, MaxLate: 700},
	}
	if command == "storm" {
		r.Storm = &Storm{CutBy: "tool", Back50: 0.4 * slow, Back95: 1.1 * slow, Back100: 1.6 * slow, Attempts: 1200,
			Failed: map[string]int{"refused": 180, "timeout": 20}, PeakCPU: 3.2 * slow, PeakMemory: 90 << 20}
		for i := range 60 {
			at := float64(i) / 10
			back := 1000 * (1 - math.Exp(-max(at-1, 0)*2/slow))
			if at < 1 {
				back = 1000
			}
			r.Series = append(r.Series, Point{At: at, Connections: int(back), ServerCores: 0.2 + 3*math.Exp(-math.Abs(at-1.3)/slow),
				ServerRSS: int64(40<<20 + back*9000*slow)})
		}
		return r
	}
	if command == "idle" {
		return r
	}
	r.Messages = &Messages{Sent: 500_000, Received: 500_000, Expected: 500_000, SentPerSecond: 50000,
		ReceivedPerSec: 50000 / slow, ReceivedBytes: 500_000 * 130}
	r.Latency = sampleLatency(t, 250*slow)
	if command == "fanout" {
		r.Settings.Publishers = 4
		r.Completion = sampleLatency(t, 900*slow)
	}
	for i := range 20 {
		r.Series = append(r.Series, Point{At: float64(i) / 2, Connections: 1000, Received: 50000, P99: 900 * slow * (1 + 0.1*math.Sin(float64(i)))})
	}
	return r
}

// sampleDocument is three rounds of fan-out and storm of three servers, one of them doubtful.
func sampleDocument(t testing.TB) *Document {
	t.Helper()
	doc := &Document{Rounds: 3}
	for round := range 3 {
		for i, name := range []string{"carillon", "goroutines", "broker with a rather long name <b>&\"'"} {
			slow := 1 + 0.7*float64(i) + 0.08*float64(round)*(1+float64(i))
			for _, command := range []string{"fanout", "storm"} {
				r := sampleResult(t, command, name, slow)
				r.Started = r.Started.Add(time.Duration(round) * time.Minute)
				if i == 2 && round == 1 {
					r.Generator.Bottleneck = true
					r.Warnings = []string{fmt.Sprintf("the generator used %d of 16 cores", 15), "<script>alert(1)</script>"}
				}
				doc.Results = append(doc.Results, r)
			}
		}
	}
	return doc
}

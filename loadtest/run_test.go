package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/report"
	"carillon/loadtest/internal/wsclient"
)

// TestMain lets the test program run as a worker, as the real program can.
func TestMain(m *testing.M) {
	generator.DrainQuiet = 5 * time.Second // other tests may delay a server
	if len(os.Args) > 1 && os.Args[1] == generator.WorkerCommand {
		os.Exit(execute(os.Args[1:]))
	}
	status := m.Run()
	if buildDir != "" {
		_ = os.RemoveAll(buildDir)
	}
	os.Exit(status)
}

// small returns the options of a short run.
func small(command, url string, change func(o *options)) *options {
	o := defaultsFor(command)
	o.URLs, o.Connections, o.Duration, o.Backoff = []string{url}, 6, 400*time.Millisecond, 100*time.Millisecond
	switch command {
	case "echo":
		o.Rate = 1500
	case "fanout":
		o.Rate, o.Publishers = 1000, 2
	case "storm":
		o.Duration = 30 * time.Second // it ends when all have reconnected
	}
	if change != nil {
		change(&o)
	}
	return &o
}

// whole fails the test unless the run completed and has messages.
func whole(t *testing.T, r *report.Result) *report.Messages {
	t.Helper()
	if r.Error != "" || r.Messages == nil {
		t.Fatalf("the run ended early: %s", r.Error)
	}
	return r.Messages
}

// undue returns the warnings of a run except those that a busy machine causes: the generator was late or
// could not send everything, or a loop of the server got no CPU time.
func undue(r *report.Result) []string {
	return slices.DeleteFunc(slices.Clone(r.Warnings), func(w string) bool {
		return strings.HasPrefix(w, "the generator missed its schedule: ") || strings.HasPrefix(w, "the generator was the bottleneck: ") ||
			strings.HasPrefix(w, "server and generator kept all ") || strings.Contains(w, "event loop is blocked") ||
			r.Generator.Bottleneck && r.Connections.Lost == 0 && strings.Contains(w, "messages were due but not sent: ")
	})
}

// The server counts what it receives and delivers, and the result must agree.
func TestFanoutAgreesWithTheServer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server *faulty
		change func(o *options)
	}{
		{"on schedule", &faulty{}, nil},
		{"text", &faulty{}, func(o *options) { o.Text = true }},
		{"several processes", &faulty{}, func(o *options) { o.Processes, o.Publishers = 3, 4 }},
		{"more processes than publishers", &faulty{}, func(o *options) { o.Processes, o.Publishers = 3, 1 }},
		{"a message larger than any buffer", &faulty{}, func(o *options) { o.Size, o.Rate = 600_000, 20 }},
		{"as fast as possible", &faulty{}, func(o *options) { o.Rate, o.Depth = 0, 8 }},
		{"as fast as possible, two processes", &faulty{}, func(o *options) { o.Rate, o.Depth, o.Processes = 0, 8, 2 }},
		{"the sender excluded", &faulty{others: true}, nil},
		{"the sender excluded, as fast as possible", &faulty{others: true}, func(o *options) { o.Rate = 0 }},
		{"in fragments", &faulty{frame: fragmented}, nil},
		{"several sources", &faulty{}, func(o *options) { o.Sources = "127.0.0.1-127.0.0.4" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := tt.server
			server.broadcast = true
			server.serve(t)
			r := measure(t.Context(), small("fanout", server.url, tt.change), nil)
			m := whole(t, r)
			server.mu.Lock()
			defer server.mu.Unlock()
			if m.Sent == 0 || m.Sent != int64(server.messages) {
				t.Errorf("%d sent, and the server has received %d", m.Sent, server.messages)
			}
			if m.Received != int64(server.delivered) || m.Expected != m.Received {
				t.Errorf("%d received of %d expected, and the server has delivered %d", m.Received, m.Expected, server.delivered)
			}
			if m.Missing+m.Duplicated+m.Reordered+m.Foreign != 0 {
				t.Errorf("faults without a fault: %+v", m)
			}
			if r.Latency.Count != m.Received || r.Completion == nil || r.Completion.Count != m.Sent {
				t.Errorf("%d latencies for %d messages, completion %+v for %d", r.Latency.Count, m.Received, r.Completion, m.Sent)
			}
			if r.Completion.P50 < r.Latency.P50 || r.Completion.Max > r.Latency.Max {
				t.Errorf("a median message is complete after %g us, the median delivery takes %g; at most %g and %g",
					r.Completion.P50, r.Latency.P50, r.Completion.Max, r.Latency.Max)
			}
			if rate := r.Settings.Rate; rate > 0 && m.Sent+m.Unsent != int64(rate*r.Settings.Duration) {
				t.Errorf("%d sent and %d unsent at %g a second for %g s", m.Sent, m.Unsent, rate, r.Settings.Duration)
			}
		})
	}
}

// Every fault of a server shows in the right metric.
func TestFaultsShow(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault func(r *receiver, m []byte) [][]byte
		check func(m *report.Messages, faults int64) bool
	}{
		{"drops every 100th", func(*receiver, []byte) [][]byte { return nil },
			func(m *report.Messages, n int64) bool {
				return m.Missing == n && m.Duplicated+m.Reordered+m.Foreign == 0
			}},
		{"sends every 100th twice", func(_ *receiver, b []byte) [][]byte { return [][]byte{b, b} },
			func(m *report.Messages, n int64) bool {
				return m.Duplicated == n && m.Missing+m.Reordered+m.Foreign == 0
			}},
		{"damages every 100th", func(_ *receiver, b []byte) [][]byte { b = bytes.Clone(b); b[40] ^= 1; return [][]byte{b} },
			func(m *report.Messages, n int64) bool {
				return m.Foreign == n && m.Missing == n && m.Duplicated+m.Reordered == 0
			}},
		{"adds a foreign one to every 100th", func(_ *receiver, b []byte) [][]byte { return [][]byte{b, []byte("news")} },
			func(m *report.Messages, n int64) bool {
				return m.Foreign == n && m.Missing+m.Duplicated+m.Reordered == 0
			}},
	} {
		for _, command := range []string{"echo", "fanout"} {
			t.Run(tt.name+", "+command, func(t *testing.T) {
				t.Parallel()
				server := &faulty{broadcast: command == "fanout"}
				server.deliver = server.every(100, tt.fault)
				server.serve(t)
				// One sender, so that in echo too each receiver gets a hundred.
				m := whole(t, measure(t.Context(), small(command, server.url, func(o *options) {
					o.Publishers, o.Duration = min(o.Publishers, 1), 2*time.Second
					if command == "echo" {
						o.Connections = 1
					}
				}), nil))
				server.mu.Lock()
				defer server.mu.Unlock()
				if server.faults == 0 || !tt.check(m, int64(server.faults)) {
					t.Errorf("%d faults, and the result is %+v", server.faults, m)
				}
			})
		}
	}
}

func TestReorderingShows(t *testing.T) {
	t.Parallel()
	server := &faulty{broadcast: true}
	held := 0 // messages not overtaken yet; the last one never is
	server.deliver = func(r *receiver, m []byte) [][]byte {
		switch first := r.held; {
		case r.count%50 == 10:
			r.held = m
			held++
			return nil
		case first != nil:
			r.held = nil
			held--
			server.faults++
			return [][]byte{m, first}
		}
		return [][]byte{m}
	}
	server.serve(t)
	m := whole(t, measure(t.Context(), small("fanout", server.url, func(o *options) { o.Publishers, o.Duration = 1, time.Second }), nil))
	server.mu.Lock()
	defer server.mu.Unlock()
	if m.Reordered != int64(server.faults) || server.faults == 0 || m.Missing != int64(held) || m.Duplicated+m.Foreign != 0 {
		t.Errorf("%d swapped and %d held back, and the result is %+v", server.faults, held, m)
	}
}

// A server that stalls delays all messages that are due meanwhile, not just one.
func TestStallIsNotOmitted(t *testing.T) {
	t.Parallel()
	server := &faulty{}
	server.deliver = server.every(100, func(_ *receiver, m []byte) [][]byte {
		time.Sleep(200 * time.Millisecond)
		return [][]byte{m}
	})
	server.serve(t)
	r := measure(t.Context(), small("echo", server.url, func(o *options) { o.Connections, o.Rate, o.Duration = 1, 500, 2*time.Second }), nil)
	m := whole(t, r)
	// The 100th message holds the server up for 200 ms, in which 100 more are due, which wait 100 ms on
	// average; the last of them holds it up again, and so on.
	if m.Missing != 0 || r.Latency.Max < 200_000 || r.Latency.P90 < 100_000 || r.Latency.Mean < 20_000 {
		t.Errorf("%+v\n%+v", m, r.Latency)
	}
}

func TestRunsThatCannotBegin(t *testing.T) {
	good := "Upgrade: websocket\r\nConnection: Upgrade\r\n"
	for _, tt := range []struct {
		name   string
		server *faulty
		url    string
		want   string
	}{
		{name: "403", server: &faulty{answer: "HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\nwho are you?"}, want: "HTTP 403 Forbidden: who are you?"},
		{name: "404", server: &faulty{answer: "HTTP/1.1 404 Not Found\r\n\r\n"}, want: "HTTP 404 Not Found"},
		{name: "a web page", server: &faulty{answer: "HTTP/1.1 200 OK\r\n\r\n<html>"}, want: "no WebSocket endpoint at this path"},
		{name: "wrong accept key", server: &faulty{accept: "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, want: "wrong Sec-WebSocket-Accept"},
		{name: "not HTTP", server: &faulty{answer: "220 mail.example.com ESMTP\r\n"}, want: "does not speak HTTP"},
		{name: "half a head", server: &faulty{answer: "HTTP/1.1 101 Switching Protocols\r\n" + good}, want: "closed the connection"},
		{name: "nothing listens", url: "ws://127.0.0.1:1/", want: "nothing listens at 127.0.0.1:1"},
		{name: "wss", url: "wss://127.0.0.1:1/", want: "wss is not supported"},
		{name: "no URL", url: "localhost", want: "is not a WebSocket URL"},
		{name: "no host", url: "ws:///echo", want: "is not a WebSocket URL"},
		{name: "no such host", url: "ws://no.such.host.invalid/", want: "resolve no.such.host.invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := tt.url
			if url == "" {
				url = tt.server.serve(t).url
			}
			r := measure(t.Context(), small("echo", url, nil), nil)
			if !strings.Contains(r.Error, tt.want) || strings.Contains(r.Error, "\n") || r.Connections.Opened != 0 {
				t.Errorf("error %q, want %q", r.Error, tt.want)
			}
		})
	}
}

func TestMaskedFramesEndTheConnection(t *testing.T) {
	t.Parallel()
	server := (&faulty{broadcast: true, frame: masked}).serve(t)
	r := measure(t.Context(), small("fanout", server.url, nil), nil)
	if r.Connections.Lost != 6 || r.Connections.LostBy[wsclient.ErrMasked.Error()] != 6 || !strings.Contains(r.Error, wsclient.ErrMasked.Error()) {
		t.Errorf("error %q, connections %+v", r.Error, r.Connections)
	}
}

func TestServerThatDies(t *testing.T) {
	t.Parallel()
	server := (&faulty{broadcast: true, after: 200 * time.Millisecond}).serve(t)
	r := measure(t.Context(), small("fanout", server.url, func(o *options) { o.Duration = 20 * time.Second }), nil)
	if !strings.HasPrefix(r.Error, "all connections were lost after ") || r.Connections.Lost != 6 {
		t.Errorf("error %q, connections %+v", r.Error, r.Connections)
	}
	if m := r.Messages; m == nil || m.Received == 0 || r.Latency == nil || r.Seconds > 10 {
		t.Errorf("earlier measurements are gone: %+v in %g s", m, r.Seconds)
	}
}

// One receiver is closed during the run. The others go on, and its messages are missing.
func TestServerThatClosesOneConnection(t *testing.T) {
	t.Parallel()
	server := &faulty{broadcast: true}
	var one *receiver // the last one, since the first publishes
	server.deliver = func(r *receiver, m []byte) [][]byte {
		if one == nil {
			one = server.receivers[len(server.receivers)-1]
		}
		if r == one && r.count == 50 {
			r.conn.Write(serverFrame(0x88, append([]byte{1008 >> 8, 1008 & 0xff}, "too slow"...)))
			return nil
		}
		return [][]byte{m}
	}
	server.serve(t)
	r := measure(t.Context(), small("fanout", server.url, func(o *options) { o.Publishers, o.Duration = 1, 2*time.Second }), nil)
	m := whole(t, r)
	if r.Connections.LostBy["closed by the server with code 1008: too slow"] != 1 || m.Missing != m.Sent-50 {
		t.Errorf("%+v, %+v", r.Connections, m)
	}
	if r.Completion == nil || r.Completion.Count != 50 {
		t.Errorf("50 messages reached all clients, and these are complete: %+v", r.Completion)
	}
}

func TestGreetingInTheSamePacketAsTheHandshake(t *testing.T) {
	t.Parallel()
	server := (&faulty{first: serverFrame(0x81, []byte("welcome"))}).serve(t)
	m := whole(t, measure(t.Context(), small("echo", server.url, nil), nil))
	if m.Foreign != 6 || m.Missing != 0 {
		t.Errorf("%+v", m)
	}
}

// A schedule that cannot be kept causes a warning and is not blamed on the server.
func TestGeneratorThatIsTheBottleneckSaysSo(t *testing.T) {
	t.Parallel()
	server := (&faulty{}).serve(t)
	r := measure(t.Context(), small("echo", server.url, func(o *options) { o.Rate = maxRate }), nil)
	m := whole(t, r)
	if !r.Generator.Bottleneck || r.Generator.MaxLate < 10_000 || m.Unsent == 0 || m.Sent+m.Unsent != int64(maxRate*r.Settings.Duration) {
		t.Errorf("%+v, %+v", r.Generator, m)
	}
	if len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "generator") || len(undue(r)) != 0 {
		t.Errorf("%q", r.Warnings)
	}
}

func TestFanoutAgainstAnEchoSaysSo(t *testing.T) {
	t.Parallel()
	server := (&faulty{}).serve(t)
	r := measure(t.Context(), small("fanout", server.url, nil), nil)
	if m := whole(t, r); m.Missing != 5*m.Sent || !strings.Contains(strings.Join(r.Warnings, "\n"), "seems to echo instead of broadcasting") {
		t.Errorf("%+v, %q", m, r.Warnings)
	}
}

func TestServerThatIsSilent(t *testing.T) {
	t.Parallel()
	server := (&faulty{deliver: func(*receiver, []byte) [][]byte { return nil }}).serve(t)
	r := measure(t.Context(), small("echo", server.url, nil), nil)
	if !strings.Contains(r.Error, "none came back") || r.Messages == nil || r.Messages.Missing != r.Messages.Sent {
		t.Errorf("error %q, %+v", r.Error, r.Messages)
	}
}

func TestInterruptedRunKeepsItsResults(t *testing.T) {
	t.Parallel()
	server := (&faulty{}).serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := measure(ctx, small("echo", server.url, func(o *options) { o.Duration = time.Hour }), func(l progress) {
		if l.received > 0 {
			cancel()
		}
	})
	if !strings.HasPrefix(r.Error, "interrupted after ") || r.Messages == nil || r.Messages.Received == 0 || r.Messages.Missing != 0 || r.Seconds > 60 {
		t.Errorf("error %q, %g s, %+v", r.Error, r.Seconds, r.Messages)
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	server := (&faulty{first: serverFrame(0x89, []byte("ping"))}).serve(t)
	var last progress
	r := measure(t.Context(), small("idle", server.url, func(o *options) { o.Connections, o.Ramp = 50, 300*time.Millisecond }), func(l progress) { last = l })
	if r.Error != "" || r.Connections.Opened != 50 || r.Connections.Handshake.Count != 50 || r.Messages != nil {
		t.Errorf("%q, %+v", r.Error, r.Connections)
	}
	if s := r.Connections.Seconds; s < 0.25 || s > 20 {
		t.Errorf("a ramp of 0.3 s took %g", s)
	}
	if last.open+last.wanted == 0 {
		t.Error("nothing was shown")
	}
}

func TestStormCutByTheTool(t *testing.T) {
	t.Parallel()
	server := (&faulty{}).serve(t)
	r := measure(t.Context(), small("storm", server.url, func(o *options) { o.Connections = 40 }), nil)
	s := r.Storm
	if r.Error != "" || s == nil || s.Attempts != 40 || s.Back100 == 0 || s.Back50 > s.Back95 || s.Back95 > s.Back100 || s.Back100 > 15 {
		t.Errorf("%q, %+v", r.Error, s)
	}
	if s.Handshake == nil || s.Handshake.Count != 40 || r.Connections.Lost != 0 {
		t.Errorf("%+v, %+v", s.Handshake, r.Connections)
	}
}

func TestStormCutByTheServer(t *testing.T) {
	t.Parallel()
	server := (&faulty{}).serve(t)
	var cut sync.Once
	r := measure(t.Context(), small("storm", server.url, func(o *options) { o.Connections, o.CutBy = 40, "server" }), func(l progress) {
		if strings.HasPrefix(l.phase, "waiting for the server") {
			cut.Do(server.end)
		}
	})
	if s := r.Storm; r.Error != "" || s == nil || s.Back100 == 0 || s.Back100 > 15 {
		t.Errorf("%q, %+v", r.Error, s)
	}
}

// urls returns the URLs of servers.
func urls(servers ...*faulty) []string {
	var list []string
	for _, s := range servers {
		list = append(list, s.url)
	}
	return list
}

func TestConnectionsAreSpreadOverServers(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"idle", "echo", "storm"} {
		one, two := (&faulty{}).serve(t), (&faulty{}).serve(t)
		r := measure(t.Context(), small(command, "", func(o *options) {
			o.URLs, o.Connections, o.Processes = urls(one, two), 40, 2
		}), nil)
		if r.Error != "" || r.Connections.Opened != 40 || r.Connections.Lost != 0 || len(undue(r)) != 0 {
			t.Errorf("%s: %q, %+v, %q", command, r.Error, r.Connections, r.Warnings)
		}
		if r.URL != one.url+" "+two.url || !strings.HasSuffix(r.Name, " and 1 more") {
			t.Errorf("%s: the name is %q, and the URL %q", command, r.Name, r.URL)
		}
		want := 1 + 20 // including the probe
		if command == "storm" {
			want = 1 + 20 + 20
		}
		for _, s := range []*faulty{one, two} {
			s.mu.Lock()
			if s.opened != want || s.host != strings.TrimSuffix(strings.TrimPrefix(s.url, "ws://"), "/") {
				t.Errorf("%s: %s had %d connections to %q, want %d", command, s.url, s.opened, s.host, want)
			}
			s.mu.Unlock()
		}
		if s := r.Server; s != nil && (s.PID != os.Getpid() || s.Processes != 1) {
			t.Errorf("%s: both servers are in this process, and this was measured: %+v", command, s)
		}
	}
}

func TestServersThatAreNoClusterLackMessages(t *testing.T) {
	t.Parallel()
	one, two := (&faulty{broadcast: true}).serve(t), (&faulty{broadcast: true}).serve(t)
	r := measure(t.Context(), small("fanout", "", func(o *options) { o.URLs = urls(one, two) }), nil)
	m := whole(t, r)
	if m.Expected != 6*m.Sent || m.Received != 3*m.Sent || m.Missing != 3*m.Sent {
		t.Errorf("%+v", m)
	}
	if !strings.Contains(strings.Join(r.Warnings, "\n"), "about one receiver in 2: do the servers at these URLs form a cluster?") {
		t.Errorf("%q", r.Warnings)
	}
}

func TestClusterDeliversEverything(t *testing.T) {
	t.Parallel()
	one, two := &faulty{broadcast: true}, &faulty{broadcast: true}
	one.peer, two.peer = two, one
	one.serve(t)
	two.serve(t)
	r := measure(t.Context(), small("fanout", "", func(o *options) { o.URLs, o.Processes = urls(one, two), 2 }), nil)
	m := whole(t, r)
	if m.Received == 0 || m.Received != 6*m.Sent || m.Missing+m.Duplicated+m.Foreign != 0 || len(undue(r)) != 0 {
		t.Errorf("%+v, %q", m, r.Warnings)
	}
	for _, s := range []*faulty{one, two} {
		s.mu.Lock()
		if got := s.delivered; got != int(m.Received)/2 {
			t.Errorf("%s delivered %d of %d messages, want a half", s.url, got, m.Received)
		}
		s.mu.Unlock()
	}
}

func TestOneOfSeveralServersRefuses(t *testing.T) {
	t.Parallel()
	one, two := (&faulty{}).serve(t), (&faulty{answer: "HTTP/1.1 403 Forbidden\r\n\r\n"}).serve(t)
	r := measure(t.Context(), small("echo", "", func(o *options) { o.URLs = urls(one, two) }), nil)
	if want := two.url + ": HTTP 403 Forbidden"; r.Error != want || r.Connections.Opened != 0 {
		t.Errorf("error %q, want %q", r.Error, want)
	}
	// One that refuses after the run has started.
	three := (&faulty{max: 1}).serve(t)
	r = measure(t.Context(), small("idle", "", func(o *options) { o.URLs = urls(one, three) }), nil)
	if r.Error != "" || r.Connections.Opened != 3 || r.Connections.Failed[three.url+": HTTP 503 Full"] != 3 {
		t.Errorf("error %q, %+v", r.Error, r.Connections)
	}
}

// The run goes on with the other servers, and a warning names the one that died.
func TestOneOfSeveralServersDies(t *testing.T) {
	t.Parallel()
	one, two, three := (&faulty{}).serve(t), (&faulty{after: 100 * time.Millisecond}).serve(t), (&faulty{}).serve(t)
	r := measure(t.Context(), small("echo", "", func(o *options) { o.URLs, o.Duration = urls(one, two, three), 3*time.Second }), nil)
	m := whole(t, r)
	if r.Connections.Lost != 2 || m.Received == 0 || m.Unsent == 0 {
		t.Errorf("%+v, %+v", r.Connections, m)
	}
	said := strings.Join(r.Warnings, "\n")
	if !strings.Contains(said, "all 2 connections to "+two.url+" were lost") || strings.Contains(said, one.url) || strings.Contains(said, three.url) {
		t.Errorf("%q", r.Warnings)
	}
	for reason := range r.Connections.LostBy {
		if !strings.HasPrefix(reason, two.url+": ") {
			t.Errorf("lost by %q", reason)
		}
	}
}

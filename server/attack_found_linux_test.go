package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"carillon/server/internal/outbox"
)

// foundAttackRows are attacks in which each message is cheap for the attacker and meets many of what others hold:
// patterns, queues, places of decompression. In some the well-behaved clients are not those of /echo, see
// attackRow.beside.
func foundAttackRows() []attackRow {
	const deep = "a.a.a.a.a.a.a.a.a.a.a.a"
	return []attackRow{
		// Patterns.
		{name: "patterns-overlap,publish", setup: overlappingPatterns(100), run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"%s.n%d.%d","data":1}}`, deep, w.number, i))
		})},
		{name: "patterns-1000-of-one-topic", setup: membersOf(1000, func(i int) string { return "/ws?topic=" + overlapping(i) }), run: asking(true, `{"publish":{"topic":"`+deep+`","data":1}}`)},
		{name: "patterns-come-and-go,5000-topics", many: 1, fast: true, setup: topicsWithPatterns, run: func(w *assailant) {
			conn, err := w.open("/ws", speakJSON)
			if err != nil {
				return
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			for !w.over() {
				_, _ = conn.Write(append(text(`{"subscribe":{"topic":"z.>"}}`), text(`{"unsubscribe":{"topic":"z.>"}}`)...))
				w.sent(2, 0)
				w.sleep(50 * time.Millisecond)
			}
		}},
		{name: "crowd-leaves,5000-topics-with-patterns", many: 1, fast: true, setup: topicsWithPatterns, run: leave},
		{name: "crowd-leaves,128-topics-each", many: 1, fast: true, setup: opening(1000, func(i int) string { return manyTopicsPath(fmt.Sprintf("own.%d.", i)) }), run: leave},
		{name: "crowd-sends-1MiB", many: 16, fast: true, setup: opening(500, func(int) string { return "/echo" }), run: func(w *assailant) {
			message := masked(0x82, make([]byte, mib-1))
			for i := w.number; i < len(crowdConns) && !w.over(); i += 16 {
				_, _ = crowdConns[i].Write(message[:len(message)-10]) // so that nothing comes back
				w.sent(1, 0)
			}
			<-w.stop
		}},
		{name: "returns-with-1MiB", many: 100, fast: true, run: func() func(*assailant) {
			message := masked(0x82, make([]byte, mib-10))
			return func(w *assailant) {
				conn, err := w.open("/echo")
				if err != nil {
					return
				}
				defer conn.Close()
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				_, _ = conn.Write(message)
				w.sleep(20 * time.Millisecond)
				w.sent(1, 0)
			}
		}()},
		{name: "query-16-patterns,112-topics", dials: true, run: requestsOf(100, func(*assailant, int) string { return patternsHead() })},

		// Slow consumers.
		{name: "crowd-reads-at-once", many: 8, fast: true, setup: fillingQueues(500), run: func(w *assailant) {
			buf := make([]byte, 64<<10)
			for i := w.number; i < len(crowdConns) && !w.over(); i += 8 {
				_ = crowdConns[i].SetReadDeadline(time.Now().Add(200 * time.Microsecond))
				if n, _ := crowdConns[i].Read(buf); n > 0 {
					w.sent(1, 0)
				}
			}
		}},
		{name: "crowd-times-out", many: 1, fast: true, setup: fillingUntilRun(500), run: func(w *assailant) {
			close(crowdStops)
			w.sent(len(crowdConns), 0)
			<-w.stop
		}, change: func(o *Options) { o.Limits.WriteTimeout = 300 * time.Millisecond }},
		{name: "crowd-leaves,queued", many: 1, fast: true, setup: fillingQueues(1000), run: leave},
		{name: "crowd-closes-its-side,queued", many: 1, fast: true, setup: fillingQueues(1000), run: func(w *assailant) {
			for _, conn := range crowdConns {
				_ = conn.(*net.TCPConn).CloseWrite()
			}
			w.sent(len(crowdConns), 0)
			<-w.stop
		}},
		{name: "drop-oldest-2000,unread", setup: stalling("/oldest", 2000), run: same("/oldest", nil, true, masked(0x82, []byte("x")))},

		// What one request or message holds up.
		{name: "inflating-places", many: 60, fast: true, beside: goodInflated, run: func() func(*assailant) {
			blocks := same("/flate", deflating, true, masked(0xc1, tinyBlocks(mib)))
			pings := asking(true, `{"id":1,"ping":{}}`)
			return func(w *assailant) {
				if w.number%3 == 0 {
					pings(w)
				} else {
					blocks(w)
				}
			}
		}()},
		{name: "requests-33KB", many: 50, fast: true, beside: goodLarge, run: same("/ws", jsonOnly, true, membersJSON(33_000))},
		{name: "requests-1MiB", many: 4, fast: true, beside: goodLarge, run: same("/ws", jsonOnly, true, membersJSON(mib-100))},
		{name: "presence-long-subjects,id", setup: func(a *attacker) {
			members("/tokens?topic=crowd", 1000, withToken(a.LongToken))(a)
		}, run: asking(true, `{"id":1,"presence":{"topic":"crowd"}}`)},

		// Windows of all sizes.
		{name: "windows-1MiB-echo", fast: true, run: same("/flate", windowOf(9), true, masked(0x82, compressible(mib-8)))},
		{name: "windows-1MiB-topic", many: 8, fast: true, run: func(w *assailant) {
			same("/zws?topic=windows", windowOf(8+w.number%8), true, masked(0x81, compressible(mib-8)))(w)
		}},
		{name: "windows-1MiB-topic,id", many: 8, fast: true, run: func(w *assailant) {
			message := slices.Concat(compressible(800_000), []byte(`"}}`))
			message = text(fmt.Sprintf(`{"id":1,"publish":{"topic":"windows","data":"%s`, message))
			same("/zws?topic=windows", append(windowOf(8+w.number%8), speakJSON), true, append(message, text(`{"id":2,"ping":{}}`)...))(w)
		}},
		{name: "windows-1KB-topic-1000", setup: func(a *attacker) {
			for bits := 8; bits < 16; bits++ {
				members("/zws?topic=windows", 125, windowOf(bits)...)(a)
			}
		}, run: same("/zws?topic=windows", deflating, true, masked(0x81, compressible(960)))},

		// Small compressed messages that become 4.7 MB, in all forms that there are.
		{name: "all-forms", setup: func(a *attacker) {
			for bits := 9; bits < 16; bits++ {
				members("/zws?topic=forms", 1, windowOf(bits)...)(a)
				members("/zws?topic=forms", 1, append(windowOf(bits), speakJSON)...)(a)
			}
			for _, query := range []string{"", "&envelope=true"} {
				listening("GET /zws?topic=forms" + query + " HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")(a)
			}
		}, run: same("/zws?topic=forms", deflating, false, masked(0xc1, zipped(bytes.Repeat([]byte{1}, 340_000))))},

		// The newest messages of many topics, for one that has not read them and then does, or ends.
		{name: "latest-128-topics,deflate", fast: true, run: latestAtOnce(false)},
		{name: "latest-128-topics,deflate,half-close", fast: true, run: latestAtOnce(true)},

		// Many topics of one connection.
		{name: "publish-128-topics", setup: members(manyTopicsPath("busy."), 100), run: frames("/ws", jsonOnly, true, func(_ *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"busy.%d","data":1}}`, i%128))
		})},
		{name: "sse-128-topics", dials: true, run: requestsOf(300, func(w *assailant, i int) string {
			path := manyTopicsPath(fmt.Sprintf("%d.%d.", w.number, i))
			return "GET " + path + " HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
		})},
	}
}

// latestAtOnce publishes the newest messages of many topics to itself while it does not read, each of 400 KB. Then it
// ends its side, or reads all of them.
func latestAtOnce(ends bool) func(*assailant) {
	letters := noise(mib * 9 / 10)
	for i := range letters {
		letters[i] = 'a' + letters[i]%26
	}
	return func(w *assailant) {
		path := strings.Replace(manyTopicsPath("latest."), "/ws", "/zws", 1)
		var all []byte
		for range 8 {
			all = append(all, text(fmt.Sprintf(`{"publish":{"topic":"latest.0","data":"%s"}}`, letters))...)
		}
		for i := range 128 {
			all = append(all, text(fmt.Sprintf(`{"publish":{"topic":"latest.%d","data":"%s"}}`, i, compressible(400_000)))...)
		}
		for !w.over() {
			conn, err := w.open(path, append(deflating, speakJSON)...)
			if err != nil {
				return
			}
			_ = conn.SetReadBuffer(64 << 10)
			_, _ = conn.Write(all)
			w.sent(1, len(all))
			if ends {
				_ = conn.CloseWrite()
			} else {
				_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			}
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}
}

// overlapping is one of 2^11 patterns that begin with the same levels as a topic does, each of them a wildcard or not.
func overlapping(i int) string {
	p := "a"
	for bit := range 11 {
		p += []string{".a", ".*"}[i>>bit&1]
	}
	return p
}

// overlappingPatterns subscribes conns connections to as many patterns as they may have.
func overlappingPatterns(conns int) func(*attacker) {
	return func(a *attacker) {
		n := conns
		if a.Short {
			n /= 10
		}
		crowdConns = append(crowdConns, subscribing(a, n, func(conn, n int) string {
			x := conn*defaultPatterns + n
			return fmt.Sprintf("%s.x%d", overlapping(x), x)
		})...)
		a.sleep(200 * time.Millisecond)
	}
}

// topicsWithPatterns makes topics that have a pattern, and then patterns that begin as they do. It waits until the
// server has noticed that those have come.
func topicsWithPatterns(a *attacker) {
	n, noticed := 5000, 8*time.Second
	if a.Short {
		n, noticed = 100, 0
	}
	members("/ws?topic=a.%3E", 10)(a)
	w := &assailant{attacker: a, number: 201}
	conn, err := w.open("/ws", speakJSON)
	if err != nil {
		panic(err)
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	for i := range n {
		_, _ = conn.Write(text(fmt.Sprintf(`{"publish":{"topic":"%s.n%d","data":1}}`, overlapping(0), i)))
	}
	overlappingPatterns(100)(a)
	a.sleep(noticed)
}

// patternsHead is a request for as many topics as there may be, of which 16 are patterns.
func patternsHead() string {
	var topics []string
	for i := range 128 {
		last := "a"
		if i < 16 {
			last = "*"
		}
		topics = append(topics, fmt.Sprintf("topic=%s%s.%03d", strings.Repeat("a.", 22), last, i))
	}
	return upgradeHead("/ws?" + strings.Join(topics, "&"))
}

// membersJSON is a request of so many bytes with as many unknown members as there is room for.
func membersJSON(size int) []byte {
	b := []byte(`{"id":1,"ping":{}`)
	for i := 0; len(b) < size; i++ {
		b = fmt.Appendf(b, `,"%x":1`, i)
	}
	return text(string(b) + "}")
}

// smallSocket makes the kernel buffer little for a connection, as over a real network: some 100 KB instead of 3 MB.
func smallSocket(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536)
	})
}

// fillingQueues opens connections that do not read, and fills their sockets and then their queues with many small
// messages: of the size up from which they are references and no copies. They take less than slow_consumer.max_queue.
func fillingQueues(n int) func(*attacker) {
	return func(a *attacker) {
		messages := 8000
		if a.Short {
			n, messages = n/10, messages/10
		}
		w := &assailant{attacker: a, number: 200, control: smallSocket}
		for range n {
			conn, err := w.open("/ws?topic=slow")
			if err != nil {
				panic(err)
			}
			crowdConns = append(crowdConns, conn)
		}
		fills := &assailant{attacker: a, number: 201}
		conn, err := fills.open("/ws?topic=slow")
		if err != nil {
			panic(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		const large, small = 16 << 10, outbox.ItemCost + 1
		go func() {
			for range 12 {
				_, _ = conn.Write(masked(0x82, make([]byte, large)))
			}
			for range messages / 100 {
				_, _ = conn.Write(repeat(masked(0x82, make([]byte, small)), 100))
			}
		}()
		// The publisher is a subscriber, too: when it has got them all, so have the queues.
		_, _ = io.CopyN(io.Discard, conn, int64(12*large+messages*small))
		_ = conn.Close()
	}
}

// crowdStops ends the little that the connections of fillingUntilRun read.
var crowdStops = make(chan struct{})

// fillingUntilRun is fillingQueues for connections that read a little now and then, so that their time-outs do not run.
// Those that are cut off all the same, before the attack, are counted as cuts.
func fillingUntilRun(n int) func(*attacker) {
	return func(a *attacker) {
		fillingQueues(n)(a)
		go func() {
			buf, list := make([]byte, 4096), slices.Clone(crowdConns)
			for ; ; time.Sleep(20 * time.Millisecond) {
				list = slices.DeleteFunc(list, func(conn net.Conn) bool {
					select {
					case <-crowdStops:
						return false
					default:
					}
					_ = conn.SetReadDeadline(time.Now().Add(100 * time.Microsecond))
					_, err := conn.Read(buf)
					gone := err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
					if gone {
						a.cuts.Add(1)
					}
					return gone
				})
			}
		}()
	}
}

// windowOf asks for compression within a window of so many bits.
func windowOf(bits int) []string {
	return []string{fmt.Sprintf("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=%d", bits)}
}

// compressible is a text of so many bytes that is dear to compress: matches are short and everywhere.
func compressible(size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = "ab"[r.IntN(2)]
	}
	return b
}

// goodInflated is an echo of a large text that is small on its way.
func goodInflated() goodRequest {
	var b strings.Builder
	for i := 0; b.Len() < 125_000; i++ {
		fmt.Fprintf(&b, "line %d of a text that compresses well\n", i)
	}
	return goodRequest{path: "/flate", headers: deflating, message: masked(0xc1, zipped([]byte(b.String())))}
}

// goodLarge is a publication of 40 KB, larger than what is parsed on the loop.
func goodLarge() goodRequest {
	return goodRequest{path: "/ws", headers: jsonOnly, message: text(`{"id":1,"publish":{"topic":"good.large","data":"` + strings.Repeat("x", 40_000) + `"}}`)}
}

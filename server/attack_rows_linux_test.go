package server

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// attackRow is one kind of attack of BenchmarkUnderAttack.
type attackRow struct {
	name  string
	seeds []attackSeed
	setup func(a *attacker)  // before the quiet phase
	run   func(w *assailant) // called again and again until the end, by as many goroutines as the variant has connections
	many  int                // connections at full speed instead of 1 and 4
	dials bool               // each time is a connection of its own: 1 and 50 at full speed
	fast  bool               // not at 1 KB/s: what is sent is too large, or the number of connections is the attack

	change func(*Options)     // of the server
	beside func() goodRequest // what one more well-behaved client sends
}

type attackVariant struct {
	name  string
	conns int
	slow  bool
}

func (r attackRow) variants() []attackVariant {
	all := []attackVariant{{"conns=1", 1, false}, {"conns=4", 4, false}}
	if r.dials {
		all[1] = attackVariant{"conns=50", 50, false}
	}
	if r.many > 0 {
		all = []attackVariant{{fmt.Sprintf("conns=%d", r.many), r.many, false}}
	}
	if !r.fast {
		all = append(all, attackVariant{"conns=50,KB/s=1", 50, true})
	}
	return all
}

// attacker is the attacking process.
type attacker struct {
	attackOrder
	row   attackRow
	stop  chan struct{}
	units atomic.Int64
	cuts  atomic.Int64 // connections that the server ended
}

// assailant is one of the attacker's connections, or a sequence of connections of which one is open at a time.
type assailant struct {
	*attacker
	number  int
	local   atomic.Uint32
	control func(network, address string, c syscall.RawConn) error // of its sockets, before they are connected
}

func attackRowOf(name string) attackRow {
	rows := attackRows()
	return rows[slices.IndexFunc(rows, func(r attackRow) bool { return r.name == name })]
}

func runAttacker() {
	setNice(niceAttacker)
	a := &attacker{attackOrder: orderOf(), stop: make(chan struct{})}
	a.row = attackRowOf(a.Attack)
	if a.row.setup != nil {
		a.row.setup(a)
	}
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(true)
	var all sync.WaitGroup
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "go":
			for i := range a.Conns {
				w := &assailant{attacker: a, number: i}
				all.Go(func() {
					for !w.over() {
						a.row.run(w)
					}
				})
			}
		case "stop":
			_ = out.Encode(map[string]int64{"Units": a.units.Load(), "Cuts": a.cuts.Load()})
			close(a.stop)
		}
	}
}

func (a *attacker) over() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

// sleep ends early with the attack.
func (a *attacker) sleep(d time.Duration) {
	select {
	case <-a.stop:
	case <-time.After(d):
	}
}

// sent counts n attacks of size bytes together. At 1 KB/s it waits for as long as the bytes take.
func (w *assailant) sent(n, size int) {
	w.units.Add(int64(n))
	if w.Slow {
		w.sleep(time.Duration(size) * time.Second / 1024)
	}
}

// connect dials from an address of its own, so that ports do not run out. It is closed without leaving a port behind.
func (w *assailant) connect(address string) (*net.TCPConn, error) {
	n := w.local.Add(1)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(w.number), byte(n/1000%250+1))}, Timeout: patience, Control: w.control}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		w.sleep(time.Millisecond)
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	_ = tcp.SetLinger(0)
	return tcp, nil
}

// open opens a WebSocket.
func (w *assailant) open(path string, headers ...string) (*net.TCPConn, error) {
	conn, err := w.connect(w.Address)
	if err != nil {
		return nil, err
	}
	if !enter(conn, path, headers...) {
		_ = conn.Close()
		w.cuts.Add(1)
		w.sleep(time.Millisecond)
		return nil, io.EOF
	}
	return conn, nil
}

// pour sends what next returns until the end. Small pieces leave together.
func (w *assailant) pour(conn net.Conn, next func(i int) []byte) {
	var batch []byte
	n := 0
	for i := 0; !w.over(); i++ {
		batch = append(batch, next(i)...)
		if n++; !w.Slow && len(batch) < 64<<10 {
			continue
		}
		if _, err := conn.Write(batch); err != nil {
			w.cuts.Add(1)
			w.sleep(time.Millisecond)
			return
		}
		w.sent(n, len(batch))
		batch, n = batch[:0], 0
	}
}

// frames is an attack by frames. When the server closes the connection it goes on with another one.
func frames(path string, headers []string, reads bool, next func(w *assailant, i int) []byte) func(*assailant) {
	return func(w *assailant) {
		conn, err := w.open(path, headers...)
		if err != nil {
			return
		}
		defer conn.Close()
		if reads {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		} else {
			_ = conn.SetReadBuffer(4096)
		}
		w.pour(conn, func(i int) []byte { return next(w, i) })
	}
}

// same is frames with the same bytes each time.
func same(path string, headers []string, reads bool, b []byte) func(*assailant) {
	return frames(path, headers, reads, func(*assailant, int) []byte { return b })
}

var (
	jsonOnly  = []string{speakJSON}
	deflating = []string{"Sec-WebSocket-Extensions: permessage-deflate"}
)

func asking(reads bool, requests ...string) func(*assailant) {
	var b []byte
	for _, r := range requests {
		b = append(b, text(r)...)
	}
	return same("/ws", jsonOnly, reads, b)
}

// members opens connections that only read.
func members(path string, n int, headers ...string) func(*attacker) {
	return membersOf(n, func(int) string { return path }, headers...)
}

func membersOf(n int, path func(i int) string, headers ...string) func(*attacker) {
	return func(a *attacker) {
		if a.Short {
			n /= 10
		}
		w := &assailant{attacker: a, number: 200}
		for i := range n {
			conn, err := w.open(path(i), headers...)
			if err != nil {
				panic(err)
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
	}
}

// requestsOf is an attack by one request for each connection, whose answer is read to its end, up to most bytes.
func requestsOf(most int64, head func(w *assailant, i int) string) func(*assailant) {
	return func(w *assailant) {
		for i := 0; !w.over(); i++ {
			conn, err := w.connect(w.Address)
			if err != nil {
				continue
			}
			b := head(w, i)
			_, _ = io.WriteString(conn, b)
			if most > 0 {
				_, _ = io.CopyN(io.Discard, conn, most)
			}
			_ = conn.Close()
			w.sent(1, len(b))
		}
	}
}

const mib = 1 << 20

// jsonOf fills a message of a MiB.
func jsonOf(begin, repeated, end string) []byte {
	n := (mib - len(begin) - len(end)) / len(repeated)
	return text(begin + strings.Repeat(repeated, n) + end)
}

func numberedJSON(begin, each, end string) []byte {
	var b bytes.Buffer
	b.WriteString(begin)
	for i := range 100_000 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, each, i)
	}
	b.WriteString(end)
	return masked(0x81, b.Bytes())
}

// zipped is DEFLATE, flushed, without the flush's last four bytes.
func zipped(payload []byte) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression)
	_, _ = w.Write(payload)
	_ = w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
}

// bitWriter writes DEFLATE (RFC 1951, section 3.1.1): the least significant bit of a byte comes first.
type bitWriter struct {
	b    []byte
	acc  uint64
	have uint
}

func (w *bitWriter) put(value uint64, bits uint) {
	w.acc |= value << w.have
	for w.have += bits; w.have >= 8; w.have -= 8 {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
}

// tinyBlocks is DEFLATE in dynamic blocks of 90 bits each with nothing in them but codes and the end of the block.
func tinyBlocks(size int) []byte {
	w := &bitWriter{}
	for len(w.b) < size-16 {
		w.put(0, 1)  // not the last
		w.put(2, 2)  // dynamic
		w.put(0, 5)  // 257 literals and lengths
		w.put(0, 5)  // 1 distance
		w.put(14, 4) // 18 lengths of codes of lengths, in the order of RFC 1951, section 3.2.7
		for i := range 18 {
			if i == 2 || i == 17 { // of the symbols 18 and 1
				w.put(1, 3)
			} else {
				w.put(0, 3)
			}
		}
		// The code: 1 is "0", and 18 is "1". 138 and 118 literals have no code, the end of the block has one of 1 bit.
		w.put(1, 1)
		w.put(138-11, 7)
		w.put(1, 1)
		w.put(118-11, 7)
		w.put(0, 1)
		w.put(0, 1) // the only distance, too
		w.put(0, 1) // the end of the block
	}
	w.put(0, 3) // the block that the receiver completes
	w.put(0, 7)
	return w.b
}

func utf8Of(invalid bool) []byte {
	s := strings.Repeat("€", mib/3-1)
	if invalid {
		s = s[:len(s)-1] + "x"
	}
	return text(s)
}

func attackRows() []attackRow {
	k1, k10 := attackSeed{"k1.a", 0, 1000, 960}, attackSeed{"k10.a", 0, 10_000, 100}
	subscribe := func(topic, more string) string {
		return `{"subscribe":{"topic":"` + topic + `"` + more + `}}`
	}
	unsubscribe := func(topic string) string { return `{"unsubscribe":{"topic":"` + topic + `"}}` }
	history := `{"history":{"topic":"k1.a","limit":1000}}`
	withID := func(r string) string { return `{"id":1,` + r[1:] }
	return append([]attackRow{
		// What one request costs.
		{name: "history", seeds: []attackSeed{k1}, run: asking(true, history)},
		{name: "history,id", seeds: []attackSeed{k1}, run: asking(true, withID(history))},
		{name: "history,id,unread", seeds: []attackSeed{k1}, run: asking(false, withID(history))},
		{name: "history,since", seeds: []attackSeed{k10}, run: frames("/ws", jsonOnly, true, func(w *assailant, _ int) []byte {
			return text(`{"id":1,"history":{"topic":"k10.a","since":{"offset":0,"epoch":"` + w.Epochs["k10.a"] + `"},"limit":1}}`)
		})},
		{name: "presence", setup: members("/ws?topic=crowd", 5000), run: asking(true, `{"presence":{"topic":"crowd"}}`)},
		{name: "presence,id", setup: members("/ws?topic=crowd", 5000), run: asking(true, `{"id":1,"presence":{"topic":"crowd"}}`)},
		{name: "subscribe-last", seeds: []attackSeed{k1}, run: asking(true, subscribe("k1.a", `,"last":1000`), unsubscribe("k1.a"))},
		{name: "subscribe-last,unread", seeds: []attackSeed{k1}, run: asking(false, subscribe("k1.a", `,"last":1000`), unsubscribe("k1.a"))},
		{name: "subscribe-since-10000", seeds: []attackSeed{k10}, run: frames("/ws", jsonOnly, true, func(w *assailant, _ int) []byte {
			return append(text(subscribe("k10.a", `,"since":{"offset":0,"epoch":"`+w.Epochs["k10.a"]+`"}`)), text(unsubscribe("k10.a"))...)
		})},
		{name: "subscribe-since-10000,deflate", seeds: []attackSeed{{"k10.a", 0, 1000, 1000}}, run: frames("/zws", append(deflating, speakJSON), true, func(w *assailant, _ int) []byte {
			return append(text(subscribe("k10.a", `,"since":{"offset":0,"epoch":"`+w.Epochs["k10.a"]+`"}`)), text(unsubscribe("k10.a"))...)
		})},
		{name: "subscribe,unsubscribe", run: asking(true, subscribe("a", ""), unsubscribe("a"))},
		{name: "unsubscribe", run: asking(true, unsubscribe("nothing"))},
		{name: "query-128-topics", seeds: []attackSeed{{"k10.", 128, 1000, 100}}, fast: false, run: func(w *assailant) {
			path := "/ws?last=10000"
			for i := range 128 {
				path += fmt.Sprintf("&topic=k10.%d", i)
			}
			if w.Slow {
				w.sleep(time.Duration(len(path)) * time.Second / 1024 * time.Duration(w.number) / 50)
			}
			requestsOf(10*mib, func(*assailant, int) string { return upgradeHead(path) })(w)
		}},
		{name: "query-128-topics,unread", seeds: []attackSeed{{"k10.", 128, 1000, 100}}, run: func(w *assailant) {
			path := "/ws?last=10000"
			for i := range 128 {
				path += fmt.Sprintf("&topic=k10.%d", i)
			}
			for !w.over() { // the connections stay open
				conn, err := w.connect(w.Address)
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, upgradeHead(path))
				_, _ = conn.Read(make([]byte, 1))
				w.sent(1, len(path)+200)
			}
		}},
		{name: "sse-resume", dials: true, seeds: []attackSeed{k10}, run: func(w *assailant) {
			requestsOf(300, func(w *assailant, _ int) string {
				return "GET /ws?topic=k10.a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nLast-Event-ID: " + w.Epochs["k10.a"] + ":0\r\n\r\n"
			})(w)
		}},

		// Topics, patterns, publishing.
		{name: "patterns", setup: manyPatterns, run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			p := fmt.Sprintf("x%d.>", w.number)
			b := append(text(subscribe(p, "")), text(unsubscribe(p))...)
			return append(b, text(`{"publish":{"topic":"good.other","data":1}}`)...)
		})},
		{name: "publish-many-topics", run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"t.%d.%d","data":1}}`, w.number, i))
		})},
		{name: "publish-many-kept-topics", run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"k1.%d.%d","data":1}}`, w.number, i))
		})},
		{name: "publish-keys", run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"t","data":1,"key":"%0100d.%d"}}`, i, w.number))
		})},
		{name: "publish-1MiB-json", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"publish":{"topic":"x","data":[0`, `,0`, `]}}`))},
		{name: "publish-1MiB-text", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"publish":{"topic":"x","encoding":"text","data":"`, `\u0041`, `"}}`))},
		{name: "publish-1MiB-kept", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"publish":{"topic":"k1.big","data":"`, `x`, `"}}`))},
		{name: "broadcast-2000", setup: members("/broadcast", 2000), run: same("/broadcast", nil, true, masked(0x82, []byte("x")))},
		{name: "broadcast-2000,64KiB", setup: members("/broadcast", 2000), fast: true, run: same("/broadcast", nil, true, masked(0x82, make([]byte, 64<<10)))},
		{name: "topic-2000", setup: members("/ws?topic=crowd", 2000), run: same("/ws?topic=crowd", nil, true, masked(0x81, []byte("x")))},

		// JSON.
		{name: "bad-json", many: 20, run: asking(true, `{"nonsense`)},
		{name: "nested-json", fast: true, run: same("/ws", jsonOnly, true, jsonOf("", "[", ""))},
		{name: "nested-publish", fast: true, run: same("/ws", jsonOnly, true, text(`{"publish":{"topic":"x","data":`+strings.Repeat("[", 9990)+strings.Repeat("]", 9990)+`}}`))},
		{name: "huge-id", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"id":"`, `x`, `","ping":{}}`))},
		{name: "huge-id,digits", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"id":`, `1`, `,"ping":{}}`))},
		{name: "many-members", fast: true, run: same("/ws", jsonOnly, true, numberedJSON("{", `"%x":1`, "}"))},
		{name: "many-publishes", fast: true, run: same("/ws", jsonOnly, true, jsonOf(`{"ping":{}`, `,"ping":{}`, `}`))},

		// Frames.
		{name: "pings-behind-queue", run: frames("/echo", nil, false, func(w *assailant, i int) []byte {
			if i&1 == 0 {
				return masked(0x81, []byte("x"))
			}
			return masked(0x89, make([]byte, i/2%126))
		})},
		{name: "pings", run: same("/echo", nil, true, masked(0x89, nil))},
		{name: "pings,unread", run: same("/echo", nil, false, masked(0x89, []byte("are you there?")))},
		{name: "tiny-echoes", run: same("/echo", nil, true, masked(0x81, []byte("x")))},
		{name: "tiny-echoes,unread", run: same("/echo", nil, false, masked(0x81, []byte("x")))},
		{name: "1MiB-echoes", fast: true, run: same("/echo", nil, true, masked(0x82, make([]byte, mib-1)))},
		{name: "1MiB-echoes,many", many: 100, fast: true, run: same("/echo", nil, true, masked(0x82, make([]byte, mib-1)))},
		{name: "1MiB-echoes,unread", fast: true, run: same("/echo", nil, false, masked(0x82, make([]byte, mib-1)))},
		{name: "fragments", run: same("/echo", nil, true, append(append(masked(0x01, []byte("x")), repeat(masked(0x00, []byte("x")), 1000)...), masked(0x80, nil)...))},
		{name: "utf8-1MiB", fast: true, run: same("/echo", nil, true, utf8Of(false))},
		{name: "utf8-1MiB,invalid", fast: true, run: same("/echo", nil, true, utf8Of(true))},
		{name: "bombs", run: same("/flate", deflating, true, masked(0xc1, zipped(make([]byte, mib-1))))},
		{name: "bombs,anew", many: 300, run: func(w *assailant) {
			conn, err := w.open("/flate", deflating...)
			if err != nil {
				return
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			b := repeat(masked(0xc1, zipped(make([]byte, mib-1))), 4)
			_, _ = conn.Write(b)
			w.sent(4, len(b))
			w.sleep(100 * time.Millisecond)
		}},
		{name: "bombs,unread", run: same("/flate", deflating, false, masked(0xc1, zipped(make([]byte, mib-1))))},
		{name: "deflate-tiny-blocks", fast: true, run: same("/flate", deflating, true, masked(0xc1, tinyBlocks(mib)))},
		{name: "deflate-tiny-blocks,1KB", run: same("/flate", deflating, true, masked(0xc1, tinyBlocks(900)))},

		// Connections.
		{name: "bad-token,HS256", dials: true, run: requestsOf(100, func(w *assailant, _ int) string { return upgradeHead("/hmac", withToken(w.HMACBad)) })},
		{name: "bad-token,ES256", dials: true, run: requestsOf(100, func(w *assailant, _ int) string { return upgradeHead("/ec", withToken(w.ECBad)) })},
		{name: "handshakes", dials: true, run: requestsOf(100, func(*assailant, int) string { return upgradeHead("/echo") })},
		{name: "handshakes,refused", dials: true, run: requestsOf(100, func(*assailant, int) string { return upgradeHead("/echo", "Origin: https://evil.example") })},
		{name: "come-and-go", dials: true, run: requestsOf(0, func(*assailant, int) string { return "" })},
		{name: "closes", dials: true, run: requestsOf(200, func(*assailant, int) string { return upgradeHead("/echo") + string(masked(0x88, []byte{3, 232})) })},
		{name: "http", dials: true, run: requestsOf(100, func(*assailant, int) string { return "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" })},
		{name: "http-pipelined", run: func(w *assailant) {
			conn, err := w.connect(w.Address)
			if err != nil {
				return
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			w.pour(conn, func(int) []byte { return []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n") })
		}},
		{name: "tls-half-open", dials: true, run: halfTLS},
		{name: "tls-handshakes", dials: true, run: fullTLS},
	}, append(moreAttackRows(), foundAttackRows()...)...)
}

// manyPatterns subscribes to as many patterns as 50 connections may have.
func manyPatterns(a *attacker) {
	subscribing(a, 50, func(conn, n int) string { return fmt.Sprintf("p%d.%d.>", conn, n) })
	a.sleep(200 * time.Millisecond)
}

// defaultPatterns is the default of topics.max_patterns.
const defaultPatterns = 16

// subscribing opens connections that read, and each subscribes to as many patterns as it may have.
func subscribing(a *attacker, conns int, pattern func(conn, n int) string) (list []net.Conn) {
	w := &assailant{attacker: a, number: 200}
	for i := range conns {
		conn, err := w.open("/ws", speakJSON)
		if err != nil {
			panic(err)
		}
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		for n := range defaultPatterns {
			_, _ = conn.Write(text(`{"subscribe":{"topic":"` + pattern(i, n) + `"}}`))
		}
		list = append(list, conn)
	}
	return list
}

// halfTLS begins handshakes, reads the server's part, and goes.
func halfTLS(w *assailant) {
	conn, err := w.connect(w.TLS)
	if err != nil {
		return
	}
	defer conn.Close()
	half := &halfConn{Conn: conn}
	_ = tls.Client(half, &tls.Config{InsecureSkipVerify: true}).Handshake()
	w.sent(1, half.wrote)
}

// halfConn lets one write through.
type halfConn struct {
	net.Conn
	wrote int
}

func (c *halfConn) Write(b []byte) (int, error) {
	if c.wrote > 0 {
		return 0, io.ErrClosedPipe
	}
	c.wrote = len(b)
	return c.Conn.Write(b)
}

func fullTLS(w *assailant) {
	conn, err := w.connect(w.TLS)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake()
	w.sent(1, 400)
}

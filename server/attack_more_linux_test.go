package server

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// moreAttackRows are attacks that cost much in a single step, such as one encoding or one comparison of many names.
func moreAttackRows() []attackRow {
	deep := strings.TrimSuffix(strings.Repeat("a.", 125), ".") // 249 bytes
	control := strings.Repeat("\x01", mib/3)                   // six times as large in JSON: just below what is taken
	return []attackRow{
		{name: "subscribe-many-topics", run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			name := fmt.Sprintf("%d.%0240d", w.number, i)
			return append(text(`{"subscribe":{"topic":"`+name+`"}}`), text(`{"unsubscribe":{"topic":"`+name+`"}}`)...)
		})},
		{name: "query-128-unique-topics", run: staying(func(w *assailant, i int) string {
			return manyTopicsHead(fmt.Sprintf("%d.%d.%040d.", w.number, i, 0))
		})},
		{name: "query-128-deep-topics", dials: true, run: requestsOf(100, func(w *assailant, _ int) string {
			return manyTopicsHead(strings.Repeat("a.", 23))
		})},
		{name: "query-4000-parameters", dials: true, run: requestsOf(100, func(w *assailant, _ int) string {
			return upgradeHead("/ws?" + strings.Repeat("a&", 3900))
		})},
		{name: "head-1900-headers", dials: true, run: requestsOf(100, func(w *assailant, _ int) string {
			return upgradeHead("/echo", strings.Split(strings.TrimSuffix(strings.Repeat("a:\n", 1900), "\n"), "\n")...)
		})},
		{name: "deep-patterns,refused", run: func(w *assailant) {
			conn, err := w.open("/ws", speakJSON)
			if err != nil {
				return
			}
			defer conn.Close()
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			for i := range 127 {
				_, _ = conn.Write(text(fmt.Sprintf(`{"subscribe":{"topic":"%s.%d.*"}}`, deep[:243], i)))
			}
			w.pour(conn, func(int) []byte { return text(`{"subscribe":{"topic":"` + deep[:243] + `.0.*"}}`) })
		}},
		{name: "deep-patterns,publish", setup: func(a *attacker) {
			subscribing(a, 50, func(conn, n int) string { return fmt.Sprintf("%s.%d.%d.*", deep[:237], conn, n) })
			a.sleep(500 * time.Millisecond)
		}, run: frames("/ws", jsonOnly, true, func(w *assailant, i int) []byte {
			return text(fmt.Sprintf(`{"publish":{"topic":"%s.%d.%d","data":1}}`, deep[:237], w.number, i))
		})},

		// One message, encoded for one subscriber.
		{name: "newlines-for-sse", fast: true, setup: listening("GET /ws?topic=lines HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"),
			run: same("/ws?topic=lines", nil, true, text(strings.Repeat("\n", mib-8)))},
		{name: "newlines-in-json-for-sse", fast: true, setup: listening("GET /ws?topic=lines HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"),
			run: same("/ws", jsonOnly, true, jsonOf(`{"publish":{"topic":"lines","data":[`, "\n", `]}}`))},
		{name: "control-for-json", fast: true, setup: listening(upgradeHead("/ws?topic=control", speakJSON)),
			run: same("/ws?topic=control", nil, true, text(control))},
		{name: "history-of-control", seeds: []attackSeed{{"k1.control", 0, -1, mib / 3}}, run: asking(true, `{"id":1,"history":{"topic":"k1.control","limit":1}}`)},

		// Many that leave at once.
		{name: "crowd-leaves", many: 1, fast: true, setup: leaving("/ws", 4000), run: leave},
		{name: "crowd-leaves,128-topics", many: 1, fast: true, setup: leaving(manyTopicsPath("shared.topic."), 1000), run: leave},
		{name: "crowd-leaves,16-patterns", many: 1, fast: true, setup: leaving(somePath("*.leaving.", 16), 1000), run: leave},
		{name: "crowd-stalls", many: 1, fast: true, setup: stalling("/broadcast", 2000), run: func(w *assailant) {
			conn, err := w.open("/broadcast") // CARILLON_BENCH_ATTACK=40s, so that limits.write_timeout comes
			if err != nil {
				return
			}
			for range 12 {
				_, _ = conn.Write(masked(0x82, make([]byte, 64<<10)))
				w.sent(1, 0)
			}
			<-w.stop
		}},
		{name: "crowd-closes,128-topics", many: 1, fast: true, setup: leaving(manyTopicsPath("shared.topic."), 1000), run: leaveInOrder},

		// HTTP and TLS.
		{name: "http-pipelined-50", many: 50, fast: true, run: pipelining(true)},
		{name: "http-unread", many: 50, fast: true, run: pipelining(false)},
		{name: "http-body", many: 50, fast: true, run: func(w *assailant) {
			conn, err := w.connect(w.Address)
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
			for !w.over() {
				_, _ = conn.Write([]byte("x"))
				w.sent(1, 0)
				w.sleep(50 * time.Millisecond)
			}
		}},
		{name: "http-then-websocket", dials: true, run: func(w *assailant) {
			conn, err := w.connect(w.Address)
			if err != nil {
				return
			}
			defer conn.Close()
			first, second := "GET / HTTP/1.1\r\nHost: x\r\n\r\n", upgradeHead("/echo")
			_, _ = io.WriteString(conn, first)
			_, _ = conn.Read(make([]byte, 1000))
			_, _ = io.WriteString(conn, second)
			_, _ = conn.Read(make([]byte, 1000))
			w.sent(1, len(first)+len(second))
		}},
		{name: "tls-line-held", many: 1, fast: true, run: func(w *assailant) {
			for range 1200 { // more than limits.max_tls_handshakes
				conn, err := w.connect(w.TLS)
				if err != nil {
					continue
				}
				_ = tls.Client(&halfConn{Conn: conn}, &tls.Config{InsecureSkipVerify: true}).Handshake()
				w.sent(1, 0)
			}
			<-w.stop
		}},
		{name: "tls-key-updates", run: keyUpdates(0)},
		{name: "tls-key-updates,answered", run: keyUpdates(1)},
		{name: "tls-tiny-records", run: tinyRecords},
		{name: "tls-tiny-records,many", many: 200, fast: true, run: tinyRecords},

		{name: "history,id,deflate", seeds: []attackSeed{{"k1.a", 0, 1000, 960}}, run: same("/zws", append(deflating, speakJSON), true, text(`{"id":1,"history":{"topic":"k1.a","limit":1000}}`))},
		{name: "deflate-final-blocks", fast: true, run: same("/flate", deflating, true, masked(0xc1, bytes.Repeat([]byte{3, 0}, mib/2-8)))},
		{name: "deflate-tiny-messages", run: same("/flate", deflating, true, masked(0xc1, zipped([]byte("x"))))},
		{name: "deflate-empty-messages", run: same("/flate", deflating, true, masked(0xc1, []byte{0}))},
		{name: "deflate-incompressible", fast: true, run: same("/flate", deflating, true, masked(0x82, noise(mib-8)))},
		{name: "query-128-topics,1MB-each", fast: true, seeds: []attackSeed{{"k10.", 128, 1000, 960}}, run: requestsOf(150*mib, func(*assailant, int) string {
			path := "/ws?last=10000"
			for i := range 128 {
				path += fmt.Sprintf("&topic=k10.%d", i)
			}
			return upgradeHead(path)
		})},
		{name: "unfinished-messages", many: 200, fast: true, run: func(w *assailant) {
			conn, err := w.open("/echo")
			if err != nil {
				return
			}
			m := masked(0x82, make([]byte, mib))
			_, _ = conn.Write(m[:len(m)-1])
			w.sent(1, 0)
			<-w.stop
		}},
	}
}

func manyTopicsPath(prefix string) string { return somePath(prefix, 128) }

func somePath(prefix string, n int) string {
	var topics []string
	for i := range n {
		topics = append(topics, fmt.Sprintf("topic=%s%d", prefix, i))
	}
	return "/ws?" + strings.Join(topics, "&")
}

func manyTopicsHead(prefix string) string { return upgradeHead(manyTopicsPath(prefix)) }

// staying opens connections that stay.
func staying(head func(w *assailant, i int) string) func(*assailant) {
	return func(w *assailant) {
		for i := 0; !w.over(); i++ {
			conn, err := w.connect(w.Address)
			if err != nil {
				continue
			}
			b := head(w, i)
			_, _ = io.WriteString(conn, b)
			_, _ = conn.Read(make([]byte, 1))
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			w.sent(1, len(b))
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, 0, n)
	for seed := sha256.Sum256(nil); len(b) < n; seed = sha256.Sum256(seed[:]) {
		b = append(b, seed[:]...)
	}
	return b[:n]
}

// listening opens one subscription and reads what it gets.
func listening(head string) func(*attacker) {
	return func(a *attacker) {
		w := &assailant{attacker: a, number: 200}
		conn, err := w.connect(a.Address)
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, head)
		_, _ = conn.Read(make([]byte, 1))
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		a.sleep(100 * time.Millisecond)
	}
}

// crowdConns are the connections that the setup of a row has opened for its run.
var crowdConns []net.Conn

func leaving(path string, n int) func(*attacker) {
	return opening(n, func(i int) string { return strings.ReplaceAll(path, "*.leaving", fmt.Sprintf("leaving.%d.*", i)) })
}

// opening opens connections for the run of a row, each with a path of its own.
func opening(n int, path func(i int) string) func(*attacker) {
	return func(a *attacker) {
		if a.Short {
			n /= 10
		}
		w := &assailant{attacker: a, number: 200}
		for i := range n {
			conn, err := w.open(path(i))
			if err != nil {
				panic(err)
			}
			crowdConns = append(crowdConns, conn)
		}
		a.sleep(500 * time.Millisecond)
	}
}

// stalling opens connections that will not read.
func stalling(path string, n int) func(*attacker) {
	return func(a *attacker) {
		if a.Short {
			n /= 10
		}
		w := &assailant{attacker: a, number: 200}
		for range n {
			conn, err := w.open(path)
			if err != nil {
				panic(err)
			}
			_ = conn.SetReadBuffer(4096)
			crowdConns = append(crowdConns, conn)
		}
	}
}

func leave(w *assailant) {
	for _, conn := range crowdConns {
		_ = conn.Close()
	}
	w.sent(len(crowdConns), 0)
	<-w.stop
}

func leaveInOrder(w *assailant) {
	for _, conn := range crowdConns {
		_, _ = conn.Write(masked(0x88, []byte{3, 232}))
	}
	w.sent(len(crowdConns), 0)
	<-w.stop
}

func pipelining(reads bool) func(*assailant) {
	return func(w *assailant) {
		conn, err := w.connect(w.Address)
		if err != nil {
			return
		}
		defer conn.Close()
		if reads {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
		w.pour(conn, func(int) []byte { return []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n") })
	}
}

// tlsRecords writes the records of a TLS 1.3 connection by hand, with TLS_AES_128_GCM_SHA256.
type tlsRecords struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// newTLSRecords makes a handshake.
func newTLSRecords(conn net.Conn) (*tlsRecords, error) {
	var log bytes.Buffer
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, KeyLogWriter: &log})
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		panic(tls.CipherSuiteName(suite))
	}
	r := &tlsRecords{}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			r.secret, _ = hex.DecodeString(f[2])
		}
	}
	r.use()
	return r, nil
}

// label is HKDF-Expand-Label (RFC 8446, section 7.1).
func (r *tlsRecords) label(label string, n int) []byte {
	info := append(binary.BigEndian.AppendUint16(nil, uint16(n)), byte(6+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	b, err := hkdf.Expand(sha256.New, r.secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return b
}

func (r *tlsRecords) use() {
	block, _ := aes.NewCipher(r.label("key", 16))
	r.aead, _ = cipher.NewGCM(block)
	r.iv, r.seq = r.label("iv", 12), 0
}

// update goes on to the next keys (RFC 8446, section 7.2).
func (r *tlsRecords) update() {
	r.secret = r.label("traffic upd", 32)
	r.use()
}

func (r *tlsRecords) seal(kind byte, content []byte) []byte {
	inner := append(bytes.Clone(content), kind)
	head := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+16))
	nonce := bytes.Clone(r.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(r.seq >> (56 - 8*i))
	}
	r.seq++
	return r.aead.Seal(head, nonce, inner, head)
}

// openRecords opens a WebSocket over TLS. The attacker makes its records itself, and what comes is discarded.
func (w *assailant) openRecords(path string) (conn net.Conn, records *tlsRecords, err error) {
	if conn, err = w.connect(w.TLS); err != nil {
		return nil, nil, err
	}
	if records, err = newTLSRecords(conn); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_, _ = conn.Write(records.seal(23, []byte(upgradeHead(path))))
	return conn, records, nil
}

// tinyRecords sends pings, each byte in a record of its own.
func tinyRecords(w *assailant) {
	conn, records, err := w.openRecords("/echo")
	if err != nil {
		return
	}
	defer conn.Close()
	ping := masked(0x89, nil)
	w.pour(conn, func(i int) []byte { return records.seal(23, ping[i%len(ping):i%len(ping)+1]) })
}

// keyUpdates changes the keys of a connection again and again. With request 1 it asks the server for new keys, too.
func keyUpdates(request byte) func(*assailant) {
	return func(w *assailant) {
		conn, records, err := w.openRecords("/echo")
		if err != nil {
			return
		}
		defer conn.Close()
		for !w.over() {
			n := 4995 // a multiple of 15
			if w.Slow {
				n = 30
			}
			var b []byte
			for i := range n {
				b = append(b, records.seal(22, []byte{24, 0, 0, 1, request})...)
				records.update()
				if i%15 == 14 { // crypto/tls takes 16 records without data, and no more
					b = append(b, records.seal(23, masked(0x89, nil))...)
				}
			}
			if _, err := conn.Write(b); err != nil {
				w.cuts.Add(1)
				return
			}
			w.sent(n, len(b))
		}
	}
}

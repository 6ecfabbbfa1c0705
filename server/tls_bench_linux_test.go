package server

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// gorillas is the server that one would write with net/http and gorilla/websocket: a goroutine for each
// connection, and a message that is prepared once and written to one after the other.
type gorillas struct {
	http http.Server
	mu   sync.Mutex
	all  []*websocket.Conn
}

func startGorillas(b *testing.B, config *tls.Config) (*gorillas, string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := l.Addr().String()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	g := &gorillas{}
	g.http = http.Server{Handler: g, ErrorLog: log.New(io.Discard, "", 0)}
	go g.http.Serve(l)
	b.Cleanup(func() { _ = g.http.Close() })
	return g, address
}

func (g *gorillas) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	g.mu.Lock()
	g.all = append(g.all, c)
	g.mu.Unlock()
	for {
		if _, _, err := c.ReadMessage(); err != nil {
			_ = c.Close()
			return
		}
	}
}

func (g *gorillas) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.all)
}

func (g *gorillas) broadcast(payload []byte) {
	m, _ := websocket.NewPreparedMessage(websocket.BinaryMessage, payload)
	for _, c := range g.all {
		_ = c.WritePreparedMessage(m)
	}
}

// BenchmarkTLSBroadcast gives the processor time of a delivery over TLS and without, in turn on two servers with as
// many sockets, and next to both that of net/http with gorilla/websocket.
func BenchmarkTLSBroadcast(b *testing.B) {
	reactor.CheckOwner = false
	for _, loops := range []int{1, 2} {
		const conns, size = 4000, 128
		b.Run(fmt.Sprintf("conns=%d/size=%d/loops=%d", conns, size, loops), func(b *testing.B) {
			needDescriptors(b, 4*conns)
			plain, opts := start(b, quiet(loops)), quiet(loops)
			opts.TLS.Config = testTLS()
			secure := start(b, opts)
			theirs, theirAddress := startGorillas(b, nil)
			theirSecure, theirSecureAddress := startGorillas(b, testTLS())
			order := swarmOrder{Path: "/broadcast", Conns: conns, Discard: true}
			startSwarm(b, plain, order)
			order.Address = theirAddress
			startSwarm(b, nil, order)
			order.TLS, order.Address = true, theirSecureAddress
			startSwarm(b, nil, order)
			startSwarm(b, secure, order)
			eventually(b, "all are there", func() bool { return theirs.count() == conns && theirSecure.count() == conns })
			payload := numbered(0, size)
			frame := codec.NewFrame(Binary, payload)
			contestants := []struct {
				name      string
				broadcast func()
				used      time.Duration
			}{
				{"plain", func() { _ = plain.BroadcastFrame("/broadcast", frame); plain.settled() }, 0},
				{"tls", func() { _ = secure.BroadcastFrame("/broadcast", frame); secure.settled() }, 0},
				{"gorilla", func() { theirs.broadcast(payload) }, 0},
				{"gorilla-tls", func() { theirSecure.broadcast(payload) }, 0},
			}
			for b.Loop() {
				for i := range contestants {
					begin := cpuTime()
					contestants[i].broadcast()
					contestants[i].used += cpuTime() - begin
					time.Sleep(20 * time.Millisecond) // the clients catch up
				}
			}
			per := float64(b.N) * conns
			for _, c := range contestants {
				b.ReportMetric(float64(c.used)/per, c.name+"-ns/conn")
			}
			b.ReportMetric(float64(contestants[1].used)/float64(contestants[0].used), "ratio")
			b.ReportMetric(float64(contestants[3].used)/float64(contestants[2].used), "gorilla-ratio")
		})
	}
}

// BenchmarkTLSIdle gives the heap that a connection over TLS costs above a plain one, when it does nothing, and
// what it does with net/http and gorilla/websocket.
func BenchmarkTLSIdle(b *testing.B) {
	reactor.CheckOwner = false
	const conns = 4000
	b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
		each := func(connect func() *swarm) float64 {
			before := heapBytes()
			w := connect()
			defer w.end()
			return float64(heapBytes()-before) / conns
		}
		for b.Loop() {
			opts := quiet(2)
			plain := start(b, opts)
			opts.TLS.Config = testTLS()
			secure := start(b, opts)
			theirs, address := startGorillas(b, testTLS())
			order := swarmOrder{Path: "/broadcast", Conns: conns, Discard: true}
			withoutTLS := each(func() *swarm { return startSwarm(b, plain, order) })
			order.TLS = true
			withTLS := each(func() *swarm { return startSwarm(b, secure, order) })
			order.Address = address
			gorilla := each(func() *swarm {
				w := startSwarm(b, nil, order)
				eventually(b, "all are there", func() bool { return theirs.count() == conns })
				return w
			})
			b.ReportMetric(withoutTLS, "plain-B/conn")
			b.ReportMetric(withTLS, "tls-B/conn")
			b.ReportMetric(withTLS-withoutTLS, "above-B/conn")
			b.ReportMetric(gorilla, "gorilla-tls-B/conn")
		}
	})
}

// BenchmarkTLSHandshake gives the processor time of a TLS handshake and the upgrade behind it. The certificate's
// key is on P-256.
func BenchmarkTLSHandshake(b *testing.B) {
	reactor.CheckOwner = false
	const conns = 500
	b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) {
		opts := quiet(2)
		opts.TLS.Config = testTLS()
		s := start(b, opts)
		var used time.Duration
		for b.Loop() {
			begin := cpuTime()
			w := startSwarm(b, s, swarmOrder{Path: "/echo", Conns: conns, Discard: true, TLS: true})
			used += cpuTime() - begin
			w.end()
			eventually(b, "all are gone", func() bool { return s.engine.Sockets.Load() == 0 })
		}
		b.ReportMetric(float64(used.Nanoseconds())/float64(b.N*conns), "cpu-ns/handshake")
	})
}

// BenchmarkTLSEcho gives what a round trip takes; the client is crypto/tls too.
func BenchmarkTLSEcho(b *testing.B) {
	reactor.CheckOwner = false
	for _, size := range []int{128, 16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			opts := quiet(1)
			opts.TLS.Config = testTLS()
			s := start(b, opts)
			c := dialTLS(b, s, &tls.Config{InsecureSkipVerify: true}, "/echo")
			payload := bytes.Repeat([]byte("x"), size)
			request := masked(0x82, payload)
			answer := make([]byte, len(codec.NewFrame(Binary, payload).Plain()))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if size > 64<<10 {
					go c.conn.Write(request) // it comes back before it is written
				} else if _, err := c.conn.Write(request); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.r, answer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

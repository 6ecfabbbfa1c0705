package server

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

func init() { childMains["tls attackers"] = tlsAttackers }

// tlsAttackersEnv is the server's address, the attack, how many attackers there are, and for how long.
const tlsAttackersEnv = "CARILLON_TEST_TLS_ATTACKERS"

// tlsAttackers begin TLS handshakes. In the attack "silent" each waits until its connection is closed, and comes back;
// "flood" comes back as soon as it has the server's answer; "slow" does so too, with 1 KB of first messages a second.
// With "-many" behind it, each has an address of its own.
func tlsAttackers() {
	var host, attack string
	var n, seconds int
	if _, err := fmt.Sscan(os.Getenv(tlsAttackersEnv), &host, &attack, &n, &seconds); err != nil {
		panic(err)
	}
	near, far := net.Pipe()
	go tls.Client(far, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}}).Handshake()
	hello := make([]byte, 4096)
	size, _ := near.Read(hello)
	hello = hello[:size]
	fmt.Println("ready")
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	var all sync.WaitGroup
	for i := range n {
		from := oneAddress(i)
		if attack == "silent-many" {
			from = manyAddresses(i)
		}
		all.Go(func() {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Deadline: end}
			answer := make([]byte, 4096)
			for time.Now().Before(end) {
				conn, err := dialer.Dial("tcp", host)
				if err != nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				_ = conn.SetDeadline(end)
				_, _ = conn.Write(hello)
				switch attack {
				case "flood":
					_, _ = conn.Read(answer)
				case "slow":
					time.Sleep(time.Duration(len(hello)) * time.Second / 1024)
				default:
					_, _ = io.Copy(io.Discard, conn)
				}
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

// startTLSAttackers has them begin in a process of their own, which ends by itself.
func startTLSAttackers(b *testing.B, address, attack string, n int, lasting time.Duration) {
	b.Helper()
	cmd := testenv.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=tls attackers", tlsAttackersEnv+"="+fmt.Sprint(address, " ", attack, " ", n, " ", int(lasting.Seconds())))
	cmd.Stderr = os.Stderr
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var word string
	if _, err := fmt.Fscan(out, &word); err != nil {
		b.Fatal(err)
	}
}

// rsaConfig has a key of 2048 bits, with which a signature takes about a millisecond.
var rsaConfig = sync.OnceValue(func() *tls.Config {
	key, _ := rsa.GenerateKey(rand.Reader, 2048)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
})

// bareTLS is a server of a few lines: a goroutine for each connection, which gets its bytes back.
func bareTLS(b *testing.B) string {
	l, err := tls.Listen("tcp", "127.0.0.1:0", rsaConfig())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	return l.Addr().String()
}

// latencies are what clients have seen.
type latencies struct {
	mu   sync.Mutex
	all  []time.Duration
	lost int
}

func (l *latencies) add(d time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all = append(l.all, d); !ok {
		l.lost++
	}
}

func (l *latencies) report(b *testing.B, name string) {
	slices.Sort(l.all)
	if n := len(l.all); n > 0 {
		b.ReportMetric(float64(l.all[n/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(l.all[n*99/100].Microseconds())/1000, name+"-p99-ms")
	}
}

// askEvery has a connection echo 20 messages a second until it is stopped. The answers are as long as the requests.
func askEvery(b *testing.B, conn net.Conn, request []byte, answer int, stop chan struct{}, to *latencies) {
	buf := make([]byte, answer)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		begin := time.Now()
		_ = conn.SetDeadline(begin.Add(patience))
		_, err := conn.Write(request)
		if err == nil {
			_, err = io.ReadFull(conn, buf)
		}
		if to.add(time.Since(begin), err == nil); err != nil {
			b.Errorf("an echo is lost: %v", err)
			return
		}
	}
}

// BenchmarkTLSUnderAttack gives what well-behaved clients see while others begin TLS handshakes: the echoes of
// clients that are there, over TLS and without, and how many newcomers out of one every 50 ms have their first echo
// within 5 s. The certificate's key is RSA, of 2048 bits. The attack "none" is the machine as it is, and bare/ is a
// server of crypto/tls and a goroutine for each connection, under the same attack.
func BenchmarkTLSUnderAttack(b *testing.B) {
	reactor.CheckOwner = false
	const clients, lasting = 10, 6 * time.Second
	client := &tls.Config{InsecureSkipVerify: true}
	for _, row := range []struct {
		attack string
		n      int
	}{{"none", 0}, {"silent", 1200}, {"silent-many", 1200}, {"flood", 8}, {"slow", 50}} {
		for _, bare := range []bool{false, true} {
			name := fmt.Sprintf("%s/attackers=%d", row.attack, row.n)
			if bare {
				name = "bare/" + name
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					address, request, answer := "", text("hello"), 7
					var plain *Server
					if bare {
						address, request, answer = bareTLS(b), []byte("hello"), 5
					} else {
						opts := quiet(0)
						opts.Logger, opts.TLS.Config = silent(), rsaConfig()
						opts.Listeners = []Listener{{Listen: "127.0.0.1:0"}}
						plain = start(b, opts)
						address = plain.Addr().String()
					}
					enterTLS := func() (net.Conn, bool) {
						conn, err := net.Dial("tcp", address)
						if err != nil {
							return nil, false
						}
						_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
						secured := tls.Client(conn, client)
						return secured, secured.Handshake() == nil && (bare || enter(secured, "/echo"))
					}
					var overTLS, without, newcomers latencies
					var all sync.WaitGroup
					stop := make(chan struct{})
					for range clients {
						conn, ok := enterTLS()
						if !ok {
							b.Fatal("a client does not come in before the attack")
						}
						all.Go(func() { askEvery(b, conn, request, answer, stop, &overTLS); _ = conn.Close() })
						if bare {
							continue
						}
						clear, err := net.Dial("tcp", plain.engine.Listeners[1].Addr.String())
						if err != nil || !enter(clear, "/echo") {
							b.Fatal("a client does not come in before the attack")
						}
						all.Go(func() { askEvery(b, clear, request, answer, stop, &without); _ = clear.Close() })
					}
					if row.n > 0 {
						startTLSAttackers(b, address, row.attack, row.n, lasting+8*time.Second)
						time.Sleep(time.Second)
					}
					in := 0
					var mu sync.Mutex
					for end := time.Now().Add(lasting); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
						all.Go(func() {
							begin := time.Now()
							conn, ok := enterTLS()
							if ok {
								_, err := conn.Write(request)
								if err == nil {
									_, err = io.ReadFull(conn, make([]byte, answer))
								}
								ok = err == nil
							}
							newcomers.add(time.Since(begin), ok)
							if conn != nil {
								_ = conn.Close()
							}
							mu.Lock()
							defer mu.Unlock()
							if ok {
								in++
							}
						})
					}
					close(stop)
					all.Wait()
					b.ReportMetric(100*float64(in)/float64(len(newcomers.all)), "newcomers-%")
					newcomers.report(b, "newcomer")
					overTLS.report(b, "tls")
					without.report(b, "plain")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

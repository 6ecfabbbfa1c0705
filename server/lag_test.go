package server

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
)

// lagging is a server that has sent a client so many bytes, all of which are in its socket, and that client, whose own
// socket has little room.
type lagging struct {
	t    *testing.T
	s    *Server
	size int
	c    *client
}

func newLagging(t *testing.T, network string, size int, limits Limits, ping Ping) *lagging {
	l := &lagging{t: t, size: size}
	opts := Options{Limits: limits, Ping: ping, Listen: "127.0.0.1:0", Loops: 1}
	opts.Endpoints = []Endpoint{{Path: "/big", SlowConsumer: SlowConsumer{MaxQueue: -1}, Handler: Handler{Message: func(c *Conn, op Opcode, payload []byte) {
		if string(payload) != "more" {
			_ = c.Send(op, payload)
			return
		}
		_ = c.Send(Binary, make([]byte, size/10))
	}}}}
	dial, address := "tcp", ""
	switch network {
	case "IPv6":
		opts.Listen = "[::1]:0"
	case "unix":
		dial, address = "unix", socketPath(t)
		opts.Listen = "unix:" + address
	case "TLS":
		opts.TLS.Config = testTLS()
	}
	l.s = start(t, opts)
	if dial == "tcp" {
		address = l.s.Addr().String()
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		return err
	}}
	conn, err := dialer.Dial(dial, address)
	if err != nil {
		t.Fatal(err)
	}
	l.c = newClient(t, conn)
	if network == "TLS" {
		l.c.startTLS(&tls.Config{InsecureSkipVerify: true})
	}
	l.c.upgrade("/big")
	before := l.s.Stats().BytesOut
	for i := range 10 { // a unix socket holds a write until all of it has been read
		l.c.send("more")
		eventually(t, "it has been sent", func() bool { return l.s.Stats().BytesOut-before > uint64((i+1)*size/10) })
	}
	if n := l.s.Stats().QueuedBytes; n != 0 {
		t.Fatalf("%d bytes are not in the socket", n)
	}
	return l
}

// read reads what was sent, at a steady pace.
func (l *lagging) read(lasting time.Duration) error {
	const parts = 100
	part := make([]byte, (l.size+10*len("head"))/parts)
	for range parts {
		time.Sleep(lasting / parts)
		if _, err := io.ReadFull(l.c.r, part); err != nil {
			return err
		}
	}
	_, err := io.CopyN(io.Discard, l.c.r, int64(l.size+10*len("head")-parts*len(part)))
	return err
}

// Alice reads at a steady pace, but it takes her longer to get to the ping than she has for its answer. She answers it
// at once, and stays.
func TestPingBehindWhatASlowReaderReads(t *testing.T) {
	for network, size := range map[string]int{"IPv4": 400_000, "IPv6": 400_000, "TLS": 400_000, "unix": 80_000} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			limits, ping := off()
			ping.Interval, ping.Timeout, ping.Jitter = 500*time.Millisecond, 2*time.Second, -1
			alice := newLagging(t, network, size, limits, ping)
			c := theConn(t, alice.s)
			if err := alice.read(4 * ping.Timeout); err != nil {
				t.Fatal(err)
			}
			if op, payload, err := alice.c.frame(); op != codec.OpPing || err != nil {
				t.Fatalf("got %v %q, %v; want a ping", op, payload, err)
			}
			alice.c.write(masked(0x8a, nil))
			eventually(t, "her answer is there", func() bool { return countLags(c) == 0 })
			if n := alice.s.Stats().Cuts[CutPingTimeout]; n != 0 || alice.s.Count() != 1 {
				t.Errorf("%d were cut", n)
			}
		})
	}
}

// countLags is how many clients of a connection's loop lag.
func countLags(c *Conn) int {
	n := make(chan int)
	c.shard().PostDo(c.core(), 0, func() { n <- c.shard().Lags.Len() })
	return <-n
}

// A client that reads nothing is cut in its time though something stands before the ping. One that has read what did
// and does not answer is cut a time-out later, whatever comes behind the ping, and however long it goes on to read.
func TestPingThatIsNotAnswered(t *testing.T) {
	limits, ping := off()
	ping.Interval, ping.Timeout, ping.Jitter = 500*time.Millisecond, 4*time.Second, -1
	for _, row := range []struct {
		name          string
		read          func(l *lagging)
		after, before time.Duration // the ping, when it is cut
	}{
		{"reads nothing", func(*lagging) {}, ping.Timeout, 2 * ping.Timeout},
		{"reads all at once", func(l *lagging) { _ = l.read(0) }, ping.Timeout, 3 * ping.Timeout},
		{"reads for ever", func(l *lagging) {
			_ = l.read(ping.Timeout * 5 / 4)
			_ = l.read(ping.Timeout * 10)
		}, 2 * ping.Timeout, 5 * ping.Timeout},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := newLagging(t, "IPv4", 400_000, limits, ping)
			c := theConn(t, l.s)
			pinged := time.Now().Add(ping.Interval)
			eventually(t, "it is pinged", func() bool { return countLags(c) == 1 })
			for range 10 {
				if err := c.Send(Binary, make([]byte, l.size/10)); err != nil {
					t.Fatal(err)
				}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				row.read(l)
			}()
			eventually(t, "it is cut", func() bool { return l.s.Stats().Cuts[CutPingTimeout] == 1 })
			if took := time.Since(pinged); took < row.after-time.Second/2 || took > row.before {
				t.Errorf("it was cut after %v, want %v to %v", took, row.after, row.before)
			}
			_ = l.c.conn.Close()
			<-done
			eventually(t, "it is gone", func() bool { return l.s.Count() == 0 })
			if n := countLags(c); n != 0 {
				t.Errorf("%d are remembered", n)
			}
		})
	}
}

// Bob reads slowly while the server closes his connection. He has the time to get to the close frame and to answer it.
func TestCloseBehindWhatASlowReaderReads(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.CloseTimeout = 2 * time.Second
	bob := newLagging(t, "IPv4", 400_000, limits, ping)
	if err := theConn(t, bob.s).Close(4000, "enough"); err != nil {
		t.Fatal(err)
	}
	go func() { // the kernel would reset a connection that the server has closed
		time.Sleep(2 * limits.CloseTimeout)
		_, _ = bob.c.conn.Write(text("still here"))
	}()
	if err := bob.read(4 * limits.CloseTimeout); err != nil {
		t.Fatal(err)
	}
	op, payload, err := bob.c.frame()
	if op != codec.OpClose || err != nil || !strings.HasSuffix(string(payload), "enough") {
		t.Fatalf("got %v %q, %v; want a close frame", op, payload, err)
	}
	bob.c.write(masked(0x88, payload))
	bob.c.wantEOF()
}

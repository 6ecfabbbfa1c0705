package server

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"carillon/codec"
	"carillon/internal/testenv"
	"carillon/server/internal/reactor"
)

// dialSmall opens a TCP connection whose socket has little room and which reads nothing by itself: the
// server's side is full after a few MB.
func dialSmall(t testing.TB, s *Server) *client {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		return err
	}}
	conn, err := dialer.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// shrinkPeer gives a socket of this process a small send buffer: the one whose peer has an address. It reports whether
// there is one.
func shrinkPeer(address string) bool {
	for fd := range 4096 {
		peer, err := unix.Getpeername(fd)
		if in, ok := peer.(*unix.SockaddrInet4); err == nil && ok && netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String() == address {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 32<<10) == nil
		}
	}
	return false
}

// dialFrozen opens a WebSocket on one of those. The server's side is full after some 100 KB.
func dialFrozen(t testing.TB, s *Server, path string, headers ...string) *client {
	t.Helper()
	c := dialSmall(t, s)
	eventually(t, "the server's side is found", func() bool { return shrinkPeer(c.conn.LocalAddr().String()) })
	c.write([]byte(upgradeHead(path, headers...)))
	if resp := c.response(); resp.StatusCode != 101 {
		t.Fatalf("handshake: %s", resp.Status)
	}
	return c
}

// blockSize is the size of a block as a frame: a numbered message, long enough to fill sockets soon.
const blockSize = 16 << 10

func block(i int) []byte {
	b := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, (blockSize-4)/2)
	binary.BigEndian.PutUint32(b, uint32(i))
	return b
}

func publish(t testing.TB, s *Server, path string, i int) {
	t.Helper()
	if err := s.Broadcast(path, Binary, block(i)); err != nil {
		t.Fatal(err)
	}
}

// block reads one block and returns its number, or -1 if anything else comes.
func (c *client) block() int {
	op, payload, err := c.frame()
	if err != nil || op != Binary || len(payload) < 4 {
		return -1
	}
	i := int(binary.BigEndian.Uint32(payload))
	if !bytes.Equal(payload, block(i)) {
		return -1
	}
	return i
}

func (c *client) wantBlock(i int) {
	c.t.Helper()
	if got := c.block(); got != i {
		c.t.Fatalf("got block %d, want %d", got, i)
	}
}

// policy is a broadcast endpoint with a policy, and one of another kind.
func policy(slow SlowConsumer) []Endpoint {
	return []Endpoint{{Path: "/broadcast", Mode: ModeBroadcast, SlowConsumer: slow}, {Path: "/other", Mode: ModeEcho}}
}

// thaw reads n blocks, whose numbers only rise.
func (c *client) thaw(n int) (got []int) {
	c.t.Helper()
	for len(got) < n {
		i := c.block()
		if i < 0 || len(got) > 0 && i <= got[len(got)-1] {
			c.t.Fatalf("after %d blocks of %d came %d", len(got), n, i)
		}
		got = append(got, i)
	}
	return got
}

// contiguous counts how many blocks at the start, or at the end, follow one another.
func contiguous(got []int, atEnd bool) int {
	n := 1
	for n < len(got) {
		i := n
		if atEnd {
			i = len(got) - n
		}
		if got[i] != got[i-1]+1 {
			break
		}
		n++
	}
	return n
}

// The story that the policies share: cathy freezes, alice and bob get every message as it comes.
// When enough was dropped cathy thaws, and has missed what the policy says and no more.
func TestFrozenReader(t *testing.T) {
	for _, row := range frozenRows {
		t.Run(row.name, func(t *testing.T) { freeze(t, row) })
	}
}

type frozenRow struct {
	name   string
	policy Policy
	reason DropReason
	check  func(got []int, firstDrop, published int) error
}

var frozenRows = []frozenRow{
	{"drop_oldest: a gap, then the newest that fit, without another gap", PolicyDropOldest, DropOldest,
		func(got []int, _, _ int) error {
			if n := contiguous(got, true); n < 19 {
				return fmt.Errorf("only the last %d follow one another", n)
			}
			return nil
		}},
	{"drop_newest: all until the queue was full", PolicyDropNewest, DropNewest,
		func(got []int, firstDrop, _ int) error {
			if n := contiguous(got, false); n < firstDrop {
				return fmt.Errorf("the first %d follow one another, but the first drop was number %d", n, firstDrop)
			}
			return nil
		}},
	{"latest: the newest, and nothing of those before it", PolicyLatest, DropConflated,
		func(got []int, _, published int) error {
			if len(got) > 2 && got[len(got)-2] == published-2 {
				return fmt.Errorf("the one before the newest came too")
			}
			return nil
		}},
}

func freeze(t *testing.T, row frozenRow) {
	const maxQueue = 20 * blockSize
	s := start(t, Options{Loops: 1, Endpoints: policy(SlowConsumer{Policy: row.policy, MaxQueue: maxQueue})})
	alice, bob, cathy := dial(t, s, "/broadcast"), dial(t, s, "/broadcast"), dialFrozen(t, s, "/broadcast")
	published, firstDrop := 0, -1
	for s.Stats().Drops[row.reason] < 50 {
		publish(t, s, "/broadcast", published)
		alice.wantBlock(published)
		bob.wantBlock(published)
		published++
		eventually(t, "it was cathy's turn", func() bool { return s.Stats().Deliveries == uint64(3*published) })
		st := s.Stats()
		if firstDrop < 0 && st.Drops[row.reason] > 0 {
			firstDrop = published - 1
		}
		if st.QueuedBytes > maxQueue+blockSize {
			t.Fatalf("%d bytes are queued, more than %d", st.QueuedBytes, maxQueue)
		}
	}
	dropped := int(s.Stats().Drops[row.reason])
	got := cathy.thaw(published - dropped)
	if newest := got[len(got)-1] == published-1; newest == (row.policy == PolicyDropNewest) {
		t.Errorf("the last that came is %d of %d", got[len(got)-1], published)
	}
	if err := row.check(got, firstDrop, published); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing is queued", func() bool { return s.Stats().QueuedBytes == 0 })
	for i := published; i < published+3; i++ { // and she is as good as new
		publish(t, s, "/broadcast", i)
		for _, c := range []*client{alice, bob, cathy} {
			c.wantBlock(i)
		}
	}
	for reason, n := range s.Stats().Drops {
		if reason != row.reason && n > 0 {
			t.Errorf("%d drops for %v", n, reason)
		}
	}
}

// The policy close: cathy is told, and what she was sent before is whole.
func TestFrozenReaderIsClosed(t *testing.T) {
	for _, code := range []codec.CloseCode{codec.CloseTryAgainLater, codec.ClosePolicyViolation} {
		t.Run(code.String(), func(t *testing.T) {
			const maxQueue = 20 * blockSize
			s := start(t, Options{Loops: 1, Endpoints: policy(SlowConsumer{MaxQueue: maxQueue, CloseCode: int(code)})})
			alice, bob, cathy := dial(t, s, "/broadcast"), dial(t, s, "/broadcast"), dialFrozen(t, s, "/broadcast")
			published := 0
			for s.Count() == 3 {
				publish(t, s, "/broadcast", published)
				alice.wantBlock(published)
				bob.wantBlock(published)
				published++
				eventually(t, "it was cathy's turn", func() bool { return s.Stats().Deliveries == uint64(3*published) })
			}
			for i := published; i < published+10; i++ { // no concern of hers any more
				publish(t, s, "/broadcast", i)
				alice.wantBlock(i)
				bob.wantBlock(i)
			}
			st := s.Stats()
			if n := st.Drops[DropSlowConsumer]; n < maxQueue/blockSize-1 || st.QueuedBytes > blockSize+128 {
				t.Errorf("%d messages dropped and %d bytes still queued", n, st.QueuedBytes)
			}
			arrived := cathy.readUntilClose(code, "slow consumer: more than 320KiB queued")
			if n := int(st.Drops[DropSlowConsumer]); arrived+n != published {
				t.Errorf("%d arrived and %d were dropped of %d", arrived, n, published)
			}
			eventually(t, "cathy is gone", func() bool { return s.Stats().Sockets == 2 && s.Stats().QueuedBytes == 0 })
			if n := s.Stats().Closes[code]; n != 1 {
				t.Errorf("%d closes with %v, want 1", n, code)
			}
		})
	}
}

// readUntilClose reads blocks without a gap, then the close frame, and ends the connection.
func (c *client) readUntilClose(code codec.CloseCode, reason string) (blocks int) {
	c.t.Helper()
	for {
		op, payload, err := c.frame()
		if err != nil {
			c.t.Fatalf("after %d blocks: %v", blocks, err)
		}
		if op == codec.OpClose {
			if got := codec.CloseCode(binary.BigEndian.Uint16(payload)); got != code || string(payload[2:]) != reason {
				c.t.Errorf("closed with %v %q, want %v %q", got, payload[2:], code, reason)
			}
			break
		}
		if !bytes.Equal(payload, block(blocks)) {
			c.t.Fatalf("block %d is another", blocks)
		}
		blocks++
	}
	c.write(masked(0x88, []byte{0x03, 0xe8}))
	c.wantEOF()
	_ = c.conn.Close()
	return blocks
}

// Cathy was frozen for longer than a closing handshake may take before she was closed for it: her
// time to close begins only then.
func TestFrozenReaderGetsTimeToClose(t *testing.T) {
	t.Parallel()
	limits, ping := off()
	limits.CloseTimeout = 4 * time.Second
	ping.Timeout = 400 * time.Millisecond // for a short tick: there are no pings
	s := start(t, Options{Loops: 1, Limits: limits, Ping: ping, Endpoints: policy(SlowConsumer{MaxQueue: 20 * blockSize})})
	cathy := dialFrozen(t, s, "/broadcast")
	conn := onlyConn(t, s, "/broadcast")
	published := 0
	for ; s.Stats().QueuedBytes < 5*blockSize; published++ {
		publish(t, s, "/broadcast", published)
		eventually(t, "it was cathy's turn", func() bool { return s.Stats().Deliveries == uint64(published+1) })
		conn.shard().Post(reactor.Command{Kind: reactor.CommandWritable, Conn: conn.core()}) // until the kernel takes nothing more
	}
	time.Sleep(limits.CloseTimeout * 5 / 4)
	for ; s.Count() == 1; published++ {
		publish(t, s, "/broadcast", published)
		eventually(t, "it was cathy's turn", func() bool { return s.Stats().Deliveries == uint64(published+1) })
	}
	time.Sleep(200 * time.Millisecond) // a few ticks
	cathy.readUntilClose(codec.CloseTryAgainLater, "slow consumer: more than 320KiB queued")
}

// What is sent to one connection obeys the same rule as a broadcast. Every message is accounted for,
// also when both kinds come at once and the queue is full in their midst.
func TestFrozenReaderOfSends(t *testing.T) {
	for _, p := range []Policy{PolicyDropOldest, PolicyDropNewest, PolicyLatest, PolicyClose} {
		t.Run(string(p), func(t *testing.T) {
			held := newHold()
			endpoints := append(policy(SlowConsumer{Policy: p, MaxQueue: 20 * blockSize}), held.endpoint())
			s := start(t, Options{Loops: 1, Endpoints: endpoints, Limits: Limits{CloseTimeout: patience}}) // probes of its window may take seconds
			holder, cathy := dial(t, s, "/hold"), dialFrozen(t, s, "/broadcast")
			conn := onlyConn(t, s, "/broadcast")
			published := 0
			for ; s.Stats().QueuedBytes == 0; published++ {
				if err := conn.Send(Binary, block(published)); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the loop has seen it", func() bool { return s.engine.AllShards()[0].Backlog.Load() == 0 })
			}
			held.take(holder)
			for range 50 {
				publish(t, s, "/broadcast", published)
				published++
			}
			for range 5 {
				if err := errors.Join(conn.Send(Binary, block(published)), conn.SendFrame(codec.NewFrame(Binary, block(published+1)))); err != nil {
					t.Fatal(err)
				}
				published += 2
			}
			held.release()
			eventually(t, "the loop has seen it all", func() bool { return s.engine.AllShards()[0].Backlog.Load() == 0 && dropsOf(s) > 0 })
			dropped, arrived := dropsOf(s), 0
			for arrived+dropped < published && cathy.block() >= 0 {
				arrived++
			}
			eventually(t, "nothing is queued", func() bool { return s.Stats().QueuedBytes == 0 })
			if dropped != dropsOf(s) || arrived+dropped != published {
				t.Errorf("%d arrived and %d were dropped of %d: %v", arrived, dropped, published, s.Stats().Drops)
			}
			if p == PolicyClose {
				cathy.wantClose(codec.CloseTryAgainLater, "slow consumer")
			}
		})
	}
}

// hold keeps the loop of one connection busy, so that what is posted meanwhile comes to it at once.
type hold struct{ held, released chan struct{} }

func newHold() *hold { return &hold{make(chan struct{}), make(chan struct{})} }

func (h *hold) endpoint() Endpoint {
	return Endpoint{Path: "/hold", Handler: Handler{Message: func(*Conn, codec.Opcode, []byte) {
		h.held <- struct{}{}
		<-h.released
	}}}
}

func (h *hold) take(c *client) {
	c.t.Helper()
	c.send("hold")
	<-h.held
}

func (h *hold) release() { h.released <- struct{}{} }

// onlyConn is the server's end of the connection at a path.
func onlyConn(t testing.TB, s *Server, path string) (conn *Conn) {
	t.Helper()
	eventually(t, "there is one connection", func() bool {
		for c := range s.Conns() {
			if c.Path() == path {
				conn = c
			}
		}
		return conn != nil
	})
	return conn
}

func dropsOf(s *Server) (n int) {
	for _, d := range s.Stats().Drops {
		n += int(d)
	}
	return n
}

// A message larger than the queue goes out when nothing waits before it, whatever the policy.
func TestMessageLargerThanQueue(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, p := range []Policy{PolicyDropOldest, PolicyDropNewest, PolicyLatest, PolicyClose} {
		t.Run(string(p), func(t *testing.T) {
			s := start(t, Options{Endpoints: policy(SlowConsumer{Policy: p, MaxQueue: 64 << 10})})
			cathy := dialFrozen(t, s, "/broadcast")
			for range 2 {
				if err := s.Broadcast("/broadcast", Binary, large); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it waits", func() bool { return s.Stats().QueuedBytes > 64<<10 })
				if op, payload, err := cathy.frame(); op != Binary || !bytes.Equal(payload, large) || err != nil {
					t.Fatalf("got %v of %d bytes, %v", op, len(payload), err)
				}
				eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
			}
			if n := dropsOf(s); n > 0 {
				t.Errorf("%d drops", n)
			}
		})
	}
}

// Without a limit, all that cathy missed is there when she thaws.
func TestQueueWithoutLimit(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Endpoints: policy(SlowConsumer{MaxQueue: -1})})
	cathy := dialFrozen(t, s, "/broadcast")
	const published = 1000 // 16 MB
	for i := range published {
		for s.Broadcast("/broadcast", Binary, block(i)) == ErrOverloaded {
			time.Sleep(time.Millisecond)
		}
	}
	eventually(t, "more than the default waits", func() bool { return s.Stats().QueuedBytes > 10<<20 })
	for i := range published {
		cathy.wantBlock(i)
	}
	eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
}

// Cathy asks and asks and never reads the answers. What is kept for her stays small, also when a
// message that must be kept comes with each crowd of pings.
func TestFrozenPinger(t *testing.T) {
	limits, ping := off()
	s := start(t, Options{Loops: 1, Endpoints: echoAndBroadcast(), Limits: limits, Ping: ping})
	cathy := dialFrozen(t, s, "/echo")
	var crowd []byte
	for range 480 {
		crowd = append(crowd, masked(0x89, bytes.Repeat([]byte("p"), 125))...)
	}
	crowd = append(crowd, masked(0x82, []byte("m"))...)
	for s.Stats().QueuedBytes == 0 {
		cathy.write(crowd)
	}
	before := testenv.HeapInUse()
	const crowds = 800 // 50 MB
	for range crowds {
		cathy.write(crowd)
	}
	want := s.Stats().MessagesIn
	eventually(t, "all pings are in", func() bool {
		was := want
		want = s.Stats().MessagesIn
		time.Sleep(20 * time.Millisecond)
		return want == was && want >= crowds
	})
	if n := s.Stats().QueuedBytes; n > 128<<10 {
		t.Errorf("%d bytes are queued", n)
	}
	if grown := testenv.HeapInUse() - before; grown > 10<<20 {
		t.Errorf("%d bytes of memory for a client that sent %d", grown, crowds*len(crowd))
	}
	cathy.write(masked(0x88, []byte{0x03, 0xe8}))
	cathy.wantClose(codec.CloseNormal, "")
}

// A slow reader of large echoes gets every byte.
func TestSlowEchoOfLargeMessages(t *testing.T) {
	t.Parallel()
	endpoints := []Endpoint{{Path: "/echo", Mode: ModeEcho, SlowConsumer: SlowConsumer{MaxQueue: 64 << 20}}}
	s := start(t, Options{Endpoints: endpoints, Ping: Ping{Interval: -1}}) // it may take longer than the first ping
	c := dialFrozen(t, s, "/echo")
	const messages = 12
	large := func(i int) []byte { return []byte(strings.Repeat(fmt.Sprintf("%015d\n", i), 1<<16)) }
	sent := make(chan error, 1)
	go func() {
		for i := range messages {
			if _, err := c.conn.Write(masked(0x81, large(i))); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	slow := &slowReader{r: c.conn}
	c.r = bufio.NewReader(slow)
	for i := range messages {
		op, payload, err := c.frame()
		if op != Text || !bytes.Equal(payload, large(i)) || err != nil {
			t.Fatalf("message %d came back as %v of %d bytes, %v", i, op, len(payload), err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing waits", func() bool { return s.Stats().QueuedBytes == 0 })
}

// slowReader rests now and then.
type slowReader struct {
	r io.Reader
	n int
}

func (s *slowReader) Read(p []byte) (int, error) {
	if s.n++; s.n%100 == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.r.Read(p)
}

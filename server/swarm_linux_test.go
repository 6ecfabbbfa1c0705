package server

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"carillon/internal/testenv"
	"carillon/server/internal/sys"
)

// A swarm is another process with thousands of clients on one epoll loop: this process holds the
// server's end of each connection, and both ends together would need too many descriptors.

func init() { swarmMain = runSwarm }

// swarmOrder is what a swarm is told.
type swarmOrder struct {
	Address string
	Path    string
	Conns   int
	Expect  int  // say so when every client has this many messages
	Discard bool // only read, do not look
	Publish int  // when told to go, so many clients publish, each again when it gets its message back
	Apart   int  // if above 0, run on the processor of this number, behind others there
	Probe   int  // instead of all that: time so many echoes on one connection
	TLS     bool // the handshakes are over TLS; what comes then is only read
}

// swarmReport is what it says in the end.
type swarmReport struct {
	Messages   int // of all clients together
	Incomplete int // clients that did not get Expect messages
	Wrong      int // messages that were not the next number
	Closed     int // clients that got a close frame
	Cut        int // clients whose connection ended without one
	FirstWrong string

	P50, P99, Max time.Duration // of the echoes
}

// swarm is the parent's view of it.
type swarm struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

func startSwarm(t testing.TB, s *Server, order swarmOrder) *swarm {
	t.Helper()
	if s != nil {
		order.Address = s.Addr().String()
	}
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	w := &swarm{t: t, cmd: testenv.Command(os.Args[0])}
	w.cmd.Env = append(os.Environ(), swarmEnv+"="+string(text))
	w.cmd.Stderr = os.Stderr
	w.stdin, _ = w.cmd.StdinPipe()
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	w.lines = bufio.NewReader(out)
	t.Cleanup(func() { _ = w.cmd.Process.Kill(); _ = w.cmd.Wait() })
	w.wait("connected")
	return w
}

// wait reads the line that the swarm prints when it is that far.
func (w *swarm) wait(word string) string {
	w.t.Helper()
	line, err := w.lines.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, word) {
		w.t.Fatalf("swarm said %q, %v; want %q", line, err, word)
	}
	return strings.TrimSpace(strings.TrimPrefix(line, word))
}

// publish has the swarm's publishers begin.
func (w *swarm) publish() {
	w.t.Helper()
	if _, err := io.WriteString(w.stdin, "go\n"); err != nil {
		w.t.Fatal(err)
	}
}

// end has the swarm leave and returns its report.
func (w *swarm) end() (r swarmReport) {
	w.t.Helper()
	_ = w.stdin.Close()
	if err := json.Unmarshal([]byte(w.wait("report")), &r); err != nil {
		w.t.Fatal(err)
	}
	return r
}

type swarmClient struct {
	fd      int
	next    uint32
	rest    []byte // of an incomplete frame
	told    bool   // complete, and counted so
	closing bool
	publish []byte // its message, if it is one of those
}

type swarmState struct {
	order   swarmOrder
	epoll   int
	clients map[int]*swarmClient
	buf     []byte
	report  swarmReport
	full    int // clients that have all
}

func runSwarm() {
	st := &swarmState{clients: map[int]*swarmClient{}, buf: make([]byte, 1<<20)}
	if err := json.Unmarshal([]byte(os.Getenv(swarmEnv)), &st.order); err != nil {
		panic(err)
	}
	var err error
	if st.epoll, err = unix.EpollCreate1(0); err != nil {
		panic(err)
	}
	address, _ := net.ResolveTCPAddr("tcp", st.order.Address)
	if st.order.Probe > 0 {
		st.probe(address)
		return
	}
	for i := range st.order.Conns {
		c, err := swarmDial(address, st.order)
		if err != nil {
			panic(fmt.Errorf("client %d: %w", i, err))
		}
		st.clients[c.fd] = c
		st.take(c, nil) // what came with the handshake
		_ = unix.SetNonblock(c.fd, true)
		_ = unix.EpollCtl(st.epoll, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(c.fd)})
	}
	if st.order.Apart > 0 {
		runOn(st.order.Apart, st.order.Apart+1)
		eachThread(func(tid int) { // SCHED_IDLE: unlike nice, it lets others go first at once
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(tid), 5, uintptr(unsafe.Pointer(new([1]int32))))
		})
	}
	fmt.Println("connected")
	orders := make(chan bool) // one to go, and closed to leave
	go func() {
		defer close(orders)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			orders <- true
		}
	}()
	st.loop(orders)
	for _, c := range st.clients {
		if !st.order.Discard && int(c.next) < st.order.Expect {
			st.report.Incomplete++
		}
		_ = unix.Close(c.fd)
	}
	text, _ := json.Marshal(st.report)
	fmt.Printf("report %s\n", text)
}

// probe times echoes of 128 B, one after the other, a millisecond apart.
func (st *swarmState) probe(address *net.TCPAddr) {
	c, err := swarmDial(address, st.order)
	if err != nil {
		panic(err)
	}
	if st.order.Apart > 0 {
		runOn(st.order.Apart, st.order.Apart+1)
	}
	fmt.Println("connected")
	request := masked(0x82, make([]byte, 128))
	took := make([]time.Duration, st.order.Probe)
	// Raw system calls on a thread of our own, so that Go's scheduler adds nothing to the time.
	runtime.LockOSThread()
	for i := range took {
		begin := time.Now()
		if _, errno := sys.Write(int32(c.fd), request); errno != 0 {
			panic(errno)
		}
		for got := 0; got < 132; {
			n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&st.buf[0])), uintptr(len(st.buf)))
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 || n == 0 {
				panic(fmt.Errorf("echo %d: %d bytes, %w", i, n, errno))
			}
			got += int(n)
		}
		took[i] = time.Since(begin)
		_, _, _ = syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&unix.Timespec{Nsec: 1e6})), 0, 0)
	}
	slices.Sort(took)
	st.report.P50, st.report.P99, st.report.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	text, _ := json.Marshal(st.report)
	fmt.Printf("report %s\n", text)
}

// blocking is a socket for crypto/tls, as far as that needs one.
type blocking struct {
	net.Conn
	fd int
}

func (b blocking) Write(p []byte) (int, error) { return unix.Write(b.fd, p) }

func (b blocking) Read(p []byte) (int, error) {
	for {
		if n, err := unix.Read(b.fd, p); err != unix.EINTR {
			if n == 0 && err == nil {
				err = io.EOF
			}
			return max(n, 0), err
		}
	}
}

func swarmDial(address *net.TCPAddr, order swarmOrder) (*swarmClient, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrInet4{Port: address.Port}
	copy(to.Addr[:], address.IP.To4())
	if err := unix.Connect(fd, to); err != nil { // an interrupt needs no care: the signals restart it
		return nil, err
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	var conn io.ReadWriter = blocking{fd: fd}
	if order.TLS {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // the request must not wait for an answer to what ends the handshake
		conn = tls.Client(blocking{fd: fd}, &tls.Config{InsecureSkipVerify: true})
	}
	if _, err := conn.Write([]byte(upgradeHead(order.Path))); err != nil {
		return nil, err
	}
	var head []byte
	for {
		var buf [4096]byte
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, fmt.Errorf("handshake: %d bytes, %w", n, err)
		}
		head = append(head, buf[:n]...)
		answer, rest, found := strings.Cut(string(head), "\r\n\r\n")
		if !found {
			continue
		}
		if !strings.HasPrefix(answer, "HTTP/1.1 101") {
			return nil, fmt.Errorf("handshake: %s", answer)
		}
		return &swarmClient{fd: fd, rest: []byte(rest)}, nil
	}
}

func (st *swarmState) loop(orders chan bool) {
	events := make([]unix.EpollEvent, 512)
	told := false
	for {
		select {
		case _, ok := <-orders:
			if !ok {
				return
			}
			st.publish()
		default:
		}
		n, err := unix.EpollWait(st.epoll, events, 50)
		if err != nil && err != unix.EINTR {
			panic(err)
		}
		for _, ev := range events[:max(n, 0)] {
			if c := st.clients[int(ev.Fd)]; c != nil {
				st.read(c)
			}
		}
		if !told && st.order.Expect > 0 && st.full == st.order.Conns {
			told = true
			fmt.Println("complete")
		}
	}
}

func (st *swarmState) publish() {
	for _, c := range st.clients {
		if st.order.Publish == 0 {
			return
		}
		st.order.Publish--
		c.publish = masked(0x82, numbered(c.fd, 128))
		_, _ = unix.Write(c.fd, c.publish)
	}
}

func (st *swarmState) read(c *swarmClient) {
	n, err := unix.Read(c.fd, st.buf)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if n <= 0 || err != nil {
		if !c.closing {
			st.report.Cut++
		}
		st.drop(c)
		return
	}
	if !st.order.Discard || c.publish != nil {
		st.take(c, st.buf[:n])
	}
}

func (st *swarmState) drop(c *swarmClient) {
	if !st.order.Discard && int(c.next) < st.order.Expect {
		st.report.Incomplete++
	}
	_ = unix.Close(c.fd)
	delete(st.clients, c.fd)
}

// take checks the frames in b, all of which are short or of 16-bit length.
func (st *swarmState) take(c *swarmClient, b []byte) {
	if len(c.rest) > 0 {
		b = append(c.rest, b...)
	}
	for len(b) >= 2 {
		head, n := 2, int(b[1])
		if n == 126 {
			if len(b) < 4 {
				break
			}
			head, n = 4, int(binary.BigEndian.Uint16(b[2:]))
		}
		if len(b) < head+n {
			break
		}
		st.frame(c, b[0], b[head:head+n])
		b = b[head+n:]
	}
	c.rest = append([]byte(nil), b...)
}

func (st *swarmState) frame(c *swarmClient, first byte, payload []byte) {
	switch first {
	case 0x81, 0x82:
		if c.publish != nil {
			if binary.BigEndian.Uint32(payload) == uint32(c.fd) {
				_, _ = unix.Write(c.fd, c.publish)
			}
			return
		}
		st.report.Messages++
		if len(payload) < 4 || binary.BigEndian.Uint32(payload) != c.next {
			if st.report.Wrong++; st.report.FirstWrong == "" {
				st.report.FirstWrong = fmt.Sprintf("want %d, got %x", c.next, payload[:min(len(payload), 8)])
			}
		}
		c.next++
		if !c.told && int(c.next) == st.order.Expect {
			c.told = true
			st.full++
		}
	case 0x88:
		st.report.Closed++
		c.closing = true
		_, _ = unix.Write(c.fd, masked(0x88, payload))
	}
}

// runOn keeps this process on the processors from first to before end.
func runOn(first, end int) {
	var set unix.CPUSet
	for cpu := first; cpu < end; cpu++ {
		set.Set(cpu)
	}
	eachThread(func(tid int) { _ = unix.SchedSetaffinity(tid, &set) })
}

func eachThread(do func(tid int)) {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, thread := range threads {
		if tid, err := strconv.Atoi(thread.Name()); err == nil {
			do(tid)
		}
	}
}

// cpuTime is the processor time of this process.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

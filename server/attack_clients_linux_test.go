package server

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type attackPhase int

const (
	phaseNone attackPhase = iota
	phaseQuiet
	phaseAttack
	phaseAfter
)

// goodClients are the well-behaved clients.
type goodClients struct {
	b       *testing.B
	address string
	secured string // newcomers come here, too, if it is set: with TLS
	phase   atomic.Int32
	stop    chan struct{}
	running sync.WaitGroup
	echoes  []*goodEcho
	beside  *goodEcho // sends what the row says; or nil
	readers []*goodReader
	connect atomic.Int64 // the longest, during the attack
	topic   atomic.Int64
	last    atomic.Int64 // number of the message that was published last

	mu       sync.Mutex
	problems []string
	failed   int // clients that were cut off or refused
}

const goodInterval = 50 * time.Millisecond

func newGoodClients(b *testing.B, address, secured string, server *attackChild) *goodClients {
	setNice(niceClients)
	z := &goodClients{b: b, address: address, secured: secured, stop: make(chan struct{})}
	for counts := []int{0, 0}; min(counts[0], counts[1]) < 2 || len(z.echoes) < 6; {
		conn := z.open("/echo")
		z.echoes = append(z.echoes, &goodEcho{goodClients: z, conn: conn})
		server.say("loops")
		server.hear(&counts)
	}
	for range 4 {
		z.readers = append(z.readers, &goodReader{goodClients: z, conn: z.open("/ws?topic=good.feed")})
	}
	events := &goodReader{goodClients: z, conn: z.connectTo("GET /ws?topic=good.feed HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n", "HTTP/1.1 200"), events: true}
	z.readers = append(z.readers, events)
	publisher := z.open("/ws", speakJSON)

	for i, e := range z.echoes {
		z.running.Go(func() { e.send(time.Duration(i) * goodInterval / time.Duration(len(z.echoes))) })
		go e.receive()
	}
	for _, r := range z.readers {
		go r.receive()
	}
	z.running.Go(func() { z.publish(publisher) })
	z.running.Go(z.arrive)
	return z
}

// goodConn is a connection and what has been read of it.
type goodConn struct {
	net.Conn
	r *bufio.Reader
}

// connectTo connects and sends a request's head. The answer must begin in a certain way.
func (z *goodClients) connectTo(head, want string) *goodConn {
	conn, err := dialGood(z.address, false, head, want)
	if err != nil {
		z.b.Fatal(err)
	}
	return conn
}

func dialGood(address string, overTLS bool, head, want string) (*goodConn, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if overTLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	r := bufio.NewReader(conn)
	_, err = io.WriteString(conn, head)
	for first := true; err == nil; first = false {
		var line string
		line, err = r.ReadString('\n')
		if err == nil && first && !strings.HasPrefix(line, want) {
			err = fmt.Errorf("answer: %s", line)
		}
		if line == "\r\n" {
			break
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return &goodConn{conn, r}, nil
}

func (z *goodClients) open(path string, headers ...string) *goodConn {
	return z.connectTo(upgradeHead(path, headers...), "HTTP/1.1 101")
}

func (z *goodClients) begin(p attackPhase) { z.phase.Store(int32(p)) }

func (z *goodClients) now() attackPhase { return attackPhase(z.phase.Load()) }

// problem notes that a client was not served.
func (z *goodClients) problem(format string, args ...any) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.over() {
		return
	}
	z.failed++
	if len(z.problems) < 10 {
		z.problems = append(z.problems, fmt.Sprintf(format, args...))
	}
}

func (z *goodClients) over() bool {
	select {
	case <-z.stop:
		return true
	default:
		return false
	}
}

// end waits for what is still on its way, some seconds at most.
func (z *goodClients) end() {
	z.begin(phaseNone)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && z.missing() > 0; {
		time.Sleep(20 * time.Millisecond)
	}
	close(z.stop)
	z.running.Wait()
}

func (z *goodClients) close() {
	for _, e := range z.allEchoes() {
		_ = e.conn.Close()
	}
	for _, r := range z.readers {
		_ = r.conn.Close()
	}
	setNice(0)
}

func (z *goodClients) allEchoes() []*goodEcho {
	if z.beside == nil {
		return z.echoes
	}
	return append(slices.Clone(z.echoes), z.beside)
}

// missing is how many echoes and messages of the phases have not come.
func (z *goodClients) missing() (n int) {
	for _, e := range z.allEchoes() {
		e.mu.Lock()
		n += len(e.waiting)
		e.mu.Unlock()
	}
	for _, r := range z.readers {
		n += int(z.last.Load() - r.last.Load())
	}
	return n
}

func (z *goodClients) lost() int {
	n := z.failed
	for _, e := range z.allEchoes() {
		n += len(e.waiting)
	}
	for _, r := range z.readers {
		n += int(z.last.Load()-r.last.Load()) + r.holes
	}
	return n
}

type attackTimes struct{ p50, p99, max time.Duration }

func (z *goodClients) times(p attackPhase, echoes ...*goodEcho) attackTimes {
	var all []time.Duration
	for _, e := range echoes {
		for _, s := range e.samples {
			if s.phase == p {
				all = append(all, s.took)
			}
		}
		for _, w := range e.waiting {
			if w.phase == p {
				all = append(all, time.Since(w.due))
			}
		}
	}
	if len(all) == 0 {
		return attackTimes{}
	}
	slices.Sort(all)
	return attackTimes{all[len(all)/2], all[len(all)*99/100], all[len(all)-1]}
}

// goodEcho is a client of /echo, or of another endpoint that answers each message with one.
type goodEcho struct {
	*goodClients
	conn    *goodConn
	message []byte // the frame to send each time, whatever the answer is; nil for numbers

	mu      sync.Mutex
	waiting []echoDue // for their echoes, in order
	samples []echoTime
}

// goodRequest is a frame that is answered with a short one.
type goodRequest struct {
	path    string
	headers []string
	message []byte
}

// besides adds a client that sends the same again and again.
func (z *goodClients) besides(r goodRequest) {
	z.beside = &goodEcho{goodClients: z, conn: z.open(r.path, r.headers...), message: r.message}
	z.running.Go(func() { z.beside.send(0) })
	go z.beside.receive()
}

type echoDue struct {
	due   time.Time
	phase attackPhase
}

type echoTime struct {
	took  time.Duration
	phase attackPhase
}

// every calls do at each time that is due until the end.
func (z *goodClients) every(interval, offset time.Duration, do func(due time.Time) error) error {
	for due := time.Now().Add(offset); ; due = due.Add(interval) {
		select {
		case <-z.stop:
			return nil
		case <-time.After(time.Until(due)):
		}
		if err := do(due); err != nil {
			return err
		}
	}
}

func (e *goodEcho) send(offset time.Duration) {
	n, interval := 0, goodInterval
	if e.message != nil {
		interval *= 4
	}
	err := e.every(interval, offset, func(due time.Time) error {
		if e.now() == phaseNone {
			return nil
		}
		e.mu.Lock()
		e.waiting = append(e.waiting, echoDue{due, e.now()})
		e.mu.Unlock()
		n++
		message := e.message
		if message == nil {
			message = text(words(n))
		}
		_, err := e.conn.Write(message)
		return err
	})
	if err != nil {
		e.problem("echo: %v", err)
	}
}

func (e *goodEcho) receive() {
	for n := 1; ; n++ {
		payload, err := e.conn.frame()
		if err == nil && e.message == nil && string(payload) != words(n) {
			err = fmt.Errorf("got %.40q instead of number %d", payload, n)
		}
		if err == nil && e.message != nil && strings.Contains(string(payload), `"error"`) {
			err = fmt.Errorf("got %s", payload)
		}
		if err != nil {
			e.problem("echo: %v", err)
			return
		}
		e.mu.Lock()
		e.samples = append(e.samples, echoTime{time.Since(e.waiting[0].due), e.waiting[0].phase})
		e.waiting = e.waiting[1:]
		e.mu.Unlock()
	}
}

// frame reads the payload of a short message. Pings are answered.
func (c *goodConn) frame() ([]byte, error) {
	for {
		head, err := c.r.Peek(2)
		if err != nil {
			return nil, err
		}
		first, n := head[0], int(head[1])
		_, _ = c.r.Discard(2)
		if n == 126 {
			if head, err = c.r.Peek(2); err != nil {
				return nil, err
			}
			n = int(head[0])<<8 | int(head[1])
			_, _ = c.r.Discard(2)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(c.r, payload); err != nil {
			return nil, err
		}
		switch first {
		case 0x81, 0x82, 0xc1:
			return payload, nil
		case 0x89:
			if _, err := c.Write(masked(0x8a, payload)); err != nil {
				return nil, err
			}
		case 0x88:
			return nil, fmt.Errorf("closed: %q", payload)
		}
	}
}

// goodMessage is what is published.
type goodMessage struct {
	N     int64
	Due   int64 // in nanoseconds since 1970
	Phase attackPhase
}

func (z *goodClients) publish(conn *goodConn) {
	go func() {
		for { // nothing comes but errors
			payload, err := conn.frame()
			if err != nil {
				z.problem("publisher: %v", err)
				return
			}
			z.problem("publisher: %s", payload)
		}
	}()
	err := z.every(goodInterval, goodInterval/2, func(due time.Time) error {
		if z.now() == phaseNone {
			return nil
		}
		data, _ := json.Marshal(goodMessage{z.last.Add(1), due.UnixNano(), z.now()})
		_, err := conn.Write(text(`{"publish":{"topic":"good.feed","data":` + string(data) + `}}`))
		return err
	})
	if err != nil {
		z.problem("publisher: %v", err)
	}
	_ = conn.Close()
}

// goodReader is a subscriber.
type goodReader struct {
	*goodClients
	conn   *goodConn
	events bool
	last   atomic.Int64
	holes  int // messages that were left out
}

func (r *goodReader) receive() {
	for {
		payload, err := r.next()
		var m goodMessage
		if err == nil {
			err = json.Unmarshal(payload, &m)
		}
		if err != nil {
			r.problem("subscriber: %v", err)
			return
		}
		if took := time.Now().UnixNano() - m.Due; m.Phase == phaseAttack {
			r.topic.Store(max(r.topic.Load(), took))
		}
		r.holes += int(m.N - r.last.Swap(m.N) - 1)
	}
}

// next is the next message.
func (r *goodReader) next() ([]byte, error) {
	if !r.events {
		return r.conn.frame()
	}
	for event := ""; ; {
		line, err := r.conn.r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			event = name
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok && event == "" {
			return []byte(data), nil
		}
		if line == "" {
			event = ""
		}
	}
}

// arrive opens connections and closes them again.
func (z *goodClients) arrive() {
	var all sync.WaitGroup
	i := 0
	_ = z.every(2*goodInterval, 0, func(due time.Time) error {
		p := z.now()
		if p == phaseNone {
			return nil
		}
		address, overTLS := z.address, false
		if z.secured != "" && i%2 == 1 {
			address, overTLS = z.secured, true
		}
		i++
		all.Go(func() {
			conn, err := dialGood(address, overTLS, upgradeHead("/echo"), "HTTP/1.1 101")
			if err != nil {
				z.problem("newcomer: %v", err)
				return
			}
			if took := int64(time.Since(due)); p == phaseAttack {
				z.mu.Lock()
				z.connect.Store(max(z.connect.Load(), took))
				z.mu.Unlock()
			}
			_ = conn.Close()
		})
		return nil
	})
	all.Wait()
}

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"carillon/loadtest/internal/wsclient"
)

// faulty is a WebSocket server that makes the faults a test asks for and counts them. The zero value has
// none.
type faulty struct {
	broadcast bool                                       // else echo
	others    bool                                       // broadcast: senders do not get their own messages
	answer    string                                     // instead of the handshake response
	accept    string                                     // instead of the right accept key
	first     []byte                                     // sent as soon as a connection is open
	frame     func(payload []byte) []byte                // encodes a frame
	deliver   func(r *receiver, message []byte) [][]byte // what a receiver gets instead of a message
	after     time.Duration                              // time from the first message until the server dies
	max       int                                        // connections accepted; 0 is unlimited
	peer      *faulty                                    // broadcast: also gets every message

	url string

	mu        sync.Mutex
	receivers []*receiver
	opened    int    // connections so far
	messages  int    // received
	host      string // of the last handshake
	delivered int    // frames sent
	faults    int    // counted by deliver
	dies      sync.Once
}

// receiver is one connection.
type receiver struct {
	conn  net.Conn
	count int    // messages for it
	held  []byte // a message to be sent later
}

// serve runs the server until the test ends.
func (f *faulty) serve(t *testing.T) *faulty {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = fmt.Sprintf("ws://%s/", l.Addr())
	t.Cleanup(func() { l.Close(); f.end() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.receive(conn)
		}
	}()
	return f
}

// end closes all connections.
func (f *faulty) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.receivers {
		r.conn.Close()
	}
}

func (f *faulty) receive(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	request, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	if f.answer != "" {
		io.WriteString(conn, f.answer)
		return
	}
	f.mu.Lock()
	f.host = request.Host
	full := f.max > 0 && f.opened >= f.max
	f.mu.Unlock()
	if full {
		io.WriteString(conn, "HTTP/1.1 503 Full\r\n\r\n")
		return
	}
	accept := wsclient.AcceptFor([]byte(request.Header.Get("Sec-WebSocket-Key")))
	if f.accept != "" {
		accept = f.accept
	}
	r := &receiver{conn: conn}
	f.mu.Lock()
	f.receivers = append(f.receivers, r)
	f.opened++
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n%s", accept, f.first)
	f.mu.Unlock()
	for {
		op, payload, err := readClientFrame(in)
		if err != nil || op == wsclient.OpClose {
			f.leave(r)
			return
		}
		if op == wsclient.OpText || op == wsclient.OpBinary {
			f.message(r, op, payload)
			if f.peer != nil {
				f.peer.message(nil, op, payload)
			}
		}
	}
}

func (f *faulty) leave(r *receiver) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.receivers {
		if f.receivers[i] == r {
			f.receivers = append(f.receivers[:i:i], f.receivers[i+1:]...)
			return
		}
	}
}

// message delivers a message, with faults.
func (f *faulty) message(from *receiver, op byte, payload []byte) {
	if f.after > 0 {
		f.dies.Do(func() { time.AfterFunc(f.after, f.end) })
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages++
	to := []*receiver{from}
	if f.broadcast {
		to = f.receivers
	}
	for _, r := range to {
		if f.others && r == from {
			continue
		}
		messages := [][]byte{payload}
		if f.deliver != nil {
			messages = f.deliver(r, payload)
		}
		r.count++
		for _, m := range messages {
			b := serverFrame(0x80|op, m)
			if f.frame != nil {
				b = f.frame(m)
			}
			f.delivered++
			r.conn.Write(b)
		}
	}
}

func readClientFrame(in *bufio.Reader) (op byte, payload []byte, err error) {
	var head [8]byte
	if _, err = io.ReadFull(in, head[:2]); err != nil {
		return 0, nil, err
	}
	op = head[0] & 0x0f
	n := uint64(head[1] & 0x7f)
	if head[1]&0x80 == 0 {
		return 0, nil, fmt.Errorf("frame without a mask")
	}
	switch n {
	case 126:
		_, err = io.ReadFull(in, head[:2])
		n = uint64(binary.BigEndian.Uint16(head[:2]))
	case 127:
		_, err = io.ReadFull(in, head[:8])
		n = binary.BigEndian.Uint64(head[:8])
	}
	if err != nil {
		return 0, nil, err
	}
	var key [4]byte
	if _, err = io.ReadFull(in, key[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	if _, err = io.ReadFull(in, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= key[i&3]
	}
	return op, payload, nil
}

// every applies fault to each nth delivery to a receiver.
func (f *faulty) every(n int, fault func(r *receiver, m []byte) [][]byte) func(*receiver, []byte) [][]byte {
	return func(r *receiver, m []byte) [][]byte {
		if r.count%n != n-1 {
			return [][]byte{m}
		}
		f.faults++
		return fault(r, m)
	}
}

// masked encodes a frame that only a client may send.
func masked(m []byte) []byte {
	return wsclient.AppendFrame(nil, wsclient.OpBinary, false, 0x01020304, m)
}

// fragmented encodes a message as three frames with a ping in between.
func fragmented(m []byte) []byte {
	return bytes.Join([][]byte{
		serverFrame(0x02, m[:10]), serverFrame(0x89, []byte("are you there?")), serverFrame(0x00, nil), serverFrame(0x80, m[10:]),
	}, nil)
}

// serverFrame encodes a frame as a server sends it.
func serverFrame(b0 byte, payload []byte) []byte {
	switch n := len(payload); {
	case n < 126:
		return append([]byte{b0, byte(n)}, payload...)
	case n < 1<<16:
		return append([]byte{b0, 126, byte(n >> 8), byte(n)}, payload...)
	default:
		return append(binary.BigEndian.AppendUint64([]byte{b0, 127}, uint64(n)), payload...)
	}
}

package peers

import (
	"context"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// dial connects with gorilla's client.
func dial(t *testing.T, addr, path string) *websocket.Conn {
	t.Helper()
	return dialWith(t, &websocket.Dialer{}, addr, path)
}

func dialWith(t *testing.T, d *websocket.Dialer, addr, path string) *websocket.Conn {
	t.Helper()
	conn, _, err := d.Dial("ws://"+addr+path, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	return conn
}

// join connects to /broadcast and waits until the connection is among the receivers: the handshake may
// be over before that. It leaves its greeting to those who are there already.
func join(t *testing.T, d *websocket.Dialer, addr string) *websocket.Conn {
	t.Helper()
	conn := dialWith(t, d, addr, "/broadcast")
	name := conn.LocalAddr().String()
	send(t, conn, websocket.TextMessage, []byte(greeting+name))
	for {
		if _, payload := receive(t, conn); string(payload) == greeting+name {
			return conn
		}
	}
}

const greeting = "hello from "

func send(t *testing.T, conn *websocket.Conn, kind int, payload []byte) {
	t.Helper()
	if err := conn.WriteMessage(kind, payload); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn *websocket.Conn) (int, []byte) {
	t.Helper()
	kind, payload, err := conn.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	return kind, payload
}

// narrow is a dialer for a client that reads little ahead.
func narrow() *websocket.Dialer {
	inner := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		_ = raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		})
		return err
	}}
	return &websocket.Dialer{NetDialContext: inner.DialContext}
}

// exchange sends one message and returns the next that comes.
type exchange func(kind int, payload []byte) (int, []byte, error)

// clients are two independent implementations, so that no library is checked by itself alone.
var clients = map[string]func(t *testing.T, addr, path string) exchange{
	"gorilla": func(t *testing.T, addr, path string) exchange {
		conn := dial(t, addr, path)
		return func(kind int, payload []byte) (int, []byte, error) {
			if err := conn.WriteMessage(kind, payload); err != nil {
				return 0, nil, err
			}
			return conn.ReadMessage()
		}
	},
	"coder": func(t *testing.T, addr, path string) exchange {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		t.Cleanup(cancel)
		conn, _, err := coder.Dial(ctx, "ws://"+addr+path, &coder.DialOptions{HTTPClient: &http.Client{}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		conn.SetReadLimit(-1)
		return func(kind int, payload []byte) (int, []byte, error) {
			if err := conn.Write(ctx, coder.MessageType(kind), payload); err != nil {
				return 0, nil, err
			}
			kind2, got, err := conn.Read(ctx)
			return int(kind2), got, err
		}
	},
}

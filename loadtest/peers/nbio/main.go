// Nbio is a peer on github.com/lesismal/nbio: its HTTP engine in the non-blocking mode, in which event
// loops read all connections and a pool of goroutines runs the handlers.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/lesismal/nbio/logging"
	"github.com/lesismal/nbio/nbhttp"
	"github.com/lesismal/nbio/nbhttp/websocket"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{Compression: true, Queue: true}, serve) }

func serve(ctx context.Context, ln net.Listener, o peer.Options) error {
	logging.Output = os.Stderr // standard output says where the peer listens and nothing else
	logging.SetLevel(logging.LevelWarn)

	mux := http.NewServeMux()
	mux.Handle("GET /echo", upgrade(echo(o)))
	mux.Handle("GET /broadcast", upgrade(broadcast(o)))
	engine := nbhttp.NewEngine(nbhttp.Config{
		Network:                 "tcp",
		Addrs:                   []string{ln.Addr().String()},
		Listen:                  func(string, string) (net.Listener, error) { return ln, nil },
		Handler:                 mux,
		IOMod:                   nbhttp.IOModNonBlocking,
		MaxLoad:                 1_000_000, // as in the examples: the default is 10,000 connections
		ReleaseWebsocketPayload: true,

		// The library counts bytes, not messages, and closes a connection for which more wait.
		MaxWriteBufferSize: o.Queue << 10,
	})
	if err := engine.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	// It also waits for every connection to be closed, which a process that is about to exit does not need.
	ending, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = engine.Shutdown(ending)
	return nil
}

func newUpgrader(o peer.Options) *websocket.Upgrader {
	u := websocket.NewUpgrader()
	u.KeepaliveTime = 0 // no time-outs, as in every peer
	u.MessageLengthLimit = peer.MaxMessage
	u.EnableCompression(o.Compression)
	return u
}

func upgrade(u *websocket.Upgrader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = u.Upgrade(w, r, nil) // it has answered when it fails
	}
}

func echo(o peer.Options) *websocket.Upgrader {
	u := newUpgrader(o)
	u.OnMessage(func(conn *websocket.Conn, kind websocket.MessageType, payload []byte) {
		conn.EnableWriteCompression(len(payload) >= peer.CompressFrom)
		_ = conn.WriteMessage(kind, payload)
	})
	return u
}

// broadcast writes each message to all connections from the handler of its sender. WriteMessage does
// not block: what a socket does not take is copied to a buffer that the event loop flushes.
func broadcast(o peer.Options) *websocket.Upgrader {
	var (
		mu      sync.RWMutex
		members = map[*websocket.Conn]struct{}{} // guarded by mu
	)
	u := newUpgrader(o)
	u.OnOpen(func(conn *websocket.Conn) {
		mu.Lock()
		defer mu.Unlock()
		members[conn] = struct{}{}
	})
	u.OnClose(func(conn *websocket.Conn, _ error) {
		mu.Lock()
		defer mu.Unlock()
		delete(members, conn)
	})
	u.OnMessage(func(_ *websocket.Conn, kind websocket.MessageType, payload []byte) {
		mu.RLock()
		defer mu.RUnlock()
		for conn := range members {
			_ = conn.WriteMessage(kind, payload)
		}
	})
	return u
}

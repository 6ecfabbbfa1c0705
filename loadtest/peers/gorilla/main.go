// Gorilla is a peer on github.com/gorilla/websocket, built like the chat example of that library: a hub
// goroutine that knows all clients, and a goroutine for reading and one for writing per client.
package main

import (
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/gorilla/websocket"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{Compression: true, Queue: true}, serve) }

func serve(ctx context.Context, ln net.Listener, o peer.Options) error {
	upgrader := &websocket.Upgrader{
		// As in the chat example. A prepared message is written without the write buffer, so with a
		// pool an idle connection has none.
		ReadBufferSize:    1024,
		WriteBufferSize:   1024,
		WriteBufferPool:   &sync.Pool{},
		EnableCompression: o.Compression,
	}
	h := &hub{
		queue:      o.Queue,
		clients:    map[*client]struct{}{},
		register:   make(chan *client),
		unregister: make(chan *client),
		broadcast:  make(chan *message),
	}
	go h.run()

	// Both handlers return at once, so that the memory of the request can be collected.
	return peer.HTTP(ctx, ln,
		func(w http.ResponseWriter, r *http.Request) {
			if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
				go echo(conn)
			}
		},
		func(w http.ResponseWriter, r *http.Request) {
			if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
				h.join(conn)
			}
		},
	)
}

func echo(conn *websocket.Conn) {
	defer conn.Close()
	conn.SetReadLimit(peer.MaxMessage)
	for {
		kind, payload, err := conn.ReadMessage()
		if err != nil {
			return
		}
		conn.EnableWriteCompression(len(payload) >= peer.CompressFrom)
		if err := conn.WriteMessage(kind, payload); err != nil {
			return
		}
	}
}

// Coder is a peer on github.com/coder/websocket, built like the chat example of that library: a set of
// subscribers behind a mutex, each with a buffered channel of messages.
package main

import (
	"context"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{Compression: true, Queue: true}, serve) }

func serve(ctx context.Context, ln net.Listener, o peer.Options) error {
	s := &server{queue: o.Queue, subscribers: map[*subscriber]struct{}{}}
	if o.Compression {
		// Its threshold in this mode is peer.CompressFrom by default, and its level 1.
		s.accept.CompressionMode = websocket.CompressionNoContextTakeover
	}
	return peer.HTTP(ctx, ln, s.echo, s.broadcast)
}

type server struct {
	accept websocket.AcceptOptions // immutable
	queue  int                     // immutable

	mu          sync.Mutex
	subscribers map[*subscriber]struct{} // guarded by mu
}

// subscriber is one connection of /broadcast.
type subscriber struct {
	conn     *websocket.Conn
	messages chan *message // closed when the subscriber has left the set
}

type message struct {
	kind    websocket.MessageType
	payload []byte
}

// background has no end: for a context that can end the library registers a callback at each call, and
// no peer has time-outs.
var background = context.Background()

func (s *server) echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &s.accept)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(peer.MaxMessage)
	for {
		kind, payload, err := conn.Read(background)
		if err != nil {
			return
		}
		if err := conn.Write(background, kind, payload); err != nil {
			return
		}
	}
}

func (s *server) broadcast(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &s.accept)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(peer.MaxMessage)

	sub := &subscriber{conn: conn, messages: make(chan *message, s.queue)}
	s.add(sub)
	defer s.remove(sub)
	go sub.write()
	for {
		kind, payload, err := conn.Read(background)
		if err != nil {
			return
		}
		s.publish(&message{kind, payload})
	}
}

func (s *server) publish(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		select {
		case sub.messages <- m:
		default:
			delete(s.subscribers, sub)
			close(sub.messages)
			// It waits for the library's own goroutines.
			go sub.conn.CloseNow()
		}
	}
}

func (s *server) add(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[sub] = struct{}{}
}

func (s *server) remove(sub *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.subscribers[sub]; ok {
		delete(s.subscribers, sub)
		close(sub.messages)
	}
}

func (sub *subscriber) write() {
	defer sub.conn.CloseNow()
	for m := range sub.messages {
		if err := sub.conn.Write(background, m.kind, m.payload); err != nil {
			return
		}
	}
}

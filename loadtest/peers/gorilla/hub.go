package main

import (
	"github.com/gorilla/websocket"

	"carillon/loadtest/peers/internal/peer"
)

// hub hands each message to every client.
type hub struct {
	queue      int                  // immutable
	clients    map[*client]struct{} // owned by run
	register   chan *client
	unregister chan *client
	broadcast  chan *message
}

// message is encoded, and compressed, once for all clients.
type message struct {
	prepared *websocket.PreparedMessage
	compress bool
}

func (h *hub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = struct{}{}
		case c := <-h.unregister:
			h.remove(c)
		case m := <-h.broadcast:
			for c := range h.clients {
				select {
				case c.send <- m:
				default:
					// The writer may be stuck in a write, which only closing the socket ends.
					_ = c.conn.Close()
					h.remove(c)
				}
			}
		}
	}
}

func (h *hub) remove(c *client) {
	if _, ok := h.clients[c]; ok {
		delete(h.clients, c)
		close(c.send)
	}
}

// client is one connection of /broadcast.
type client struct {
	conn *websocket.Conn
	send chan *message // closed by the hub
}

func (h *hub) join(conn *websocket.Conn) {
	conn.SetReadLimit(peer.MaxMessage)
	c := &client{conn: conn, send: make(chan *message, h.queue)}
	h.register <- c
	go c.write()
	go c.read(h)
}

func (c *client) read(h *hub) {
	defer func() {
		h.unregister <- c
		_ = c.conn.Close()
	}()
	for {
		kind, payload, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		prepared, err := websocket.NewPreparedMessage(kind, payload)
		if err != nil {
			return
		}
		h.broadcast <- &message{prepared, len(payload) >= peer.CompressFrom}
	}
}

func (c *client) write() {
	defer c.conn.Close()
	for m := range c.send {
		c.conn.EnableWriteCompression(m.compress)
		if err := c.conn.WritePreparedMessage(m.prepared); err != nil {
			return
		}
	}
}

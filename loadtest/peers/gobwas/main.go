// Gobwas is a peer on github.com/gobwas/ws, the codec that carillon uses too, over net: a goroutine for
// each connection that reads it, and a second one only while something waits to be written to it. What
// differs from carillon is the reactor.
package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{Compression: true, Queue: true}, serve) }

func serve(ctx context.Context, ln net.Listener, o peer.Options) error {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	s := &server{options: o, members: map[*outbox]struct{}{}}
	for {
		conn, err := ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// Most likely there are no descriptors left, until a connection ends.
			log.Print(err)
			time.Sleep(10 * time.Millisecond)
		default:
			go s.connection(conn)
		}
	}
}

type server struct {
	options peer.Options // immutable

	mu      sync.RWMutex
	members map[*outbox]struct{} // guarded by mu
}

func (s *server) connection(conn net.Conn) {
	path, deflate, err := s.upgrade(conn)
	switch {
	case err != nil:
		_ = conn.Close()
	case path == "/echo":
		s.echo(conn, deflate)
	default:
		s.broadcast(conn, deflate)
	}
}

// upgrade is the zero-copy upgrade on the bare connection.
func (s *server) upgrade(conn net.Conn) (path string, deflate bool, err error) {
	extension := wsflate.Extension{Parameters: wsflate.DefaultParameters}
	upgrader := ws.Upgrader{OnRequest: func(uri []byte) error {
		if path = string(uri); path != "/echo" && path != "/broadcast" {
			return ws.RejectConnectionError(ws.RejectionStatus(http.StatusNotFound))
		}
		return nil
	}}
	if s.options.Compression {
		upgrader.Negotiate = extension.Negotiate
	}
	_, err = upgrader.Upgrade(conn)
	_, deflate = extension.Accepted()
	return path, deflate, err
}

func (s *server) echo(conn net.Conn, deflate bool) {
	defer conn.Close()
	r := newReader(conn, conn, deflate)
	var frame bytes.Buffer
	for {
		kind, payload, err := r.next()
		if err != nil {
			return
		}
		empty(&frame)
		if err := encode(&frame, kind, payload, deflate); err != nil {
			return
		}
		if _, err := conn.Write(frame.Bytes()); err != nil {
			return
		}
	}
}

func (s *server) broadcast(conn net.Conn, deflate bool) {
	out := &outbox{conn: conn, limit: s.options.Queue, deflate: deflate}
	defer out.end()
	s.mu.Lock()
	s.members[out] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.members, out)
		s.mu.Unlock()
	}()

	r := newReader(conn, out, deflate)
	for {
		kind, payload, err := r.next()
		if err != nil {
			return
		}
		if err := s.publish(kind, payload); err != nil {
			return
		}
	}
}

// publish encodes a message once, or once plain and once compressed, for all connections.
func (s *server) publish(kind ws.OpCode, payload []byte) error {
	var plain, deflated bytes.Buffer
	if err := encode(&plain, kind, payload, false); err != nil {
		return err
	}
	if s.options.Compression {
		if err := encode(&deflated, kind, payload, true); err != nil {
			return err
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for out := range s.members {
		if out.deflate {
			out.send(deflated.Bytes())
		} else {
			out.send(plain.Bytes())
		}
	}
	return nil
}

// Gws is a peer on github.com/lxzan/gws, built like the push example of that library: a concurrent map
// of connections, and a Broadcaster for each message.
package main

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/lxzan/gws"

	"carillon/loadtest/peers/internal/peer"
)

func main() { peer.Main(peer.Has{Compression: true, Queue: true}, serve) }

func serve(ctx context.Context, ln net.Listener, o peer.Options) error {
	members := gws.NewConcurrentMap[*gws.Conn, *backlog]()
	return peer.HTTP(ctx, ln, upgrade(&echo{}, o), upgrade(&broadcast{members: members, queue: int64(o.Queue)}, o))
}

func upgrade(handler gws.Event, o peer.Options) http.HandlerFunc {
	upgrader := gws.NewUpgrader(handler, &gws.ServerOption{
		ReadMaxPayloadSize: peer.MaxMessage,
		PermessageDeflate: gws.PermessageDeflate{
			Enabled:   o.Compression,
			Threshold: peer.CompressFrom,
		},
	})
	return func(w http.ResponseWriter, r *http.Request) {
		if conn, err := upgrader.Upgrade(w, r); err == nil {
			// The library advises against blocking here: the request could not be collected.
			go conn.ReadLoop()
		}
	}
}

// pong answers a ping with its payload, which gws.BuiltinEventHandler leaves out.
type pong struct{ gws.BuiltinEventHandler }

func (pong) OnPing(conn *gws.Conn, payload []byte) { _ = conn.WritePong(payload) }

type echo struct{ pong }

func (*echo) OnMessage(conn *gws.Conn, message *gws.Message) {
	defer message.Close()
	_ = conn.WriteMessage(message.Opcode, message.Bytes())
}

type broadcast struct {
	pong
	members *gws.ConcurrentMap[*gws.Conn, *backlog]
	queue   int64
}

func (b *broadcast) OnOpen(conn *gws.Conn) { b.members.Store(conn, &backlog{}) }

func (b *broadcast) OnClose(conn *gws.Conn, _ error) { b.members.Delete(conn) }

func (b *broadcast) OnMessage(_ *gws.Conn, message *gws.Message) {
	defer message.Close()
	out := gws.NewBroadcaster(message.Opcode, message.Bytes())
	defer out.Close()
	b.members.Range(func(conn *gws.Conn, waiting *backlog) bool {
		if waiting.sent-waiting.written.Load() >= b.queue {
			// WriteClose would wait for the write that is stuck.
			_ = conn.NetConn().Close()
			return true
		}
		if out.Broadcast(conn) == nil {
			waiting.add(conn, b.queue)
		}
		return true
	})
}

// backlog counts what waits for one connection. The library's own queue has no limit and no length, so
// after every sixteenth part of a full queue a marker goes into it that says how far it has come.
type backlog struct {
	sent    int64 // guarded by the map, which locks while it ranges
	written atomic.Int64
}

func (b *backlog) add(conn *gws.Conn, queue int64) {
	b.sent++
	if n := b.sent; n%max(1, queue/16) == 0 {
		conn.Async(func() { b.written.Store(n) })
	}
}

package reactor

import (
	"net"
	"slices"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
	"carillon/server/internal/sys"
	"carillon/server/stats"
)

var (
	RejectDraining    = &codec.Rejection{Status: 503, Reason: "server is shutting down", Header: [][2]string{{"Retry-After", "1"}}}
	RejectFull        = &codec.Rejection{Status: 503, Reason: "server is full", Header: [][2]string{{"Retry-After", "5"}}}
	RejectDescriptors = &codec.Rejection{Status: 503, Reason: "server has no file descriptors left", Header: [][2]string{{"Retry-After", "5"}}}
)

// refuseSlots is how many sockets beyond the limit are accepted to read a request and to answer it
// 503 as HTTP wants it. Beyond those the answer is written at once, and the kernel may reset the
// connection before the client has read it.
const refuseSlots = 32

// shardOf finds the shard of a loop. gnet does not list its loops, so a shard is made when its loop
// gets its first connection, on the loop.
func (e *Engine) shardOf(loop gnet.EventLoop) (*Shard, error) {
	for _, sh := range e.AllShards() {
		if sh.loop == loop {
			return sh, nil
		}
	}
	sh, err := newShard(e, loop)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	shards := append(slices.Clone(e.AllShards()), sh)
	e.shards.Store(&shards)
	if e.Draining.Load() {
		sh.PostGoAway()
	}
	return sh, nil
}

// accept begins the handshake of a connection that has come in at a listener, as the n-th of all sockets. It
// returns false for one that is turned away.
func (sh *Shard) accept(gc gnet.Conn, l *Listener, n int64) bool {
	e := sh.Engine
	sh.readClock() // sockets are accepted outside turns, and the last one may have been long ago, or never
	set := e.Settings()
	at := &set.Listeners[l.index]
	sh.Stats.Accepted.Add(1)
	reject, why := RejectFull, stats.RefuseFull
	if e.Draining.Load() {
		reject, why = RejectDraining, stats.RefuseDraining
	}
	isFull := n > int64(set.MaxSockets)
	isExcess := n > int64(set.MaxSockets+refuseSlots)
	if isFull && why == stats.RefuseFull {
		isFull = !sh.makeRoom() && (isExcess || !e.owner.EvictIdle())
	}
	if why == stats.RefuseDraining || isFull && isExcess {
		sh.Stats.Refusals[why].Add(1)
		l.turnAway(gc, reject)
		e.SocketClosed()
		return false
	}
	remote, _ := gc.RemoteAddr().(*net.TCPAddr) // nil for a client of a unix socket
	if remote != nil && remote.Zone != "" {
		copied := *remote // gnet takes the zone's memory back when the connection closes
		copied.Zone = string([]byte(remote.Zone))
		remote = &copied
	}
	isProxy, isCounted, excess := at.Balancers.Contains(AddrOf(remote)), false, 0
	switch {
	case isProxy: // the client's address is to be told
	case at.MustProxy:
		sh.Stats.Refusals[stats.RefuseProxyPeer].Add(1)
		e.SocketClosed()
		return false
	default:
		if isCounted, excess = e.Claim(remote); excess > CrowdSlots {
			sh.Stats.Refusals[stats.RefuseAddressFull].Add(1)
			l.turnAway(gc, RejectCrowded)
			e.Release(remote, isCounted)
			e.SocketClosed()
			return false
		}
	}
	c := sh.Admit(gc, l, remote, isCounted)
	c.Mark(MarkFull, isFull)
	c.Mark(MarkPreface, isProxy)
	c.Mark(MarkCrowd, excess > 0)
	c.Mark(MarkTLS, l.Certs != nil)
	return true
}

// turnAway answers before anything was read, where a client can read the answer as it is.
func (l *Listener) turnAway(gc gnet.Conn, r *codec.Rejection) {
	if l.Certs == nil {
		_, _ = sys.Write(int32(gc.Fd()), r.AppendResponse(nil))
	}
}

// Admit makes a connection, in its handshake, of a socket that counts already.
func (sh *Shard) Admit(gc gnet.Conn, l *Listener, remote *net.TCPAddr, isCounted bool) *Conn {
	c := &Conn{
		sh:     sh,
		gc:     gc,
		remote: remote,
		id:     sh.Engine.LastID.Add(1),
		fd:     int32(gc.Fd()),
		opened: sh.Engine.UptimeSeconds(),
	}
	c.Mark(MarkCounted, isCounted)
	gc.SetContext(c)
	sh.Handshaking.Add(c, Times{Read: uint32(l.index), Message: sh.Clock, Ping: uint32(sh.Engine.Stamp())})
	return c
}

// SocketClosed tells a draining server when the last one is gone.
func (e *Engine) SocketClosed() {
	if e.Sockets.Add(-1) == 0 && e.Draining.Load() {
		select {
		case e.Empty <- struct{}{}:
		default:
		}
	}
}

// Entered is where a connection in its handshake has come in. The field otherwise holds the time of the last read,
// which is not needed before there is a WebSocket.
func (c *Conn) Entered() *Listener {
	return c.sh.Engine.Listeners[c.sh.Handshaking.Times[c.slot].Read]
}

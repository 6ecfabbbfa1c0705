package server

import (
	"net"
	"slices"

	"github.com/panjf2000/gnet/v2"

	"carillon/codec"
	"carillon/server/stats"
)

var (
	rejectDraining    = &codec.Rejection{Status: 503, Reason: "server is shutting down", Header: [][2]string{{"Retry-After", "1"}}}
	rejectFull        = &codec.Rejection{Status: 503, Reason: "server is full", Header: [][2]string{{"Retry-After", "5"}}}
	rejectDescriptors = &codec.Rejection{Status: 503, Reason: "server has no file descriptors left", Header: [][2]string{{"Retry-After", "5"}}}
)

// refuseSlots is how many sockets beyond the limit are accepted to read a request and to answer it
// 503 as HTTP wants it. Beyond those the answer is written at once, and the kernel may reset the
// connection before the client has read it.
const refuseSlots = 32

// shardOf finds the shard of a loop. gnet does not list its loops, so a shard is made when its loop
// gets its first connection, on the loop.
func (e *engine) shardOf(loop gnet.EventLoop) (*shard, error) {
	for _, sh := range e.allShards() {
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
	shards := append(slices.Clone(e.allShards()), sh)
	e.shards.Store(&shards)
	if e.draining.Load() {
		sh.postGoAway()
	}
	return sh, nil
}

// accept begins the handshake of a connection that has come in at a listener, as the n-th of all sockets. It
// returns false for one that is turned away.
func (sh *shard) accept(gc gnet.Conn, l *listener, n int64) bool {
	e := sh.engine
	sh.readClock() // sockets are accepted outside turns, and the last one may have been long ago, or never
	set := e.settings()
	at := &set.listeners[l.index]
	sh.stats.Accepted.Add(1)
	reject, why := rejectFull, stats.RefuseFull
	if e.draining.Load() {
		reject, why = rejectDraining, stats.RefuseDraining
	}
	isFull := n > int64(set.maxSockets)
	isExcess := n > int64(set.maxSockets+refuseSlots)
	if isFull && why == stats.RefuseFull {
		isFull = !sh.makeRoom() && (isExcess || !e.owner.evictIdle())
	}
	if why == stats.RefuseDraining || isFull && isExcess {
		sh.stats.Refusals[why].Add(1)
		l.turnAway(gc, reject)
		e.socketClosed()
		return false
	}
	remote, _ := gc.RemoteAddr().(*net.TCPAddr) // nil for a client of a unix socket
	if remote != nil && remote.Zone != "" {
		copied := *remote // gnet takes the zone's memory back when the connection closes
		copied.Zone = string([]byte(remote.Zone))
		remote = &copied
	}
	isProxy, isCounted, excess := at.balancers.Contains(addrOf(remote)), false, 0
	switch {
	case isProxy: // the client's address is to be told
	case at.mustProxy:
		sh.stats.Refusals[stats.RefuseProxyPeer].Add(1)
		e.socketClosed()
		return false
	default:
		if isCounted, excess = e.claim(remote); excess > crowdSlots {
			sh.stats.Refusals[stats.RefuseAddressFull].Add(1)
			l.turnAway(gc, rejectCrowded)
			e.release(remote, isCounted)
			e.socketClosed()
			return false
		}
	}
	c := sh.admit(gc, l, remote, isCounted)
	c.mark(markFull, isFull)
	c.mark(markPreface, isProxy)
	c.mark(markCrowd, excess > 0)
	c.mark(markTLS, l.certs != nil)
	return true
}

// turnAway answers before anything was read, where a client can read the answer as it is.
func (l *listener) turnAway(gc gnet.Conn, r *codec.Rejection) {
	if l.certs == nil {
		_, _ = write(int32(gc.Fd()), r.AppendResponse(nil))
	}
}

// admit makes a connection, in its handshake, of a socket that counts already.
func (sh *shard) admit(gc gnet.Conn, l *listener, remote *net.TCPAddr, isCounted bool) *Conn {
	c := &Conn{
		sh:     sh,
		gc:     gc,
		remote: remote,
		id:     sh.engine.lastID.Add(1),
		fd:     int32(gc.Fd()),
		opened: sh.engine.uptimeSeconds(),
	}
	c.mark(markCounted, isCounted)
	gc.SetContext(c)
	sh.handshaking.add(c, times{read: uint32(l.index), message: sh.clock, ping: uint32(sh.engine.stamp())})
	return c
}

// socketClosed tells a draining server when the last one is gone.
func (e *engine) socketClosed() {
	if e.sockets.Add(-1) == 0 && e.draining.Load() {
		select {
		case e.empty <- struct{}{}:
		default:
		}
	}
}

// entered is where a connection in its handshake has come in. The place is otherwise for the time of the last
// read, which nobody asks for as long as there is no WebSocket.
func (c *Conn) entered() *listener {
	return c.sh.engine.listeners[c.sh.handshaking.times[c.slot].read]
}

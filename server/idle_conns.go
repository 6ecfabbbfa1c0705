package server

import (
	"container/list"
	"net"
	"sync"
	"time"
)

// idleConns are the connections of an http.Server that carry no request. Such a one may be closed at any time (RFC
// 9112, section 9.5): here when others need its place, the one that has been idle for longest first.
//
// Its methods may be called from any goroutine.
type idleConns struct {
	mu    sync.Mutex
	order list.List                  // guarded by mu: of idleConn
	place map[net.Conn]*list.Element // guarded by mu: in order
}

type idleConn struct {
	conn  net.Conn
	since time.Time
}

// set notes whether a connection is idle from now on, and returns how many are.
func (i *idleConns) set(conn net.Conn, idle bool) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.place == nil {
		i.place = map[net.Conn]*list.Element{}
	}
	switch at, was := i.place[conn]; {
	case idle && !was:
		i.place[conn] = i.order.PushBack(idleConn{conn, time.Now()})
	case !idle && was:
		i.order.Remove(at)
		delete(i.place, conn)
	}
	return i.order.Len()
}

// take returns the connection that has been idle for longest, and at least for so long, which is then the caller's
// to close. It is nil if there is none.
func (i *idleConns) take(atLeast time.Duration) net.Conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	first := i.order.Front()
	if first == nil {
		return nil
	}
	one := first.Value.(idleConn)
	if atLeast > 0 && time.Since(one.since) < atLeast {
		return nil
	}
	i.order.Remove(first)
	delete(i.place, one.conn)
	return one.conn
}

package server

import (
	"container/heap"
	"errors"
	"fmt"
	"time"

	"carillon/codec"
)

// closeExpired tells a client that its token, or whatever let it in, is good no more.
const closeExpired codec.CloseCode = 4401

// deadlines are the connections of a shard that end at some time, as a heap: the sweep only looks at the
// first. So a connection with a token has neither a timer, nor is it looked at before its time.
type deadlines []deadline

type deadline struct {
	at   int64 // milliseconds since 1970
	conn *Conn
}

// The methods of heap.Interface.

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at < d[j].at }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].conn.more.who.deadline, d[j].conn.more.who.deadline = i, j
}

func (d *deadlines) Push(x any) { *d = append(*d, x.(deadline)) }

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	x := (*d)[last]
	(*d)[last] = deadline{}
	*d = (*d)[:last]
	return x
}

// set enters a connection that has an identity, or moves it when the identity has changed.
func (d *deadlines) set(c *Conn) {
	d.remove(c)
	if w := c.who(); !w.inForce.Expires.IsZero() && w.inForce.Expires.Year() < 10_000 { // later does not fit
		w.deadline = len(*d)
		heap.Push(d, deadline{at: w.inForce.Expires.UnixMilli(), conn: c})
	}
}

func (d *deadlines) remove(c *Conn) {
	if w := c.who(); w != nil && w.deadline >= 0 {
		heap.Remove(d, w.deadline)
		w.deadline = -1
	}
}

// expireNext closes one connection whose time is up, if there is one.
func (sh *shard) expireNext() bool {
	if len(sh.deadlines) == 0 || sh.srv.wall().UnixMilli() < sh.deadlines[0].at {
		return false
	}
	c := sh.deadlines[0].conn
	sh.deadlines.remove(c)
	if c.isOpen() {
		sh.stats.cut(CutExpired)
	}
	c.startClose(closeOwn, closeExpired, "token expired")
	return true
}

// A client renews its token over the socket, so that its subscriptions go on.

type refreshRequest struct {
	Token string `json:"token"`
}

type refreshedReply struct {
	Expires int64 `json:"expires,omitempty"` // milliseconds since 1970
}

var (
	errRenewal  = errors.New("this connection has no token that could be renewed")
	errTooOften = errors.New("a token was sent less than a second ago")
)

// refreshPause keeps a client from having signatures checked without end.
const refreshPause = time.Second

func (c *Conn) doRefresh(token string) (any, error) {
	v, w := c.ep.now().auth.jwt, c.who()
	if v == nil || w == nil {
		return nil, errRenewal
	}
	if w.refreshed != 0 && !passed(c.sh.clock, w.refreshed, refreshPause) {
		return nil, errTooOften
	}
	w.refreshed = c.sh.clock
	renewed, err := v.verify(token)
	if err != nil {
		return nil, err
	}
	renewed = renewed.within(w.bound)
	if renewed.Subject != w.subject {
		return nil, fmt.Errorf("%w: the subject of this one is another", errRenewal)
	}
	for i := range c.more.subs {
		// What the client has and the new token does not allow would have to end without a word. The old
		// token goes on instead, as long as it is good.
		if s := &c.more.subs[i]; s.asked && !allows(renewed.Subscribe, s.name()) {
			return nil, fmt.Errorf("%w, which it is subscribed to, by the new token: %s", errNotYours, s.name())
		}
	}
	w.inForce = renewed
	c.sh.deadlines.set(c)
	var reply refreshedReply
	if !renewed.Expires.IsZero() {
		reply.Expires = renewed.Expires.UnixMilli()
	}
	return reply, nil
}

// markAsked notes that the client itself has made its newest subscription.
func (c *Conn) markAsked() { c.more.subs[len(c.more.subs)-1].asked = true }

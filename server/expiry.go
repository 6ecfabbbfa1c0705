package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/stats"
)

// closeExpired tells a client that its token, or whatever let it in, is good no more.
const closeExpired codec.CloseCode = 4401

// deadlines are the connections of a shard that end at some time, as a heap: the sweep only looks at the
// first. So a connection with a token has neither a timer, nor is it looked at before its time.
type deadlines struct{ heap indexedHeap[deadline] }

type deadline struct {
	at   int64 // milliseconds since 1970
	conn *Conn
}

func (d deadline) before(other deadline) bool { return d.at < other.at }
func (d deadline) place() *int                { return &d.conn.ext.principal.deadline }

// set enters a connection that has an identity, or moves it when the identity has changed.
func (d *deadlines) set(c *Conn) {
	d.remove(c)
	w := c.principal()
	if at := auth.ExpiryMillis(&w.inForce); at != 0 {
		d.heap.push(deadline{at: at, conn: c})
	}
}

func (d *deadlines) remove(c *Conn) {
	if w := c.principal(); w != nil && w.deadline >= 0 {
		d.heap.remove(deadline{conn: c})
	}
}

// expireNext closes one connection whose time is up, if there is one.
func (sh *shard) expireNext() bool {
	if sh.deadlines.heap.Len() == 0 || sh.engine.wall().UnixMilli() < sh.deadlines.heap[0].at {
		return false
	}
	c := sh.deadlines.heap[0].conn
	sh.deadlines.remove(c)
	if c.isOpen() {
		sh.stats.Cut(stats.CutExpired)
	}
	c.startClose(closeOwn, closeExpired, "token expired")
	return true
}

// A client renews its token over the socket, so that its subscriptions go on.

type refreshRequest struct {
	Token string `json:"token"`
}

type refreshedReply struct {
	Expires int64 `json:"expires,omitempty"` // milliseconds since 1970; 0 is never
}

var (
	errRenewal  = errors.New("this connection has no token to renew")
	errTooOften = errors.New("a token was sent less than a second ago")
)

// refreshPause keeps a client from having signatures checked without end.
const refreshPause = time.Second

func (c *Conn) doRefresh(id json.RawMessage, token string) (what string, value any, err error) {
	a, w := c.ep.now().auth, c.principal()
	if !a.ChecksTokens() || w == nil {
		return "", nil, errRenewal
	}
	if w.refreshed != 0 && !timedOut(c.sh.clock, w.refreshed, refreshPause) {
		return "", nil, errTooOften
	}
	w.refreshed = c.sh.clock
	if takes := a.VerifyCost(token); takes > 0 {
		c.verifyElsewhere(a, id, token, takes)
		return "", nil, nil
	}
	renewed, err := a.Verify(token)
	if err == nil {
		value, err = c.renew(renewed)
	}
	return "refreshed", value, err
}

// verifyElsewhere has a token checked on another goroutine. What the client asks for behind it waits.
func (c *Conn) verifyElsewhere(a *auth.Authenticator, id json.RawMessage, token string, takes time.Duration) {
	answer := func(renewed auth.Identity, err error) {
		var value any
		if err == nil {
			value, err = c.renew(renewed)
		}
		c.answerWith(id, "refreshed", value, err, c.sendReply)
	}
	c.offload(&c.sh.engine.tokenChecks, takes, len(token), func() func() {
		if c.state.Load() != stateOpen {
			return doNothing
		}
		renewed, err := a.Verify(token)
		return func() { answer(renewed, err) }
	}, func() {
		answer(auth.Identity{}, fmt.Errorf("%w: too many tokens wait", c.sh.refuse()))
	})
}

// renew has a token that is good take the place of the one before.
func (c *Conn) renew(renewed auth.Identity) (any, error) {
	w := c.principal()
	renewed = auth.Intersect(renewed, w.bound)
	if renewed.Subject != w.subject {
		return nil, fmt.Errorf("%w: its subject differs", errRenewal)
	}
	for i := range c.ext.subs {
		// What the client has and the new token does not allow would have to end without a word. The old
		// token goes on instead, as long as it is good.
		if s := &c.ext.subs[i]; s.asked && !auth.Allows(renewed.Subscribe, s.name()) {
			return nil, fmt.Errorf("%w: %s", errHasMore, s.name())
		}
	}
	w.inForce = renewed
	c.sh.deadlines.set(c)
	return refreshedReply{Expires: auth.ExpiryMillis(&renewed)}, nil
}

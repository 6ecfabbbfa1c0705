package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/fair"
	"carillon/server/internal/reactor"
)

// Some decisions about a handshake need something outside of this process: a database, another server. A loop cannot
// wait for them, so such a decision is deferred: the connection stays in its handshake, a goroutine decides, and the
// loop gets the decision through its mailbox.

var (
	rejectUndecided = &codec.Rejection{Status: 503, Reason: "the request was not decided in time", Header: [][2]string{{"Retry-After", "5"}}}
	rejectPanic     = &codec.Rejection{Status: 500, Reason: "internal server error"}
)

// Defer puts the decision off: once Upgrade has returned nil, work is called on a goroutine of its own,
// where it may block, and what it returns is taken as what Upgrade returns. An error of Upgrade itself
// refuses at once.
//
// The request that work gets is a copy, whose bytes stay as they are; Value, ResponseHeader and Identify of that one
// count. The context ends when the client has gone, when the server shuts down, and after Limits.HandshakeTimeout,
// which begins anew for the decision: then the answer is 503. A client that shuts down its side of the connection has
// gone, as it has for net/http: most clients that do that have closed all of it. What the client sends meanwhile is
// kept, up to Limits.MaxHead bytes. Of several calls the last counts.
func (r *Request) Defer(work func(ctx context.Context, r *Request) error) {
	r.deferred = &deferred{work: work, why: RefuseHandler}
}

// deferred is what has to be done before a request can be answered.
type deferred struct {
	work func(context.Context, *Request) error
	why  RefuseReason                                // of an error
	then func(*Conn, *Request) (RefuseReason, error) // the next decision, made on the loop; nil for none

	takes time.Duration // of a processor, by work that waits for nothing: see reactor.OffloadQueue; 0 if that is unknown
}

// pendingDecision is a request that waits for its decision. Owned by the loop, but for what its goroutine has.
type pendingDecision struct {
	request *Request // the goroutine's until it is posted back
	asked   Request  // as it came, for the loop
	head    []byte   // that both are views of
	cancel  context.CancelFunc
	plain   bool // it waits for Options.HTTP: see httpEntrance
}

// awaitDecision begins what was deferred. What follows the head are the client's first frames.
func (c *Conn) awaitDecision(r *Request, head, rest []byte) {
	d := r.deferred
	own := *r
	own.deferred = nil
	u := &pendingDecision{request: &own, head: bytes.Clone(head)}
	_ = own.Parse(u.head) // which went well before
	u.asked = own
	var ctx context.Context
	ctx, u.cancel = c.decisionContext()
	c.setPending(u, rest)
	end := func(err error) { c.shard().PostDo(c.core(), 0, func() { c.decided(u, d, err) }) }
	work := func() { end(c.callDeferred(ctx, d, u.request)) }
	if d.takes == 0 {
		go work()
		return
	}
	drop := func() { end(&auth.Refusal{Why: RefuseUndecided, Rejection: rejectUndecided}) }
	c.shard().Engine.TokenChecks.Add(new(fair.Usage), c.shard().Began, d.takes, &fair.Job{Do: work, Drop: drop, Size: len(head), Yields: reactor.HandshakeDelay})
}

// decisionContext ends when a decision comes too late.
func (c *Conn) decisionContext() (context.Context, context.CancelFunc) {
	if limit := c.Server().opts().Limits.HandshakeTimeout; limit >= 0 {
		return context.WithTimeout(context.Background(), limit)
	}
	return context.WithCancel(context.Background())
}

// setPending has what comes next wait behind a request. The time-out of the handshake begins anew.
func (c *Conn) setPending(u *pendingDecision, rest []byte) {
	c.shard().Mu.Lock()
	c.needConnState().pending = u
	c.shard().Mu.Unlock()
	c.core().Table().Times[c.core().Slot()].Message = c.shard().Clock
	if len(rest) == 0 {
		c.core().DropInbound()
		return
	}
	in := c.core().NeedInbound()
	in.Rest = append(in.Rest[:0], rest...)
}

// callDeferred is called on the decision's own goroutine.
func (c *Conn) callDeferred(ctx context.Context, d *deferred, r *Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.shard().Stats.Panics.Add(1)
			c.shard().Engine.Log.Error("deferred decision panicked", "path", c.core().Endpoint().Path, "remote", reactor.ShownAddr(r.RemoteAddr), "panic", p, "stack", string(debug.Stack()))
			err = &auth.Refusal{Why: RefusePanic, Rejection: rejectPanic}
		}
	}()
	err = d.work(ctx, r)
	var said *codec.Rejection
	if err != nil && ctx.Err() == context.DeadlineExceeded && !errors.As(err, &said) {
		err = &auth.Refusal{Why: RefuseUndecided, Rejection: rejectUndecided}
	}
	return err
}

// decided goes on with a handshake, if it is still there.
func (c *Conn) decided(u *pendingDecision, d *deferred, err error) {
	if c.waitsFor() != u {
		return
	}
	c.dropPendingDecision()
	r, why := u.request, d.why
	if err == nil && d.then != nil {
		why, err = d.then(c, r)
	}
	var rest []byte
	if c.core().Inbound() != nil {
		rest = c.core().Inbound().Rest
	}
	c.finish(r, u.head, rest, why, err)
}

func (c *Conn) waitsFor() *pendingDecision {
	if x := c.connState(); x != nil {
		return x.pending
	}
	return nil
}

// bufferEarly keeps what a client sends before its request is decided.
func (c *Conn) bufferEarly(b []byte) {
	in := c.core().NeedInbound()
	limit := c.Server().opts().Limits.MaxHead
	if len(in.Rest)+len(b) > int(limit) {
		if u := c.waitsFor(); u.plain {
			c.dropPendingDecision()
			c.Server().plain.entrance.force()
			c.handOver(u.head, append(in.Rest, b...))
			return
		}
		c.refuse(RefuseEarly, rejectEarly(limit))
		return
	}
	in.Rest = append(in.Rest, b...)
}

func rejectEarly(limit Size) *codec.Rejection {
	return &codec.Rejection{Status: 400, Reason: fmt.Sprintf("more than %v received before the handshake was answered", limit)}
}

// dropPendingDecision ends the wait, whatever comes of it.
func (c *Conn) dropPendingDecision() {
	if u := c.waitsFor(); u != nil {
		u.cancel()
		c.shard().Mu.Lock()
		c.core().Extension().OwnerData = nil
		c.core().DropExtension()
		c.shard().Mu.Unlock()
	}
}

// lateHandshake is the answer to a request whose time-out has run.
func (c *Conn) lateHandshake(limit time.Duration) (RefuseReason, *codec.Rejection) {
	if c.waitsFor() != nil {
		return RefuseUndecided, rejectUndecided
	}
	if !c.core().CanAnswer() {
		return RefuseTLSTimeout, rejectUndecided
	}
	return RefuseTimeout, &codec.Rejection{Status: 408, Reason: fmt.Sprintf("the request head did not arrive within %v", limit)}
}

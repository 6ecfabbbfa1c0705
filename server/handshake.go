package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/certs"
	"carillon/server/internal/logs"
	"carillon/server/internal/protocol"
	"carillon/server/internal/reactor"
)

var rejectOrigin = &codec.Rejection{Status: 403, Reason: "origin not allowed"}

// shake takes bytes of a request head, and answers it once it is whole.
func (c *Conn) shake(b []byte) {
	if c.waitsFor() != nil {
		c.bufferEarly(b)
		return
	}
	limit := int(c.Server().opts().Limits.MaxHead)
	scanned := 0
	if c.core().Inbound() != nil {
		scanned = len(c.core().Inbound().Rest)
		c.core().Inbound().Rest = append(c.core().Inbound().Rest, b...)
		b = c.core().Inbound().Rest
	}
	if c.core().Is(reactor.MarkPreface) {
		size, ok := c.readProxy(b)
		if !ok {
			c.core().KeepHead(b)
			return
		}
		b, scanned = b[size:], 0
		if c.core().Is(reactor.MarkTLS) {
			c.core().Hello(b)
			return
		}
	}
	if certs.IsTLS(b) && !c.core().Is(reactor.MarkTLS) {
		c.refuse(RefuseTLS, reactor.RejectTLS)
		return
	}
	empty := codec.EmptyLines(b)
	n := codec.HeadLen(b[empty:max(empty, min(len(b), limit))], max(scanned-empty, 0))
	switch {
	case n > 0:
		c.answer(b[empty:empty+n], b[empty+n:])
		reactor.Spoil(b[empty : empty+n])
	case len(b) >= limit:
		c.refuse(RefuseHeadTooLong, &codec.Rejection{Status: 431, Reason: fmt.Sprintf("the request head is larger than %v", c.Server().opts().Limits.MaxHead)})
	default:
		c.core().KeepHead(b)
	}
}

// answer opens or refuses a connection. What follows the head are the first frames.
func (c *Conn) answer(head, rest []byte) {
	r := &c.loopState().request
	*r = Request{RemoteAddr: c.RemoteAddr(), Request: r.Request}
	if s := c.core().Session(); s != nil {
		r.tls, r.scheme, r.Secure = s.TLS, "https", true
	}
	why, err := c.decide(r, head)
	if err == errHealth {
		c.tellHealth(string(r.Method))
		return
	}
	if err == errPlainHTTP {
		c.passToHTTP(head, rest)
		return
	}
	if err == errPreflight {
		c.answerPreflight(&r.Request)
		return
	}
	c.finish(r, head, rest, why, err)
}

// finish opens or refuses a connection after all who had to be asked, or waits for one of them.
func (c *Conn) finish(r *Request, head, rest []byte, why RefuseReason, err error) {
	sh := c.shard()
	if err == nil && r.deferred != nil {
		if limit := c.Server().opts().Limits.MaxHead; len(rest) > int(limit) {
			why, err = RefuseEarly, rejectEarly(limit)
		} else {
			c.awaitDecision(r, head, rest)
			return
		}
	}
	if err == nil && r.topicQuery != nil {
		id := r.identity()
		err = r.topicQuery.CheckRights(&id)
	}
	if err == nil && r.topicQuery != nil && r.topicQuery.Events {
		c.openEvents(r)
		return
	}
	if err == nil {
		var hs codec.Handshake
		sh.Control, hs, err = c.endpoint().upgrader.Upgrade(sh.Control[:0], &r.Request, r.ResponseHeader)
		if err == nil {
			c.open(hs, r, rest)
			return
		}
		why = RefuseMalformed
	}
	var rejection *codec.Rejection
	var named *auth.Refusal
	if errors.As(err, &named) {
		why = named.Why
		sh.Engine.Log.Debug("handshake refused", "remote", reactor.ShownAddr(r.RemoteAddr), "path", c.core().Endpoint().Path, "reason", why.String(), "status", named.Status)
	}
	if !errors.As(err, &rejection) {
		rejection = &codec.Rejection{Status: 403, Reason: "forbidden"}
		if sh.Engine.LogsEvents() {
			sh.Engine.LogEvent("handshake refused", "id", c.ID(), "remote", reactor.ShownAddr(r.RemoteAddr), "path", c.core().Endpoint().Path, "error", logs.Shorten(err.Error()))
		}
	}
	sh.Control = c.withCORS(&r.Request, c.callRefused(r, why, err, rejection)).AppendResponse(sh.Control[:0])
	if bytes.HasPrefix(head, []byte("HEAD ")) { // an answer without its body (RFC 9110, section 9.3.2)
		sh.Control = sh.Control[:bytes.Index(sh.Control, []byte("\r\n\r\n"))+4]
	}
	c.core().RefuseWith(why, sh.Control)
}

// decide decides about a request, in the order in which the answers are useful to the client.
func (c *Conn) decide(r *Request, head []byte) (RefuseReason, error) {
	s, e := c.Server(), c.shard().Engine
	malformed := r.Parse(head)
	ep := s.byPath[string(r.Path)]
	if ep != nil {
		c.core().SetEndpoint(&ep.LoopEndpoint)
	}
	if malformed != nil && !r.HTTP10 {
		return reasonOf(malformed), malformed
	}
	if s.isHealthPath(string(r.Path)) {
		return decideHealth(r)
	}
	if c.core().Is(reactor.MarkFull) {
		return RefuseFull, reactor.RejectFull
	}
	if s.memory.refuses() {
		return RefuseMemory, rejectMemory
	}
	if c.core().Is(reactor.MarkCrowd) {
		return RefuseAddressFull, reactor.RejectCrowded
	}
	if e.Draining.Load() {
		return RefuseDraining, reactor.RejectDraining
	}
	switch {
	case ep == nil && s.plain != nil:
		if why, err := c.core().AddressMayShake(); err != nil {
			return why, err
		}
		return 0, errPlainHTTP
	case ep == nil:
		return RefuseNotFound, &codec.Rejection{Status: 404, Reason: "no endpoint at this path"}
	}
	if why, err := c.locate(r); err != nil {
		return why, err
	}
	events := ep.Mode == ModeTopics && wantsEvents(&r.Request)
	preflight := ep.Mode == ModeTopics && isPreflight(&r.Request)
	if err := r.CheckUpgrade(); err != nil && !events && !preflight {
		return reasonOf(err), err
	}
	now := ep.now()
	if !now.origins.Allow(&r.Request, auth.Transport{Scheme: r.scheme, TLS: r.tls, Proxied: r.proxied}) {
		s.logOrigin(c.core().Endpoint().Path, r)
		return RefuseOrigin, rejectOrigin
	}
	if preflight {
		return 0, errPreflight
	}
	if takes := now.auth.TokenCost(&r.Request); takes > 0 {
		r.deferTokenCheck(now.auth, takes)
		return 0, nil
	}
	if why, err := r.checkToken(now.auth); err != nil {
		return why, err
	}
	return c.decideFurther(r)
}

// checkToken finds out who the client is.
func (r *Request) checkToken(a *auth.Authenticator) (RefuseReason, error) {
	id, err := a.CheckToken(&r.Request)
	if err != nil {
		return RefuseNoToken, err
	}
	r.token = id
	return 0, nil
}

// deferTokenCheck has the token checked on another goroutine. Then it is the turn of those who decide next.
func (r *Request) deferTokenCheck(a *auth.Authenticator, takes time.Duration) {
	r.Defer(func(ctx context.Context, r *Request) error {
		if ctx.Err() != nil { // the client has gone
			return ctx.Err()
		}
		_, err := r.checkToken(a)
		return err
	})
	r.deferred.why = RefuseNoToken
	r.deferred.takes = takes
	r.deferred.then = (*Conn).decideFurther
}

// decideFurther decides about a request whose token is good.
func (c *Conn) decideFurther(r *Request) (RefuseReason, error) {
	ep := c.endpoint()
	now := ep.now()
	if ep.Mode == ModeTopics {
		w, err := now.protocol.Access.ParseQuery(&r.Request, wantsEvents(&r.Request))
		if err != nil {
			return RefuseTopic, err
		}
		r.topicQuery = w
	}
	if now.auth.HasHook() {
		r.askHook(now.auth)
		return 0, nil
	}
	return c.askUpgrade(r)
}

// askHook defers the decision until the connect hook has answered. Then it is the application's turn.
func (r *Request) askHook(a *auth.Authenticator) {
	r.Defer(func(ctx context.Context, r *Request) error {
		id, err := a.AskHook(ctx, &r.Request, reactor.AddressText(r.RemoteAddr), r.token.Subject)
		if err != nil {
			return err
		}
		return r.bind(id)
	})
	r.deferred.why = RefuseHookFailed
	r.deferred.then = (*Conn).askUpgrade
}

// askUpgrade lets the application decide.
func (c *Conn) askUpgrade(r *Request) (RefuseReason, error) {
	if c.endpoint().handler.Upgrade != nil {
		return c.callUpgrade(r)
	}
	return RefuseMalformed, nil
}

func reasonOf(err error) RefuseReason {
	var r *codec.Rejection
	if errors.As(err, &r) {
		switch r.Status {
		case 405:
			return RefuseMethod
		case 426:
			return RefuseNoUpgrade
		case 505:
			return RefuseVersion
		}
	}
	return RefuseMalformed
}

// open makes a WebSocket of the connection.
func (c *Conn) open(hs codec.Handshake, r *Request, rest []byte) {
	framing, subprotocol := reactor.FramingRaw, uint8(reactor.NoSubprotocol)
	if hs.Subprotocol >= 0 {
		subprotocol = uint8(hs.Subprotocol)
		if r.topicQuery != nil && c.core().Endpoint().Subprotocols[subprotocol] == protocol.Subprotocol {
			framing = reactor.FramingEnvelope
			r.topicQuery.Framing = framing
		}
	}
	c.core().Negotiated(framing, hs.Window, subprotocol)
	in := c.core().TakeInbound() // rest may lie in it
	c.enter(r)
	if len(rest) > 0 && c.core().State().Load() == reactor.StateOpen {
		c.core().Decode(rest, c.shard().TurnEnd())
	}
	if in != nil {
		c.shard().FreeInboundOf(in)
	}
}

// openEvents makes a stream of server-sent events of the connection.
func (c *Conn) openEvents(r *Request) {
	c.core().Negotiated(r.topicQuery.Framing, 0, reactor.NoSubprotocol)
	c.shard().Control = appendEventsHead(c.shard().Control[:0], corsFields(&c.endpoint().now().origins, &r.Request), r.ResponseHeader)
	c.core().DropInbound()
	c.enter(r)
}

// enter opens the connection in its table, with the answer that lies in sh.control.
func (c *Conn) enter(r *Request) {
	sh, wish := c.shard(), r.topicQuery
	if r.Value != nil {
		c.SetValue(r.Value)
	}
	c.identify(r)
	accepted := reactor.Stamp(sh.Handshaking.Times[c.core().Slot()].Ping)
	sh.Handshaking.Remove(c.core())
	now := sh.Clock
	sh.TablesOf(c.core().Endpoint())[c.core().Framing()].Add(c.core(), reactor.Times{Read: now, Message: now})
	c.core().State().Store(reactor.StateOpen)
	sh.Stats.Open.Add(1)
	sh.Stats.Opened.Add(1)
	c.core().SendControl(sh.Control)
	if sh.Engine.LogsEvents() {
		sh.Engine.LogEvent("connection opened", "id", c.ID(), "remote", reactor.ShownAddr(c.RemoteAddr()), "path", c.core().Endpoint().Path, "subprotocol", c.Subprotocol())
	}
	sh.Histograms.Handshake.Observe(uint32(sh.Engine.Stamp() - accepted))
	if c.core().State().Load() == reactor.StateOpen {
		c.callOpen()
		if wish != nil {
			protocol.Of(c.core()).Subscribe(wish)
		}
	}
}

// handshakeDue ends a handshake whose time is up, or that the server has no time for any more, and reports whether it
// does.
func (c *Conn) handshakeDue(since uint32) bool {
	sh := c.shard()
	limit := c.Server().opts().Limits.HandshakeTimeout
	switch {
	case c.core().Is(reactor.MarkPreface) && reactor.TimedOut(sh.Clock, since, c.core().Entered().Now().PrefaceTimeout):
		c.prefaceDue()
	case sh.GoingAway || sh.Engine.Draining.Load():
		c.refuse(RefuseDraining, reactor.RejectDraining)
	case reactor.TimedOut(sh.Clock, since, limit):
		c.refuse(c.lateHandshake(limit))
	default:
		return false
	}
	return true
}

// refuse answers a request with an error and ends the connection.
func (c *Conn) refuse(why RefuseReason, r *codec.Rejection) {
	if u := c.waitsFor(); u != nil {
		r = c.callRefused(&u.asked, why, r, r)
	}
	c.core().RefuseAs(why, r)
}

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
	if c.in != nil {
		scanned = len(c.in.rest)
		c.in.rest = append(c.in.rest, b...)
		b = c.in.rest
	}
	if c.is(markPreface) {
		size, ok := c.readProxy(b)
		if !ok {
			c.keepHead(b)
			return
		}
		b, scanned = b[size:], 0
		if c.is(markTLS) {
			c.hello(b)
			return
		}
	}
	if certs.IsTLS(b) && !c.is(markTLS) {
		c.refuse(RefuseTLS, rejectTLS)
		return
	}
	empty := codec.EmptyLines(b)
	n := codec.HeadLen(b[empty:max(empty, min(len(b), limit))], max(scanned-empty, 0))
	switch {
	case n > 0:
		c.answer(b[empty:empty+n], b[empty+n:])
		spoil(b[empty : empty+n])
	case len(b) >= limit:
		c.refuse(RefuseHeadTooLong, &codec.Rejection{Status: 431, Reason: fmt.Sprintf("the request head is larger than %v", c.Server().opts().Limits.MaxHead)})
	default:
		c.keepHead(b)
	}
}

// answer opens or refuses a connection. What follows the head are the first frames.
func (c *Conn) answer(head, rest []byte) {
	r := &c.loopState().request
	*r = Request{RemoteAddr: c.RemoteAddr(), Request: r.Request}
	if s := c.session(); s != nil {
		r.tls, r.scheme, r.Secure = s.tls, "https", true
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
	sh := c.sh
	if err == nil && r.deferred != nil {
		if limit := c.Server().opts().Limits.MaxHead; len(rest) > int(limit) {
			why, err = RefuseEarly, rejectEarly(limit)
		} else {
			c.awaitDecision(r, head, rest)
			return
		}
	}
	if err == nil {
		err = r.checkRights()
	}
	if err == nil && r.topicQuery != nil && r.topicQuery.events {
		c.openEvents(r)
		return
	}
	if err == nil {
		var hs codec.Handshake
		sh.control, hs, err = c.endpoint().upgrader.Upgrade(sh.control[:0], &r.Request, r.ResponseHeader)
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
		sh.engine.log.Debug("handshake refused", "remote", shownAddr(r.RemoteAddr), "path", c.ep.Path, "reason", why.String(), "status", named.Status)
	}
	if !errors.As(err, &rejection) {
		rejection = &codec.Rejection{Status: 403, Reason: "forbidden"}
		if sh.engine.logsEvents() {
			sh.engine.logEvent("handshake refused", "id", c.id, "remote", shownAddr(r.RemoteAddr), "path", c.ep.Path, "error", logs.Shorten(err.Error()))
		}
	}
	sh.control = c.withCORS(&r.Request, c.callRefused(r, why, err, rejection)).AppendResponse(sh.control[:0])
	if bytes.HasPrefix(head, []byte("HEAD ")) { // an answer without its body (RFC 9110, section 9.3.2)
		sh.control = sh.control[:bytes.Index(sh.control, []byte("\r\n\r\n"))+4]
	}
	c.refuseWith(why, sh.control)
}

// decide decides about a request, in the order in which the answers are useful to the client.
func (c *Conn) decide(r *Request, head []byte) (RefuseReason, error) {
	s, e := c.Server(), c.sh.engine
	malformed := r.Parse(head)
	ep := s.byPath[string(r.Path)]
	if ep != nil {
		c.ep = &ep.loopEndpoint
	}
	if malformed != nil && !r.HTTP10 {
		return reasonOf(malformed), malformed
	}
	if s.isHealthPath(string(r.Path)) {
		return decideHealth(r)
	}
	if c.is(markFull) {
		return RefuseFull, rejectFull
	}
	if s.memory.refuses() {
		return RefuseMemory, rejectMemory
	}
	if c.is(markCrowd) {
		return RefuseAddressFull, rejectCrowded
	}
	if e.draining.Load() {
		return RefuseDraining, rejectDraining
	}
	switch {
	case ep == nil && s.plain != nil:
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
		s.logOrigin(c.ep.Path, r)
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
		if ctx.Err() != nil { // nobody waits for it
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
		w, err := ep.parseTopicQuery(r, wantsEvents(&r.Request))
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
		id, err := a.AskHook(ctx, &r.Request, addressText(r.RemoteAddr), r.token.Subject)
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
	c.window = hs.Window
	c.subprotocol = noSubprotocol
	if hs.Subprotocol >= 0 {
		c.subprotocol = uint8(hs.Subprotocol)
	}
	if r.topicQuery != nil && c.Subprotocol() == subprotocolJSON {
		r.topicQuery.framing = framingEnvelope
		c.framing = framingEnvelope
	}
	in := c.in // rest may lie in it
	c.in = nil
	c.enter(r)
	if len(rest) > 0 && c.state.Load() == stateOpen {
		c.decode(rest, c.sh.turnEnd())
	}
	if in != nil {
		c.sh.freeInboundOf(in)
	}
}

// openEvents makes a stream of server-sent events of the connection.
func (c *Conn) openEvents(r *Request) {
	c.framing, c.subprotocol = r.topicQuery.framing, noSubprotocol
	c.sh.control = appendEventsHead(c.sh.control[:0], corsFields(&c.endpoint().now().origins, &r.Request), r.ResponseHeader)
	c.dropInbound()
	c.enter(r)
}

// enter opens the connection in its table, with the answer that lies in sh.control.
func (c *Conn) enter(r *Request) {
	sh, wish := c.sh, r.topicQuery
	if r.Value != nil {
		c.SetValue(r.Value)
	}
	c.identify(r)
	accepted := stamp(sh.handshaking.times[c.slot].ping)
	sh.handshaking.remove(c)
	now := sh.clock
	sh.tablesOf(c.ep)[c.framing].add(c, times{read: now, message: now})
	c.state.Store(stateOpen)
	sh.stats.Open.Add(1)
	sh.stats.Opened.Add(1)
	c.sendControl(sh.control)
	if sh.engine.logsEvents() {
		sh.engine.logEvent("connection opened", "id", c.id, "remote", shownAddr(c.RemoteAddr()), "path", c.ep.Path, "subprotocol", c.Subprotocol())
	}
	sh.histograms.Handshake.Observe(uint32(sh.engine.stamp() - accepted))
	if c.state.Load() == stateOpen {
		c.callOpen()
		if wish != nil {
			c.subscribeInitial(wish)
		}
	}
}

// handshakeDue ends a handshake whose time is up, or that the server has no time for any more, and reports whether it
// does.
func (c *Conn) handshakeDue(since uint32) bool {
	sh := c.sh
	limit := c.Server().opts().Limits.HandshakeTimeout
	switch {
	case c.is(markPreface) && timedOut(sh.clock, since, c.entered().now().prefaceTimeout):
		c.prefaceDue()
	case sh.goingAway || sh.engine.draining.Load():
		c.refuse(RefuseDraining, rejectDraining)
	case timedOut(sh.clock, since, limit):
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
	c.refuseAs(why, r)
}

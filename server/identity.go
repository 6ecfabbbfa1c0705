package server

import (
	"time"

	"carillon/server/internal/auth"
	"carillon/server/internal/protocol"
)

// Identity is who a client is and what it may do. It comes from a token, from a connect hook, or from the
// application: see [Request.Identify]. Its zero value is an unknown client, which may do what the endpoint
// allows everybody.
type Identity struct {
	// Subject names the client, as a token's "sub" does. Empty is unknown.
	Subject string

	// Subscribe and Publish list the topics, as names or patterns, that the client may have of those
	// that the endpoint's [TopicAccess] allows: both must allow one. Nil allows whatever the endpoint
	// does, and an empty list nothing.
	Subscribe, Publish []string

	// Expires is when all of this ends, and with it the connection: within a second or so it is closed
	// with 4401. Zero is never.
	Expires time.Time
}

// Identity is what is known of the client so far: from its token, when Upgrade is called, and from the
// connect hook.
func (r *Request) Identity() Identity { return Identity(r.identity()) }

// identity is Identity in the type that the checks use.
func (r *Request) identity() auth.Identity { return auth.Intersect(r.token, r.bound) }

// Identify adds to what is known of the client. What was known stays: the first subject counts, topics
// that two list are the ones in both, and the earlier expiry holds. A client can renew its token, but not
// what Identify was told. It fails with a *[TopicError] for a pattern that is none.
func (r *Request) Identify(id Identity) error { return r.bind(auth.Identity(id)) }

// bind is Identify for the type that the checks and the connect hook use.
func (r *Request) bind(id auth.Identity) error {
	if err := auth.CheckIdentity(&id); err != nil {
		return err
	}
	r.bound = auth.Intersect(r.bound, id)
	return nil
}

// identify keeps what the handshake has found out.
func (c *Conn) identify(r *Request) {
	id := r.identity()
	if auth.IsUnknown(&id) {
		return
	}
	c.shard().Mu.Lock()
	c.needConnState().principal = protocol.NewPrincipal(id, r.bound)
	c.shard().Mu.Unlock()
	c.shard().Deadlines.Set(c.core(), auth.ExpiryMillis(&id))
}

// Subject names the client, as its token, the connect hook or the application did; "" is unknown.
func (c *Conn) Subject() string {
	c.shard().Mu.Lock()
	defer c.shard().Mu.Unlock()
	if x := c.connState(); x != nil && x.principal != nil {
		return x.principal.Subject
	}
	return ""
}

package server

import (
	"time"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/limit"
	"carillon/server/internal/reactor"
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

// principal is the identity of a connection, for those that have one.
type principal struct {
	subject string // immutable

	// Owned by the loop.
	inForce   auth.Identity // what holds now
	bound     auth.Identity // what Identify was told, which no token can exceed
	refreshed uint32        // when a token was last sent, 0 for never
}

// identify keeps what the handshake has found out.
func (c *Conn) identify(r *Request) {
	id := r.identity()
	if auth.IsUnknown(&id) {
		return
	}
	c.shard().Mu.Lock()
	c.needConnState().principal = &principal{subject: id.Subject, inForce: id, bound: r.bound}
	c.shard().Mu.Unlock()
	c.shard().Deadlines.Set(c.core(), auth.ExpiryMillis(&id))
}

func (c *Conn) principal() *principal {
	if x := c.connState(); x != nil {
		return x.principal
	}
	return nil
}

// Subject names the client, as its token, the connect hook or the application did; "" is unknown.
func (c *Conn) Subject() string {
	c.shard().Mu.Lock()
	defer c.shard().Mu.Unlock()
	if w := c.principal(); w != nil {
		return w.subject
	}
	return ""
}

// checkRead reports whether the client may subscribe to a topic or pattern.
func (c *Conn) checkRead(name string) error {
	if err := c.endpoint().check(name); err != nil {
		return err
	}
	if w := c.principal(); w != nil && !auth.Allows(w.inForce.Subscribe, name) {
		return errNotYours
	}
	return nil
}

// checkPublish reports why the client may not publish to a topic.
func (c *Conn) checkPublish(topic string) error {
	if !c.endpoint().now().Topics.mayPublish(topic) {
		return errNoPublish
	}
	if w := c.principal(); w != nil && !auth.Allows(w.inForce.Publish, topic) {
		return errNotYourOutput
	}
	return nil
}

// checkRights reports whether the client may have the topics of its request line.
func (r *Request) checkRights() error {
	if r.topicQuery == nil {
		return nil
	}
	id := r.identity()
	for _, name := range r.topicQuery.topics {
		if !auth.Allows(id.Subscribe, name) {
			return &auth.Refusal{Why: RefuseTopic, Rejection: &codec.Rejection{Status: 403, Reason: errNotYours.Error()}}
		}
	}
	return nil
}

// publisher is the namespace of a client's keys, and for an anonymous client the address that their memory is charged
// to.
func (c *Conn) publisher() (name string, address limit.Key) {
	name = "client:" + c.core().Endpoint().Path
	if w := c.principal(); w != nil && w.subject != "" {
		return name + "#" + w.subject, 0
	}
	return name, limit.KeyOf(reactor.AddrOf(c.core().Remote()))
}

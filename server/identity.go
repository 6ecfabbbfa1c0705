package server

import (
	"slices"
	"strings"
	"time"

	"carillon/codec"
)

// Identity is who a client is and what it may do. It comes from a token, from a connect hook, or from the
// application: see [Request.Identify]. Its zero value is somebody unknown, who may do what the endpoint
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

// isUnknown reports whether an identity is the zero value.
func isUnknown(id *Identity) bool {
	return id.Subject == "" && id.Subscribe == nil && id.Publish == nil && id.Expires.IsZero()
}

// expiryMillis is the time in milliseconds since 1970, and 0 for never: that includes what is beyond the year 9999, which
// JSON's readers, and far beyond that 64 bits, cannot hold. What was before 1970 is long over: 1.
func expiryMillis(id *Identity) int64 {
	const year10000 = 253_402_300_800 // in seconds
	switch at := id.Expires.Unix(); {
	case id.Expires.IsZero() || at >= year10000:
		return 0
	case at <= 0:
		return 1
	}
	return id.Expires.UnixMilli()
}

// checkIdentity reports a pattern that is none, as a *[TopicError].
func checkIdentity(id *Identity) error {
	for _, list := range [][]string{id.Subscribe, id.Publish} {
		for _, p := range list {
			if err := CheckPattern(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// bothAllow is what two identities both allow. The subject is id's if it has one.
func bothAllow(id, other Identity) Identity {
	if id.Subject == "" {
		id.Subject = other.Subject
	}
	id.Subscribe = common(id.Subscribe, other.Subscribe)
	id.Publish = common(id.Publish, other.Publish)
	if id.Expires.IsZero() || !other.Expires.IsZero() && other.Expires.Before(id.Expires) {
		id.Expires = other.Expires
	}
	return id
}

// common lists what two lists of patterns both allow; a nil one allows everything.
func common(a, b []string) []string {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	list := []string{}
	for _, x := range a {
		for _, y := range b {
			if p, ok := intersect(x, y); ok && !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	return list
}

// intersect returns the pattern for the topics that both stand for. Either may also be the name of a topic.
func intersect(a, b string) (string, bool) {
	var levels []string
	for {
		x, restA, moreA := strings.Cut(a, ".")
		y, restB, moreB := strings.Cut(b, ".")
		switch {
		case x == ">":
			return strings.Join(append(levels, b), "."), true
		case y == ">":
			return strings.Join(append(levels, a), "."), true
		case x != y && x != "*" && y != "*" || moreA != moreB:
			return "", false
		case x == "*":
			levels = append(levels, y)
		default:
			levels = append(levels, x)
		}
		if !moreA {
			return strings.Join(levels, "."), true
		}
		a, b = restA, restB
	}
}

// allows reports whether a list of patterns, of which a nil one allows everything, allows a topic or pattern.
func allows(list []string, name string) bool {
	return list == nil || slices.ContainsFunc(list, func(p string) bool { return Covers(p, name) })
}

// Identity is what is known of the client so far: from its token, when Upgrade is called, and from the
// connect hook.
func (r *Request) Identity() Identity { return bothAllow(r.token, r.bound) }

// Identify adds to what is known of the client. What was known stays: the first subject counts, topics
// that two list are the ones in both, and the earlier expiry holds. A client can renew its token, but not
// what Identify was told. It fails with a *[TopicError] for a pattern that is none.
func (r *Request) Identify(id Identity) error {
	if err := checkIdentity(&id); err != nil {
		return err
	}
	r.bound = bothAllow(r.bound, id)
	return nil
}

// who is the identity of a connection, for those that have one.
type who struct {
	subject string // immutable

	// Owned by the loop.
	inForce   Identity // what holds now
	bound     Identity // what Identify was told, which no token can exceed
	deadline  int      // where it stands in sh.deadlines; -1 when it never expires
	refreshed uint32   // when a token was last sent, 0 for never
}

// identify keeps what the handshake has found out.
func (c *Conn) identify(r *Request) {
	id := r.Identity()
	if isUnknown(&id) {
		return
	}
	c.sh.mu.Lock()
	c.extra().who = &who{subject: id.Subject, inForce: id, bound: r.bound, deadline: -1}
	c.sh.mu.Unlock()
	c.sh.deadlines.set(c)
}

func (c *Conn) who() *who {
	if c.more == nil {
		return nil
	}
	return c.more.who
}

// Subject names the client, as its token, the connect hook or the application did; "" is unknown.
func (c *Conn) Subject() string {
	c.sh.mu.Lock()
	defer c.sh.mu.Unlock()
	if w := c.who(); w != nil {
		return w.subject
	}
	return ""
}

// checkRead says whether the client may subscribe to a topic or pattern.
func (c *Conn) checkRead(name string) error {
	if err := c.ep.check(name); err != nil {
		return err
	}
	if w := c.who(); w != nil && !allows(w.inForce.Subscribe, name) {
		return errNotYours
	}
	return nil
}

// checkPublish reports why the client may not publish to a topic.
func (c *Conn) checkPublish(topic string) error {
	if !c.ep.now().Topics.mayPublish(topic) {
		return errNoPublish
	}
	if w := c.who(); w != nil && !allows(w.inForce.Publish, topic) {
		return errNotYourOutput
	}
	return nil
}

// checkRights says whether the client may have the topics of its request line.
func (r *Request) checkRights() error {
	if r.wish == nil {
		return nil
	}
	id := r.Identity()
	for _, name := range r.wish.topics {
		if !allows(id.Subscribe, name) {
			return &denial{RefuseTopic, &codec.Rejection{Status: 403, Reason: errNotYours.Error()}}
		}
	}
	return nil
}

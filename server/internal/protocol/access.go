package protocol

import (
	"carillon/server/internal/auth"
	"carillon/server/topic"
)

// Access is what package server documents as its TopicAccess.
type Access struct {
	Subscribe, Publish            []string
	Patterns, Presence            bool
	MaxSubscriptions, MaxPatterns int
}

func (a *Access) maySubscribe(name string) bool {
	for _, p := range a.Subscribe {
		if topic.Covers(p, name) {
			return true
		}
	}
	return false
}

func (a *Access) mayPublish(name string) bool {
	for _, p := range a.Publish {
		if topic.Matches(p, name) {
			return true
		}
	}
	return false
}

// notAllowed is what an endpoint, or the client's own rights, do not allow, and by which key of the endpoint or which
// member of the rights. It fits into a close frame.
type notAllowed string

func (e notAllowed) Error() string { return string(e) }

const (
	errNoSubscribe = notAllowed("clients may not subscribe to this: not in topics.subscribe of the endpoint")
	errNoPublish   = notAllowed("clients may not publish to this: not in topics.publish of the endpoint")
	errNoPresence  = notAllowed("clients may not query presence: topics.presence of the endpoint is false")
	errNoPatterns  = notAllowed("patterns are not allowed: topics.patterns of the endpoint is false")

	errSubscribeDenied = notAllowed("this client may not subscribe to this: not in subscribe of its token or other authorization")
	errPublishDenied   = notAllowed("this client may not publish to this: not in publish of its token or other authorization")
	errTokenNarrower   = notAllowed("the new token does not allow all current subscriptions")

	errNotOneTopic = notAllowed("cannot publish here: expected exactly one topic and no pattern in the request line")
)

// check reports whether a client may subscribe to a topic or pattern.
func (a *Access) check(name string) error {
	pattern, err := topic.Parse(name)
	switch {
	case err != nil:
		return err
	case pattern && !a.Patterns:
		return errNoPatterns
	case !a.maySubscribe(name):
		return errNoSubscribe
	}
	return nil
}

// checkRead reports whether the client may subscribe to a topic or pattern.
func (c *Client) checkRead(name string) error {
	if err := c.settings().Access.check(name); err != nil {
		return err
	}
	if w := c.principal(); w != nil && !auth.Allows(w.inForce.Subscribe, name) {
		return errSubscribeDenied
	}
	return nil
}

// checkPublish reports why the client may not publish to a topic.
func (c *Client) checkPublish(topic string) error {
	if !c.settings().Access.mayPublish(topic) {
		return errNoPublish
	}
	if w := c.principal(); w != nil && !auth.Allows(w.inForce.Publish, topic) {
		return errPublishDenied
	}
	return nil
}

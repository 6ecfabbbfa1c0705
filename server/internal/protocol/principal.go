package protocol

import (
	"carillon/server/internal/auth"
	"carillon/server/internal/limit"
	"carillon/server/internal/reactor"
)

// Principal is the identity of a connection, for those that have one.
type Principal struct {
	Subject string // immutable

	// Owned by the loop.
	inForce   auth.Identity // what holds now
	bound     auth.Identity // what Identify was told, which no token can exceed
	refreshed uint32        // when a token was last sent, 0 for never
}

// NewPrincipal is a client that is known by id, whatever a token says within bound.
func NewPrincipal(id, bound auth.Identity) *Principal {
	return &Principal{Subject: id.Subject, inForce: id, bound: bound}
}

// Holder has the identity of a connection, nil for none. It lies in reactor.Extension.OwnerData.
type Holder interface{ Principal() *Principal }

// principal is the client's identity, or nil.
func (c *Client) principal() *Principal {
	x := c.core().Extension()
	if x == nil {
		return nil
	}
	if h, ok := x.OwnerData.(Holder); ok {
		return h.Principal()
	}
	return nil
}

// publisher is the namespace of a client's keys, and for an anonymous client the address that their memory is charged
// to.
func (c *Client) publisher() (name string, address limit.Key) {
	name = "client:" + c.core().Endpoint().Path
	if w := c.principal(); w != nil && w.Subject != "" {
		return name + "#" + w.Subject, 0
	}
	return name, limit.KeyOf(reactor.AddrOf(c.core().Remote()))
}

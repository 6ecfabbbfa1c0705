// Package protocol is what a client of topics says and is told: requests in JSON (docs/protocol.md), raw messages, and
// the query of its request line. What a client may do follows from the endpoint's settings and its own rights.
//
// Functions and methods are called on the connection's event loop, unless they say otherwise.
package protocol

import (
	"errors"

	"carillon/codec"
	"carillon/server/internal/auth"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// Subprotocol is the one of docs/protocol.md.
const Subprotocol = "carillon.v1.json"

// Client is a connection as its protocol knows it: the same bytes with methods of its own.
type Client reactor.Conn

// Of is a connection as a client of topics.
func Of(c *reactor.Conn) *Client { return (*Client)(c) }

func (c *Client) core() *reactor.Conn { return (*reactor.Conn)(c) }

func (c *Client) shard() *reactor.Shard { return c.core().Shard() }

func (c *Client) hub() *hub.Hub { return hub.Of(c.shard()) }

// Settings are what the protocol needs of an endpoint's. They lie in reactor.LoopEndpointSettings.OwnerData. Immutable.
type Settings struct {
	Access Access
	Auth   *auth.Authenticator
}

func (c *Client) settings() *Settings { return c.core().Settings().OwnerData.(*Settings) }

// CloseRefused closes a sender whose message was not taken, or perhaps not, so that it knows: the rest is in the
// counters. It may be called from any goroutine.
func CloseRefused(c *reactor.Conn, err error) {
	switch {
	case errors.Is(err, topic.ErrOverloaded):
		_ = c.Close(codec.CloseTryAgainLater, "server is overloaded")
	case errors.Is(err, topic.ErrStoreFull):
		_ = c.Close(codec.CloseTryAgainLater, topic.ErrStoreFull.Error())
	case errors.Is(err, topic.ErrNoCluster):
		_ = c.Close(codec.CloseTryAgainLater, topic.ErrNoCluster.Error())
	case errors.Is(err, topic.ErrTooLarge): // for the broker, or since the limit was changed
		_ = c.Close(codec.CloseMessageTooBig, codec.ErrMessageTooBig.Rule)
	case errors.Is(err, topic.ErrUncertain):
		_ = c.Close(codec.CloseTryAgainLater, topic.ErrUncertain.Error())
	}
}

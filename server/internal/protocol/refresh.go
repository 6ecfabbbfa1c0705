package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"carillon/server/internal/auth"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

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

func (c *Client) doRefresh(id json.RawMessage, token string) (what string, value any, err error) {
	a, w := c.settings().Auth, c.principal()
	if !a.ChecksTokens() || w == nil {
		return "", nil, errRenewal
	}
	if w.refreshed != 0 && !reactor.TimedOut(c.shard().Clock, w.refreshed, refreshPause) {
		return "", nil, errTooOften
	}
	w.refreshed = c.shard().Clock
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
func (c *Client) verifyElsewhere(a *auth.Authenticator, id json.RawMessage, token string, takes time.Duration) {
	answer := func(renewed auth.Identity, err error) {
		var value any
		if err == nil {
			value, err = c.renew(renewed)
		}
		c.answerWith(id, "refreshed", value, err, c.sendReply)
	}
	c.core().Offload(&c.shard().Engine.TokenChecks, takes, len(token), func() func() {
		if c.core().State().Load() != reactor.StateOpen {
			return reactor.DoNothing
		}
		renewed, err := a.Verify(token)
		return func() { answer(renewed, err) }
	}, func() {
		answer(auth.Identity{}, fmt.Errorf("%w: too many tokens wait", c.shard().Refuse()))
	})
}

// renew has a token that is good take the place of the one before.
func (c *Client) renew(renewed auth.Identity) (any, error) {
	w := c.principal()
	renewed = auth.Intersect(renewed, w.bound)
	if renewed.Subject != w.Subject {
		return nil, fmt.Errorf("%w: its subject differs", errRenewal)
	}
	for i := range c.core().Extension().Subs {
		// What the client has and the new token does not allow would have to end silently. The old token goes on
		// instead, as long as it is good.
		if s := &c.core().Extension().Subs[i]; s.Asked && !auth.Allows(renewed.Subscribe, hub.NameOf(s)) {
			return nil, fmt.Errorf("%w: %s", errTokenNarrower, hub.NameOf(s))
		}
	}
	w.inForce = renewed
	expires := auth.ExpiryMillis(&renewed)
	c.shard().Deadlines.Set(c.core(), expires)
	return refreshedReply{Expires: expires}, nil
}

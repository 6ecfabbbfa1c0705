// Package auth decides who may come in: it checks the origins of pages and the tokens of clients, and asks connect
// hooks.
package auth

import (
	"context"
	"log/slog"
	"time"

	"carillon/codec"
)

// Config is what an [Authenticator] needs besides its options.
type Config struct {
	Log   *slog.Logger
	Wall  func() time.Time // tells the time by which tokens are valid
	Fetch *FetchTimes      // must not change once keys are fetched; nil is the default
}

// Authenticator checks the tokens of an endpoint's clients, and asks its connect hook. It may be used from any
// goroutine.
type Authenticator struct {
	jwt  *verifier // nil if the endpoint asks for no token
	hook *hook     // nil without one
}

// New returns the Authenticator of an endpoint, whose options [Resolve] has checked. It fails if a key file cannot be
// used; keys that have to be fetched are not there yet. The options must not change any more.
func New(j *JWT, h *Hook, config Config) (*Authenticator, error) {
	a := &Authenticator{}
	if asksForTokens(j) {
		v, err := newVerifier(j, config)
		if err != nil {
			return a, err
		}
		a.jwt = v
	}
	if h.URL != "" {
		a.hook = newHook(h, config.Log)
	}
	return a, nil
}

// ChecksTokens reports whether clients need a token, or may have one.
func (a *Authenticator) ChecksTokens() bool { return a.jwt != nil }

// CheckToken returns who a client is by the token of its request, and the zero value if it needs none and has none. It
// waits for nothing, but may take as long as TokenCost says. The error is a *[Refusal].
func (a *Authenticator) CheckToken(r *codec.Request) (Identity, error) {
	if a.jwt == nil {
		return Identity{}, nil
	}
	token, found := a.jwt.find(r)
	if found {
		return a.jwt.verify(token)
	}
	if a.jwt.opts.Optional {
		return Identity{}, nil
	}
	return Identity{}, errNoToken
}

// TokenCost is about how long CheckToken takes, 0 if that is at most 100 us or so: the time that a check of one
// signature takes with a key of the usual size.
func (a *Authenticator) TokenCost(r *codec.Request) time.Duration {
	if a.jwt == nil || !a.jwt.keys.costly.Load() {
		return 0
	}
	token, _ := a.jwt.find(r)
	return a.jwt.cost(token)
}

// Verify returns who the owner of a token is. It waits for nothing, but may take as long as VerifyCost says, and must
// not be called unless ChecksTokens. The error is a *[Refusal].
func (a *Authenticator) Verify(token string) (Identity, error) { return a.jwt.verify(token) }

// VerifyCost is like TokenCost, for Verify.
func (a *Authenticator) VerifyCost(token string) time.Duration {
	if !a.jwt.keys.costly.Load() {
		return 0
	}
	return a.jwt.cost(token)
}

// Keys returns the keys that tokens are checked with, nil unless ChecksTokens.
func (a *Authenticator) Keys() *Keyring {
	if a.jwt == nil {
		return nil
	}
	return a.jwt.keys
}

// HasHook reports whether a connect hook has to be asked.
func (a *Authenticator) HasHook() bool { return a.hook != nil }

// AskHook asks the connect hook about a request, and waits for its answer: what the client may do. Remote is the
// client's address, and subject that of its token. It must not be called unless HasHook. The error is a *[Refusal].
func (a *Authenticator) AskHook(ctx context.Context, r *codec.Request, remote, subject string) (Identity, error) {
	return a.hook.decide(ctx, r, remote, subject)
}

// PendingHookRequests returns how many requests wait for the connect hook, 0 if their number has no limit. It must not
// be called unless HasHook.
func (a *Authenticator) PendingHookRequests() int { return len(a.hook.slots) }

// Retire closes idle connections to the connect hook. It is for an Authenticator that no new request will use.
func (a *Authenticator) Retire() {
	if a.hook != nil {
		a.hook.client.CloseIdleConnections()
	}
}

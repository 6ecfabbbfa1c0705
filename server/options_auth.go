package server

import "time"

// Auth says who may open connections at an endpoint: those with a token, those that a connect hook
// allows, or, if both are set, those with a token that the hook allows as well. See docs/security.md.
type Auth struct {
	JWT  JWT  `yaml:"jwt"`
	Hook Hook `yaml:"hook"`
}

// JWT asks clients for a JSON Web Token (RFC 7519). It is used when KeyFile or JWKSURL is set.
type JWT struct {
	// Algorithms are the ones that a token may be signed with: HS256 alone, or any of RS256, ES256 and
	// EdDSA. Must be given.
	Algorithms []string `yaml:"algorithms"`

	// KeyFile holds the secret of HS256, at least 32 bytes, or up to 8 public keys or certificates in
	// PEM. It is read again when it changes.
	KeyFile string `yaml:"key_file"`

	// JWKSURL is where the public keys are published as a JSON Web Key Set (RFC 7517). They are fetched
	// at the start, every 5 minutes, and when a token names a key that is not known, but then at most
	// once in 5 seconds. Where it is shown, "(set)" stands for a user, a password, and its query.
	JWKSURL string `yaml:"jwks_url" secret:"url"`

	// Issuer and Audience, if set, are what the token must have as "iss", and among "aud".
	Issuer   string `yaml:"issuer"`
	Audience string `yaml:"audience"`

	// Leeway is by how much the issuer's clock may differ from this one. Default 10 s; negative is not
	// at all.
	Leeway time.Duration `yaml:"leeway"`

	// From lists where the token may be, in this order: "header" is Authorization: Bearer, "cookie:NAME" a
	// cookie, "query" the parameter token, and "subprotocol" a value carillon.token.TOKEN in
	// Sec-WebSocket-Protocol. The first place that has one counts. Default: header, subprotocol.
	From []string `yaml:"from"`

	// Optional lets clients in that have no token, as unknown clients. A wrong token is refused all
	// the same.
	Optional bool `yaml:"optional"`
}

// Hook asks an HTTP server about each handshake. It is used when URL is set.
type Hook struct {
	// URL is where the question is POSTed to. Where it is shown, "(set)" stands for a user, a password, and its query.
	URL string `yaml:"url" secret:"url"`

	// Timeout is how long the answer may take. Default 2 s; it cannot be turned off.
	Timeout time.Duration `yaml:"timeout"`

	// Headers are those of the handshake that the hook is told. Default: Cookie, Authorization.
	Headers []string `yaml:"headers"`

	// MaxInFlight is how many questions may be open at once; beyond it clients are answered 503.
	// Default 256; negative is no limit.
	MaxInFlight int `yaml:"max_in_flight"`
}

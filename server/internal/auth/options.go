package auth

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"carillon/codec"
	"carillon/internal/redact"
	"carillon/server/internal/option"
)

// Options says who may open connections at an endpoint: those with a token, those that a connect hook
// allows, or, if both are set, those with a token that the hook allows as well. See docs/security.md.
type Options struct {
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

	// Optional lets clients in that have no token, as somebody unknown. A wrong token is refused all
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

func asksForTokens(j *JWT) bool { return j.KeyFile != "" || j.JWKSURL != "" }

// Resolve replaces every zero by its default, and adds what is wrong with the options to the problems of c, where their
// keys begin with key.
func Resolve(o *Options, c *option.Checker, key string) {
	resolveJWT(&o.JWT, c, key+"jwt.")
	resolveHook(&o.Hook, c, key+"hook.")
}

// algorithms that tokens can be signed with. Each kind of key is for one of them.
var algorithms = []string{"HS256", "RS256", "ES256", "EdDSA"}

func resolveJWT(j *JWT, c *option.Checker, key string) {
	if j.From == nil {
		j.From = []string{"header", "subprotocol"}
	}
	c.Duration(key+"leeway", &j.Leeway, 10*time.Second, true)
	for i, from := range j.From {
		cookie, isCookie := strings.CutPrefix(from, "cookie:")
		if isCookie && !codec.IsToken(cookie) || !isCookie && !slices.Contains([]string{"header", "query", "subprotocol"}, from) {
			c.Add(fmt.Sprintf("%sfrom[%d]", key, i), "%q is unknown: expected header, cookie:NAME, query or subprotocol", from)
		}
	}
	for i, a := range j.Algorithms {
		if !slices.Contains(algorithms, a) {
			c.Add(fmt.Sprintf("%salgorithms[%d]", key, i), "%q is unknown: expected %s", a, strings.Join(algorithms, ", "))
		}
	}
	secret := slices.Contains(j.Algorithms, "HS256")
	switch {
	case !asksForTokens(j):
		if len(j.Algorithms) > 0 || j.Issuer != "" || j.Audience != "" || j.Optional {
			c.Add(key+"key_file", "is missing: expected it or jwks_url, since tokens cannot be checked without keys")
		}
		return
	case j.KeyFile != "" && j.JWKSURL != "":
		c.Add(key+"jwks_url", "and key_file are mutually exclusive")
	case len(j.Algorithms) == 0:
		c.Add(key+"algorithms", "is missing: expected HS256, or any of RS256, ES256 and EdDSA")
	case secret && len(j.Algorithms) > 1:
		c.Add(key+"algorithms", "mixes HS256 with others: its key is secret, theirs are public")
	case secret && j.JWKSURL != "":
		c.Add(key+"algorithms", "has HS256, but the keys of jwks_url are public")
	}
	if j.JWKSURL != "" {
		checkURL(c, key+"jwks_url", j.JWKSURL)
	}
}

func resolveHook(h *Hook, c *option.Checker, key string) {
	c.Duration(key+"timeout", &h.Timeout, 2*time.Second, false)
	if h.Headers == nil {
		h.Headers = []string{"Cookie", "Authorization"}
	}
	for i, name := range h.Headers {
		if !codec.IsToken(name) {
			c.Add(fmt.Sprintf("%sheaders[%d]", key, i), "%q is not the name of a header", name)
		}
	}
	if h.MaxInFlight == 0 {
		h.MaxInFlight = 256
	}
	h.MaxInFlight = max(h.MaxInFlight, -1)
	if h.URL != "" {
		checkURL(c, key+"url", h.URL)
	}
}

func checkURL(c *option.Checker, key, text string) {
	if err := redact.Check(text); err != nil {
		c.Add(key, "%v", err)
	} else if u, err := url.Parse(text); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		c.Add(key, "is not a URL: expected one such as https://auth.example.com/path")
	}
}

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

// JWT is what package server documents as its JWT.
type JWT struct {
	Algorithms       []string
	KeyFile          string
	JWKSURL          string
	Issuer, Audience string
	Leeway           time.Duration
	From             []string
	Optional         bool
}

// Hook is what package server documents as its Hook.
type Hook struct {
	URL         string
	Timeout     time.Duration
	Headers     []string
	MaxInFlight int
}

func asksForTokens(j *JWT) bool { return j.KeyFile != "" || j.JWKSURL != "" }

// Resolve replaces every zero by its default, and adds what is wrong with the options to the problems of c, where their
// keys begin with key.
func Resolve(j *JWT, h *Hook, c *option.Checker, key string) {
	resolveJWT(j, c, key+"jwt.")
	resolveHook(h, c, key+"hook.")
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

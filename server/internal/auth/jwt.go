package auth

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
	"carillon/server/stats"
)

// tokenProtocol is the beginning of a subprotocol that is a token: scripts in browsers can set no header
// but that one. It is in no endpoint's list, and so never the one that is chosen.
const tokenProtocol = "carillon.token."

// find returns the token of a request and whether there is one. A token that is empty or garbled is one, too: a client
// that tried to say its name is not let in as an unknown client.
func (v *verifier) find(r *codec.Request) (token string, found bool) {
	for _, from := range v.opts.From {
		switch from {
		case "header":
			token, found = bearer(r)
		case "query":
			token, found = queryToken(r.Query)
		case "subprotocol":
			token, found = listed(r, "Sec-WebSocket-Protocol", ",", tokenProtocol)
		default:
			token, found = listed(r, "Cookie", ";", strings.TrimPrefix(from, "cookie:")+"=")
		}
		if found {
			return token, true
		}
	}
	return "", false
}

// bearer returns the token in the Authorization header (RFC 6750, section 2.1). Of several tokens none counts: a proxy
// may have looked at another one.
func bearer(r *codec.Request) (token string, found bool) {
	for name, value := range r.Headers() {
		if !bytes.EqualFold(name, []byte("Authorization")) {
			continue
		}
		scheme, text, _ := bytes.Cut(value, []byte(" "))
		switch {
		case !bytes.EqualFold(scheme, []byte("Bearer")):
		case found:
			return "", true
		default:
			token, found = string(bytes.TrimSpace(text)), true
		}
	}
	return token, found
}

// queryToken returns the parameter token. Of several, or of one that is not well-formed, it returns "".
func queryToken(query []byte) (token string, found bool) {
	for part := range bytes.SplitSeq(query, []byte("&")) {
		value, ok := bytes.CutPrefix(part, []byte("token="))
		switch {
		case !ok:
		case found:
			return "", true
		default:
			token, _ = url.QueryUnescape(string(value))
			found = true
		}
	}
	return token, found
}

// listed returns what follows a prefix in the first item of a list that has it, in any of the headers of
// that name.
func listed(r *codec.Request, header, separator, prefix string) (token string, found bool) {
	for name, value := range r.Headers() {
		if len(name) != len(header) || !strings.EqualFold(string(name), header) {
			continue
		}
		for item := range bytes.SplitSeq(value, []byte(separator)) {
			if token, ok := bytes.CutPrefix(bytes.TrimSpace(item), []byte(prefix)); ok {
				return strings.Trim(string(token), `"`), true
			}
		}
	}
	return "", false
}

// The answers to a token that is not good. Their texts are for the client: they say what is wrong and
// nothing of what the token holds.
var (
	errNoToken = &Refusal{Why: stats.RefuseNoToken, Rejection: &codec.Rejection{Status: 401, Reason: "a token is required",
		Header: [][2]string{{"WWW-Authenticate", "Bearer"}}}}
	errTokenMalformed = badToken(stats.RefuseTokenMalformed, "the token is malformed")
	errTokenClaims    = badToken(stats.RefuseTokenMalformed, "the claims of the token are invalid")
	errTokenAlgorithm = badToken(stats.RefuseTokenAlgorithm, "the signature algorithm of the token is not accepted")
	errTokenKey       = badToken(stats.RefuseTokenKey, "the key of the token is unknown")
	errTokenSignature = badToken(stats.RefuseTokenSignature, "the signature of the token is invalid")
	errTokenExpired   = badToken(stats.RefuseTokenExpired, "the token has expired")
	errTokenEarly     = badToken(stats.RefuseTokenEarly, "the token is not valid yet")
	errTokenIssuer    = badToken(stats.RefuseTokenIssuer, "the token has another issuer")
	errTokenAudience  = badToken(stats.RefuseTokenAudience, "the token is for another audience")

	errKeysFetched = &Refusal{Why: stats.RefuseTokenKey, Rejection: &codec.Rejection{Status: 503, Reason: "the key of the token is not loaded yet",
		Header: [][2]string{{"Retry-After", "1"}}}}
	errNoKeys = &Refusal{Why: stats.RefuseNoKeys, Rejection: &codec.Rejection{Status: 503, Reason: "tokens cannot be checked at the moment",
		Header: [][2]string{{"Retry-After", "5"}}}}
)

// badToken makes a refusal as RFC 6750, section 3, has it. The text has neither quotes nor backslashes.
func badToken(why stats.RefuseReason, text string) *Refusal {
	return &Refusal{Why: why, Rejection: &codec.Rejection{Status: 401, Reason: text,
		Header: [][2]string{{"WWW-Authenticate", fmt.Sprintf(`Bearer error="invalid_token", error_description=%q`, text)}}}}
}

// verifier checks the tokens of an endpoint. It may be used from any goroutine and waits for nothing.
type verifier struct {
	opts   *JWT
	keys   *Keyring
	parser *jwt.Parser
}

func newVerifier(opts *JWT, config Config) (*verifier, error) {
	keys, err := newKeyring(opts, config)
	if err != nil {
		return nil, err
	}
	check := []jwt.ParserOption{jwt.WithValidMethods(opts.Algorithms), jwt.WithLeeway(max(opts.Leeway, 0)), jwt.WithStrictDecoding(), jwt.WithTimeFunc(config.Wall)}
	if opts.Issuer != "" {
		check = append(check, jwt.WithIssuer(opts.Issuer))
	}
	if opts.Audience != "" {
		check = append(check, jwt.WithAudience(opts.Audience))
	}
	return &verifier{opts: opts, keys: keys, parser: jwt.NewParser(check...)}, nil
}

// maxToken bounds the work before a signature is known to be good. In a handshake limits.max_head does so
// as well.
const maxToken = 16 << 10

// verify returns who the owner of a token is. The error is a *Refusal.
func (v *verifier) verify(token string) (Identity, error) {
	if len(token) > maxToken {
		return Identity{}, errTokenMalformed
	}
	var c claims
	parsed, err := v.parser.ParseWithClaims(token, &c, v.key)
	if err != nil {
		return Identity{}, v.reason(parsed, &c, err)
	}
	if !c.read { // they are null, which the parser takes for no claims at all
		return Identity{}, errTokenClaims
	}
	id := Identity{Subscribe: c.Carillon.Subscribe, Publish: c.Carillon.Publish}
	id.Subject, _ = c.GetSubject()
	if c.expires != nil {
		id.Expires = c.expires.Add(max(v.opts.Leeway, 0))
	}
	if CheckIdentity(&id) != nil {
		return Identity{}, badClaims("the carillon claim has an entry that is neither a topic nor a pattern")
	}
	return id, nil
}

// cost is about how long verify takes for a token, 0 if that is no longer than a check with one usual key. It looks
// only at the token's header.
func (v *verifier) cost(token string) time.Duration {
	if len(token) > maxToken {
		return 0
	}
	h, err := readHeader(token)
	if err != nil { // verify refuses it before it looks for keys
		return 0
	}
	return v.keys.cost(h.Algorithm, h.Key)
}

// key finds the keys that may have signed a token. Each is good for one algorithm only, so a public key is
// never taken for a secret.
func (v *verifier) key(t *jwt.Token) (any, error) {
	name, err := checkHeader(t)
	if err != nil {
		return nil, err
	}
	found, err := v.keys.find(t.Method.Alg(), name)
	if err != nil {
		return nil, err
	}
	return found, nil
}

// reason finds the answer for an error of the parser, whose own text is not shown to clients.
func (v *verifier) reason(t *jwt.Token, c *claims, err error) error {
	var named *Refusal
	if errors.As(err, &named) {
		return named
	}
	if t != nil {
		if algorithm, ok := t.Header["alg"].(string); ok && !slices.Contains(v.opts.Algorithms, algorithm) {
			return errTokenAlgorithm
		}
	}
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errTokenMalformed
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errTokenSignature
	case errors.Is(err, jwt.ErrTokenExpired):
		return errTokenExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return errTokenEarly
	case errors.Is(err, jwt.ErrTokenInvalidIssuer), v.opts.Issuer != "" && c.Issuer == "":
		return errTokenIssuer
	case errors.Is(err, jwt.ErrTokenInvalidAudience), v.opts.Audience != "" && len(c.Audience) == 0:
		return errTokenAudience
	}
	return errTokenClaims
}

package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"carillon/server/internal/strictjson"
	"carillon/server/stats"
)

// claims are those of a token that are looked at (RFC 7519, section 4.1). Others may be there. They implement
// [jwt.Claims].
type claims struct {
	Issuer    string           `json:"iss"`
	Subject   *string          `json:"sub"`
	Audience  jwt.ClaimStrings `json:"aud"`
	Expires   json.RawMessage  `json:"exp"`
	NotBefore json.RawMessage  `json:"nbf"`
	IssuedAt  json.RawMessage  `json:"iat"`
	Carillon  rights           `json:"carillon"`

	read                         bool // there was an object
	expires, notBefore, issuedAt *jwt.NumericDate
}

// rights are the claim "carillon".
type rights struct {
	Subscribe []string `json:"subscribe"`
	Publish   []string `json:"publish"`
}

var (
	claimsShape = strictjson.ShapeOf[claims](strictjson.Rules{Unknown: true})
	rightsShape = strictjson.ShapeOf[rights](strictjson.Rules{})
)

// badClaims says what is wrong with the claims of a token.
func badClaims(problem string) *Refusal {
	return badToken(stats.RefuseTokenMalformed, errTokenClaims.Reason+": "+problem)
}

// UnmarshalJSON refuses what a claim may not be. That includes null, which RFC 7519 has for none. The error is a
// *Refusal.
func (c *claims) UnmarshalJSON(b []byte) error {
	type plain claims
	err := claimsShape.Unmarshal(b, (*plain)(c))
	if err == nil && c.Subject != nil {
		err = checkSubject("sub", *c.Subject)
	}
	for _, date := range []struct {
		name  string
		text  json.RawMessage
		round func(float64) float64 // toward refusing
		to    **jwt.NumericDate
	}{{"exp", c.Expires, math.Floor, &c.expires}, {"nbf", c.NotBefore, math.Ceil, &c.notBefore}, {"iat", c.IssuedAt, math.Ceil, &c.issuedAt}} {
		if err == nil && date.text != nil {
			var at time.Time
			at, err = parseSecond(date.name, date.text, date.round)
			*date.to = &jwt.NumericDate{Time: at}
		}
	}
	if err != nil {
		return claimsProblem(err)
	}
	c.read = true
	return nil
}

// checkSubject refuses an empty name, and one that JSON cannot tell from others: halves of surrogate pairs and what is
// no UTF-8 are decoded as U+FFFD. The error is a *strictjson.Error.
func checkSubject(member, subject string) error {
	switch {
	case subject == "":
		return &strictjson.Error{Path: member, Problem: "is empty: expected a name, or omit the claim"}
	case strings.ContainsRune(subject, utf8.RuneError):
		return &strictjson.Error{Path: member, Problem: "is not Unicode text: it has an unpaired surrogate or the character U+FFFD"}
	}
	return nil
}

// claimsProblem tells an error in words that repeat nothing of the token.
func claimsProblem(err error) error {
	if e, ok := errors.AsType[*strictjson.Error](err); ok {
		return badClaims(e.Plain())
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		return badClaims("a claim has the wrong type: " + e.Field)
	}
	return errTokenClaims
}

// UnmarshalJSON refuses what it does not know: a limit with a typing error must not become none. Null is an error, too:
// to an issuer written in Go it is an empty list, and here it would be no limit.
func (r *rights) UnmarshalJSON(b []byte) error {
	type plain rights
	err := rightsShape.Unmarshal(b, (*plain)(r))
	if e, ok := errors.AsType[*strictjson.Error](err); ok {
		return e.Within("carillon")
	}
	return err
}

func (c *claims) GetExpirationTime() (*jwt.NumericDate, error) { return c.expires, nil }
func (c *claims) GetNotBefore() (*jwt.NumericDate, error)      { return c.notBefore, nil }
func (c *claims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.issuedAt, nil }
func (c *claims) GetAudience() (jwt.ClaimStrings, error)       { return c.Audience, nil }
func (c *claims) GetIssuer() (string, error)                   { return c.Issuer, nil }

func (c *claims) GetSubject() (string, error) {
	if c.Subject == nil {
		return "", nil
	}
	return *c.Subject, nil
}

// protected are the members of a token's header that decide something (RFC 7515, section 4.1).
type protected struct {
	Algorithm string          `json:"alg"`
	Key       string          `json:"kid"`
	Critical  json.RawMessage `json:"crit"`
}

var protectedShape = strictjson.ShapeOf[protected](strictjson.Rules{Unknown: true})

// checkHeader returns the name of the key that a token says it is signed with; "" if it does not. The parser has
// decoded the header before, but forgives what may not decide anything. The error is a *Refusal.
func checkHeader(t *jwt.Token) (key string, err error) {
	h, err := readHeader(t.Raw)
	if err != nil {
		return "", err
	}
	if h.Critical != nil || h.Algorithm != t.Method.Alg() { // section 4.1.11: nothing of crit is understood here
		return "", errTokenMalformed
	}
	return h.Key, nil
}

// readHeader reads the header of a token. The error is a *Refusal.
func readHeader(token string) (h protected, err error) {
	first, _, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.Strict().DecodeString(first)
	if err != nil {
		return h, errTokenMalformed
	}
	err = protectedShape.Unmarshal(text, &h)
	if e, ok := errors.AsType[*strictjson.Error](err); ok {
		return h, badToken(stats.RefuseTokenMalformed, "the header of the token is invalid: "+e.Plain())
	}
	if err != nil {
		return h, errTokenMalformed
	}
	return h, nil
}

// maxSeconds is the largest whole number that every reader of JSON reads alike (RFC 8259, section 6). A time beyond it,
// in either direction, is refused: it is a mistake, and from 2^63 on it would overflow.
const maxSeconds = 1<<53 - 1

// parseSecond reads the time of a member: the number of seconds since 1970, as the NumericDate of RFC 7519, section 2.
// It may have a fraction, as that of JavaScript's Date.now()/1000, and is rounded to a whole second. The error is a
// *strictjson.Error.
func parseSecond(member string, text []byte, round func(float64) float64) (time.Time, error) {
	if len(text) == 0 || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return time.Time{}, &strictjson.Error{Path: member, Problem: "is not a number: expected seconds since 1970"}
	}
	n, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.Abs(n) > maxSeconds {
		return time.Time{}, &strictjson.Error{Path: member, Problem: fmt.Sprintf("is out of range: expected seconds since 1970, at most %d", int64(maxSeconds))}
	}
	return time.Unix(int64(round(n)), 0), nil
}

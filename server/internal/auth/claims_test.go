package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server/stats"
)

// signed signs a header and claims as they stand, with HS256.
func signed(i *testenv.Issuer, header, claims string) string {
	text := strings.TrimSuffix(testenv.JoinToken(header, claims, ""), ".")
	mac := hmac.New(sha256.New, i.Secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const (
	hs256 = `{"alg":"HS256"}`
	good  = stats.RefuseReason(255) // of a token that is not refused
)

// A token is signed well, and says something that could be taken for more than it is. It is refused, or means what it
// says and no more. The present is the second 2,000,000,000.
func TestWhatATokenMeans(t *testing.T) {
	i := testenv.NewIssuer(t)
	const now = 2_000_000_000
	v, err := newVerifier(&JWT{Algorithms: []string{"HS256"}, KeyFile: i.File("HS256"), Leeway: -1},
		Config{Log: slog.New(slog.DiscardHandler), Wall: func() time.Time { return time.Unix(now, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		claims string
		why    stats.RefuseReason // good for a token that is good
		text   string             // a part of the answer
		id     string             // what it means, if it is good
	}{
		{`{}`, good, "", `"" [] [] -`},
		{`{"sub":"ada","name":"x","name":"y","carillon":{"subscribe":["a"],"publish":[]}}`, good, "", `"ada" ["a"] [] -`},
		{`null`, stats.RefuseTokenMalformed, "the claims of the token are invalid", ""},
		{`[]`, stats.RefuseTokenMalformed, "", ""},
		{`{} {}`, stats.RefuseTokenMalformed, "", ""},

		{`{"carillon":null}`, stats.RefuseTokenMalformed, "carillon is null", ""},
		{`{"carillon":{"subscribe":null}}`, stats.RefuseTokenMalformed, "carillon.subscribe is null", ""},
		{`{"carillon":{"publish":null,"subscribe":[]}}`, stats.RefuseTokenMalformed, "carillon.publish is null", ""},
		{`{"carillon":{"subscribe":[null]}}`, stats.RefuseTokenMalformed, "neither a topic nor a pattern", ""},
		{`{"carillon":{"subscibe":[]}}`, stats.RefuseTokenMalformed, "carillon has an unknown field: expected only subscribe, publish", ""},
		{`{"carillon":{"Subscribe":[]}}`, stats.RefuseTokenMalformed, "carillon has a field that differs from subscribe in case only", ""},
		{`{"carillon":{"\u017fubscribe":[]}}`, stats.RefuseTokenMalformed, "differs from subscribe", ""},
		{`{"carillon":{"subscribe":["a"],"subscribe":[">"]}}`, stats.RefuseTokenMalformed, "carillon.subscribe is given twice", ""},
		{`{"carillon":{"subscribe":[]},"carillon":{}}`, stats.RefuseTokenMalformed, "carillon is given twice", ""},
		{`{"Carillon":{"subscribe":[]}}`, stats.RefuseTokenMalformed, "differs from carillon", ""},
		{`{"carillon":[]}`, stats.RefuseTokenMalformed, "", ""},
		{`{"carillon":{"subscribe":"a"}}`, stats.RefuseTokenMalformed, "", ""},
		{`{"carillon":{}}`, good, "", `"" [] [] -`},

		{`{"sub":null}`, stats.RefuseTokenMalformed, "sub is null", ""},
		{`{"sub":""}`, stats.RefuseTokenMalformed, "sub is empty", ""},
		{`{"sub":"\ud800"}`, stats.RefuseTokenMalformed, "sub is not Unicode text", ""}, // or it would be the same as \udfff
		{`{"sub":"ada\ude00\ud83d"}`, stats.RefuseTokenMalformed, "sub is not Unicode text", ""},
		{"{\"sub\":\"\xff\"}", stats.RefuseTokenMalformed, "sub is not Unicode text", ""},
		{`{"sub":"\ud83d\ude00"}`, good, "", `"😀" [] [] -`},
		{`{"sub":7}`, stats.RefuseTokenMalformed, "sub", ""},
		{`{"sub":"ada","SUB":"eve"}`, stats.RefuseTokenMalformed, "differs from sub", ""},
		{`{"\u017fub":"eve"}`, stats.RefuseTokenMalformed, "differs from sub", ""},
		{`{"sub":"ada","\u0073ub":"eve"}`, stats.RefuseTokenMalformed, "sub is given twice", ""},
		{`{"iss":null}`, stats.RefuseTokenMalformed, "iss is null", ""},
		{`{"aud":null}`, stats.RefuseTokenMalformed, "aud is null", ""},
		{`{"aud":[null]}`, stats.RefuseTokenMalformed, "", ""},
		{`{"exp":null}`, stats.RefuseTokenMalformed, "exp is null", ""},
		{`{"nbf":null}`, stats.RefuseTokenMalformed, "nbf is null", ""},
		{`{"iat":null}`, stats.RefuseTokenMalformed, "iat is null", ""},
		{`{"exp":2100000000,"exp":1}`, stats.RefuseTokenMalformed, "exp is given twice", ""},
		{`{"Exp":1}`, stats.RefuseTokenMalformed, "differs from exp", ""},

		{`{"exp":2000000001}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":2000000000}`, stats.RefuseTokenExpired, "", ""},
		{`{"exp":2000000001.9}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":2000000000.9}`, stats.RefuseTokenExpired, "", ""},
		{`{"exp":2.000000001e9}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":0}`, stats.RefuseTokenExpired, "", ""},
		{`{"exp":-1}`, stats.RefuseTokenExpired, "", ""},
		{`{"exp":-62135596800}`, stats.RefuseTokenExpired, "", ""}, // which is Go's zero time
		{`{"exp":1e-400}`, stats.RefuseTokenExpired, "", ""},
		{`{"exp":9007199254740991}`, good, "", `"" [] [] 9007199254740991`},
		{`{"exp":9007199254740993}`, stats.RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":9223372036854775807}`, stats.RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":9223372036854775808}`, stats.RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":1e400}`, stats.RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":-1e400}`, stats.RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":"2100000000"}`, stats.RefuseTokenMalformed, "exp is not a number", ""},
		{`{"exp":true}`, stats.RefuseTokenMalformed, "exp is not a number", ""},
		{`{"exp":[2100000000]}`, stats.RefuseTokenMalformed, "exp is not a number", ""},

		{`{"nbf":2000000000}`, good, "", `"" [] [] -`},
		{`{"nbf":2000000000.1}`, stats.RefuseTokenEarly, "", ""},
		{`{"nbf":-5}`, good, "", `"" [] [] -`},
		{`{"nbf":9223372036854775808}`, stats.RefuseTokenMalformed, "nbf is out of range", ""},
		{`{"nbf":1e400}`, stats.RefuseTokenMalformed, "nbf is out of range", ""},
		{`{"nbf":1e15}`, stats.RefuseTokenEarly, "", ""},
		{`{"nbf":"1"}`, stats.RefuseTokenMalformed, "nbf is not a number", ""},
	} {
		id, err := v.verify(signed(i, hs256, test.claims))
		checkMeaning(t, test.claims, id, err, test.why, test.text, test.id)
	}

	for header, why := range map[string]stats.RefuseReason{
		`{"alg":"HS256","kid":"k","typ":"JWT","x":null}`: good,
		`{"alg":"HS256","crit":["b64"],"b64":false}`:     stats.RefuseTokenMalformed,
		`{"alg":"HS256","crit":[]}`:                      stats.RefuseTokenMalformed,
		`{"alg":"HS256","crit":null}`:                    stats.RefuseTokenMalformed,
		`{"alg":"HS256","Crit":["b64"]}`:                 stats.RefuseTokenMalformed,
		`{"alg":"HS256","kid":null}`:                     stats.RefuseTokenMalformed,
		`{"alg":"HS256","kid":7}`:                        stats.RefuseTokenMalformed,
		`{"alg":"HS256","kid":"a","kid":"b"}`:            stats.RefuseTokenMalformed,
		`{"alg":"HS256","KID":"a"}`:                      stats.RefuseTokenMalformed,
		`{"alg":"none","alg":"HS256"}`:                   stats.RefuseTokenMalformed,
		`{"alg":"HS256","alg":"none"}`:                   stats.RefuseTokenAlgorithm,
		`{"alg":"HS256","ALG":"none"}`:                   stats.RefuseTokenMalformed,
		`{"Alg":"HS256"}`:                                stats.RefuseTokenMalformed,
		`{"alg":null}`:                                   stats.RefuseTokenMalformed,
		`{"alg":"hs256"}`:                                stats.RefuseTokenAlgorithm,
		`null`:                                           stats.RefuseTokenMalformed,
	} {
		id, err := v.verify(signed(i, header, `{"sub":"ada"}`))
		checkMeaning(t, header, id, err, why, "", `"ada" [] [] -`)
	}
}

func checkMeaning(t *testing.T, what string, id Identity, err error, why stats.RefuseReason, text, means string) {
	t.Helper()
	if why != good {
		no, _ := errors.AsType[*Refusal](err)
		if no == nil || no.Why != why || !strings.Contains(no.Reason, text) {
			t.Errorf("%s: %+v, %v; want %s: %s", what, id, err, why, text)
		} else if challenge := no.Header[0][1]; strings.Count(challenge, `"`) != 4 || strings.Contains(challenge, `\`) {
			t.Errorf("%s: WWW-Authenticate: %s", what, challenge)
		}
		return
	}
	expires := "-"
	if !id.Expires.IsZero() {
		expires = fmt.Sprint(id.Expires.Unix())
	}
	if got := fmt.Sprintf("%q %q %q %s", id.Subject, id.Subscribe, id.Publish, expires); err != nil || got != means {
		t.Errorf("%s: %s, %v; want %s", what, got, err, means)
	}
}

// Whatever the claims are, a verifier that lets a token in has read them as they stand.
func FuzzClaims(f *testing.F) {
	f.Add(`{"sub":"ada","exp":1e9,"carillon":{"subscribe":["a"]}}`)
	f.Add(`{"carillon":null}`)
	f.Add(`{"EXP":1,"exp":-0.5}`)
	f.Fuzz(func(t *testing.T, text string) {
		var c claims
		if err := c.UnmarshalJSON([]byte(text)); err != nil {
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Errorf("%q: %T", text, err)
			}
			return
		}
		if c.expires == nil && strings.Contains(text, `"exp":`) && !strings.Contains(text, `\`) && strings.Count(text, "{") == 1 {
			t.Errorf("%s has an exp, and never expires", text)
		}
		if c.Carillon.Subscribe == nil && strings.Contains(text, `"subscribe":`) && strings.Contains(text, `"carillon":{"subscribe"`) &&
			!strings.Contains(text, `\`) && strings.Count(text, "{") == 2 {
			t.Errorf("%s allows everything", text)
		}
	})
}

package server

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
)

// signed signs a header and claims as they stand, with HS256.
func (i *issuer) signed(header, claims string) string {
	text := strings.TrimSuffix(testenv.JoinToken(header, claims, ""), ".")
	mac := hmac.New(sha256.New, i.Secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const (
	hs256 = `{"alg":"HS256"}`
	good  = RefuseReason(255) // of a token that is not refused
)

// A token is signed well, and says something that could be taken for more than it is. It is refused, or means what it
// says and no more. The present is the second 2,000,000,000.
func TestWhatATokenMeans(t *testing.T) {
	i := newIssuer(t)
	const now = 2_000_000_000
	v, err := newVerifier(&JWT{Algorithms: []string{"HS256"}, KeyFile: i.File("HS256"), Leeway: -1},
		gateConfig{log: slog.New(slog.DiscardHandler), wall: func() time.Time { return time.Unix(now, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		claims string
		why    RefuseReason // good for a token that is good
		text   string       // a part of the answer
		id     string       // what it means, if it is good
	}{
		{`{}`, good, "", `"" [] [] -`},
		{`{"sub":"ada","name":"x","name":"y","carillon":{"subscribe":["a"],"publish":[]}}`, good, "", `"ada" ["a"] [] -`},
		{`null`, RefuseTokenMalformed, "the claims of the token are invalid", ""},
		{`[]`, RefuseTokenMalformed, "", ""},
		{`{} {}`, RefuseTokenMalformed, "", ""},

		{`{"carillon":null}`, RefuseTokenMalformed, "carillon is null", ""},
		{`{"carillon":{"subscribe":null}}`, RefuseTokenMalformed, "carillon.subscribe is null", ""},
		{`{"carillon":{"publish":null,"subscribe":[]}}`, RefuseTokenMalformed, "carillon.publish is null", ""},
		{`{"carillon":{"subscribe":[null]}}`, RefuseTokenMalformed, "neither a topic nor a pattern", ""},
		{`{"carillon":{"subscibe":[]}}`, RefuseTokenMalformed, "carillon has an unknown field: expected only subscribe, publish", ""},
		{`{"carillon":{"Subscribe":[]}}`, RefuseTokenMalformed, "carillon has a field that differs from subscribe in case only", ""},
		{`{"carillon":{"\u017fubscribe":[]}}`, RefuseTokenMalformed, "differs from subscribe", ""},
		{`{"carillon":{"subscribe":["a"],"subscribe":[">"]}}`, RefuseTokenMalformed, "carillon.subscribe is given twice", ""},
		{`{"carillon":{"subscribe":[]},"carillon":{}}`, RefuseTokenMalformed, "carillon is given twice", ""},
		{`{"Carillon":{"subscribe":[]}}`, RefuseTokenMalformed, "differs from carillon", ""},
		{`{"carillon":[]}`, RefuseTokenMalformed, "", ""},
		{`{"carillon":{"subscribe":"a"}}`, RefuseTokenMalformed, "", ""},
		{`{"carillon":{}}`, good, "", `"" [] [] -`},

		{`{"sub":null}`, RefuseTokenMalformed, "sub is null", ""},
		{`{"sub":""}`, RefuseTokenMalformed, "sub is empty", ""},
		{`{"sub":"\ud800"}`, RefuseTokenMalformed, "sub is not Unicode text", ""}, // or it would be the same as \udfff
		{`{"sub":"ada\ude00\ud83d"}`, RefuseTokenMalformed, "sub is not Unicode text", ""},
		{"{\"sub\":\"\xff\"}", RefuseTokenMalformed, "sub is not Unicode text", ""},
		{`{"sub":"\ud83d\ude00"}`, good, "", `"😀" [] [] -`},
		{`{"sub":7}`, RefuseTokenMalformed, "sub", ""},
		{`{"sub":"ada","SUB":"eve"}`, RefuseTokenMalformed, "differs from sub", ""},
		{`{"\u017fub":"eve"}`, RefuseTokenMalformed, "differs from sub", ""},
		{`{"sub":"ada","\u0073ub":"eve"}`, RefuseTokenMalformed, "sub is given twice", ""},
		{`{"iss":null}`, RefuseTokenMalformed, "iss is null", ""},
		{`{"aud":null}`, RefuseTokenMalformed, "aud is null", ""},
		{`{"aud":[null]}`, RefuseTokenMalformed, "", ""},
		{`{"exp":null}`, RefuseTokenMalformed, "exp is null", ""},
		{`{"nbf":null}`, RefuseTokenMalformed, "nbf is null", ""},
		{`{"iat":null}`, RefuseTokenMalformed, "iat is null", ""},
		{`{"exp":2100000000,"exp":1}`, RefuseTokenMalformed, "exp is given twice", ""},
		{`{"Exp":1}`, RefuseTokenMalformed, "differs from exp", ""},

		{`{"exp":2000000001}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":2000000000}`, RefuseTokenExpired, "", ""},
		{`{"exp":2000000001.9}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":2000000000.9}`, RefuseTokenExpired, "", ""},
		{`{"exp":2.000000001e9}`, good, "", `"" [] [] 2000000001`},
		{`{"exp":0}`, RefuseTokenExpired, "", ""},
		{`{"exp":-1}`, RefuseTokenExpired, "", ""},
		{`{"exp":-62135596800}`, RefuseTokenExpired, "", ""}, // which is Go's zero time
		{`{"exp":1e-400}`, RefuseTokenExpired, "", ""},
		{`{"exp":9007199254740991}`, good, "", `"" [] [] 9007199254740991`},
		{`{"exp":9007199254740993}`, RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":9223372036854775807}`, RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":9223372036854775808}`, RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":1e400}`, RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":-1e400}`, RefuseTokenMalformed, "exp is out of range", ""},
		{`{"exp":"2100000000"}`, RefuseTokenMalformed, "exp is not a number", ""},
		{`{"exp":true}`, RefuseTokenMalformed, "exp is not a number", ""},
		{`{"exp":[2100000000]}`, RefuseTokenMalformed, "exp is not a number", ""},

		{`{"nbf":2000000000}`, good, "", `"" [] [] -`},
		{`{"nbf":2000000000.1}`, RefuseTokenEarly, "", ""},
		{`{"nbf":-5}`, good, "", `"" [] [] -`},
		{`{"nbf":9223372036854775808}`, RefuseTokenMalformed, "nbf is out of range", ""},
		{`{"nbf":1e400}`, RefuseTokenMalformed, "nbf is out of range", ""},
		{`{"nbf":1e15}`, RefuseTokenEarly, "", ""},
		{`{"nbf":"1"}`, RefuseTokenMalformed, "nbf is not a number", ""},
	} {
		id, err := v.verify(i.signed(hs256, test.claims))
		checkMeaning(t, test.claims, id, err, test.why, test.text, test.id)
	}

	for header, why := range map[string]RefuseReason{
		`{"alg":"HS256","kid":"k","typ":"JWT","x":null}`: good,
		`{"alg":"HS256","crit":["b64"],"b64":false}`:     RefuseTokenMalformed,
		`{"alg":"HS256","crit":[]}`:                      RefuseTokenMalformed,
		`{"alg":"HS256","crit":null}`:                    RefuseTokenMalformed,
		`{"alg":"HS256","Crit":["b64"]}`:                 RefuseTokenMalformed,
		`{"alg":"HS256","kid":null}`:                     RefuseTokenMalformed,
		`{"alg":"HS256","kid":7}`:                        RefuseTokenMalformed,
		`{"alg":"HS256","kid":"a","kid":"b"}`:            RefuseTokenMalformed,
		`{"alg":"HS256","KID":"a"}`:                      RefuseTokenMalformed,
		`{"alg":"none","alg":"HS256"}`:                   RefuseTokenMalformed,
		`{"alg":"HS256","alg":"none"}`:                   RefuseTokenAlgorithm,
		`{"alg":"HS256","ALG":"none"}`:                   RefuseTokenMalformed,
		`{"Alg":"HS256"}`:                                RefuseTokenMalformed,
		`{"alg":null}`:                                   RefuseTokenMalformed,
		`{"alg":"hs256"}`:                                RefuseTokenAlgorithm,
		`null`:                                           RefuseTokenMalformed,
	} {
		id, err := v.verify(i.signed(header, `{"sub":"ada"}`))
		checkMeaning(t, header, id, err, why, "", `"ada" [] [] -`)
	}
}

func checkMeaning(t *testing.T, what string, id Identity, err error, why RefuseReason, text, means string) {
	t.Helper()
	if why != good {
		no, _ := errors.AsType[*denial](err)
		if no == nil || no.why != why || !strings.Contains(no.Reason, text) {
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

// Where tokens are optional, one that is empty, garbled or there twice is a wrong one, not none.
func TestGarbledTokensAreNotNone(t *testing.T) {
	i := newIssuer(t)
	ep := i.endpoint("HS256")
	ep.Auth.JWT.Optional, ep.Auth.JWT.From = true, []string{"header", "query", "cookie:session", "subprotocol"}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	good := i.Token("HS256", alice())
	for what, ask := range map[string][]string{
		"empty":                  {"/ws", "Authorization: Bearer "},
		"a scheme alone":         {"/ws", "Authorization: Bearer"},
		"garbage":                {"/ws", "Authorization: Bearer x.y"},
		"two headers":            {"/ws", withToken(good), withToken(good)},
		"empty in the query":     {"/ws?token="},
		"an escape that is none": {"/ws?token=%zz" + good},
		"two in the query":       {"/ws?token=" + good + "&token=" + good},
		"an empty cookie":        {"/ws", "Cookie: session="},
		"an empty subprotocol":   {"/ws", "Sec-WebSocket-Protocol: carillon.v1.json, carillon.token."},
	} {
		t.Run(what, func(t *testing.T) { refused(t, s, 401, RefuseTokenMalformed, ask[0], ask[1:]...) })
	}
	dial(t, s, "/ws", "Authorization: Basic YWxpY2U6c2VjcmV0")
	dial(t, s, "/ws?topic=a")
}

// Whatever the claims are, a verifier that lets a token in has read them as they stand.
func FuzzClaims(f *testing.F) {
	f.Add(`{"sub":"ada","exp":1e9,"carillon":{"subscribe":["a"]}}`)
	f.Add(`{"carillon":null}`)
	f.Add(`{"EXP":1,"exp":-0.5}`)
	f.Fuzz(func(t *testing.T, text string) {
		var c claims
		if err := c.UnmarshalJSON([]byte(text)); err != nil {
			if _, ok := errors.AsType[*denial](err); !ok {
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

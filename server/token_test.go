package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/internal/testenv"
	"carillon/server/stats"
)

// Alice has a token of each kind in turn. Each opens a connection that knows her name.
func TestTokenOfEachAlgorithm(t *testing.T) {
	i := newIssuer(t)
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{i.endpoint(algorithm)}})
			c := dial(t, s, "/ws", speakJSON, withToken(i.Token(algorithm, alice())))
			if name := onlyConn(t, s, "/ws").Subject(); name != "alice" {
				t.Errorf("subject %q", name)
			}
			c.send(`{"id":1,"ping":{}}`)
			c.want(`{"id":1,"pong":{}}`)
			for other := range algorithms {
				if a := algorithms[other]; a != algorithm {
					refused(t, s, 401, RefuseTokenAlgorithm, "/ws", withToken(i.Token(a, alice())))
				}
			}
		})
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	i, stranger := newIssuer(t), newIssuer(t)
	ep := i.endpoint("ES256")
	ep.Auth.JWT.Issuer, ep.Auth.JWT.Audience, ep.Auth.JWT.Leeway = "https://issuer.example.com", "carillon", 5*time.Second
	rsaEndpoint := i.endpoint("RS256")
	rsaEndpoint.Path = "/rsa"
	s, log := startLogged(t, Options{Endpoints: []Endpoint{ep, rsaEndpoint}, Limits: Limits{MaxHead: 64 << 10}})
	claims := func(changes ...any) jwt.MapClaims {
		c := jwt.MapClaims{"sub": "alice", "exp": in(time.Hour), "iss": "https://issuer.example.com", "aud": []string{"other", "carillon"}}
		for n := 0; n < len(changes); n += 2 {
			name := changes[n].(string)
			if c[name] = changes[n+1]; changes[n+1] == nil {
				delete(c, name)
			}
		}
		return c
	}
	es := func(changes ...any) string { return i.Token("ES256", claims(changes...)) }
	const body = `{"sub":"alice","iss":"https://issuer.example.com","aud":"carillon"}`

	confused := jwt.NewWithClaims(jwt.SigningMethodHS256, claims())
	asSecret, err := confused.SignedString(testenv.PublicPEM(t, i.RSA))
	if err != nil {
		t.Fatal(err)
	}
	good := es()
	for _, test := range []struct {
		what  string
		why   RefuseReason
		token string
	}{
		{"there is none", RefuseNoToken, ""},
		{"two parts", RefuseTokenMalformed, "abc.def"},
		{"a header that is not base64", RefuseTokenMalformed, "!.e30.e30"},
		{"a header that is not JSON", RefuseTokenMalformed, testenv.JoinToken("no", body, "")},
		{"the header names something critical", RefuseTokenMalformed, i.Token("ES256", claims(), "crit", "b64")},
		{"alg none", RefuseTokenAlgorithm, testenv.JoinToken(`{"alg":"none"}`, body, "")},
		{"alg None", RefuseTokenAlgorithm, testenv.JoinToken(`{"alg":"None"}`, body, "")},
		{"alg is missing", RefuseTokenMalformed, testenv.JoinToken(`{"typ":"JWT"}`, body, "x")},
		{"another algorithm, signed well", RefuseTokenAlgorithm, i.Token("EdDSA", claims())},
		{"signed by a stranger", RefuseTokenSignature, stranger.Token("ES256", claims())},
		{"the claims were changed", RefuseTokenSignature, strings.Split(good, ".")[0] + "." + strings.Split(es("sub", "bob"), ".")[1] + "." + strings.Split(good, ".")[2]},
		{"no signature", RefuseTokenSignature, good[:strings.LastIndex(good, ".")+1]},
		{"expired for longer than the leeway", RefuseTokenExpired, es("exp", in(-7*time.Second))},
		{"valid after more than the leeway", RefuseTokenEarly, es("nbf", in(8*time.Second))},
		{"another audience", RefuseTokenAudience, es("aud", "other")},
		{"no audience", RefuseTokenAudience, es("aud", nil)},
		{"another issuer", RefuseTokenIssuer, es("iss", "https://elsewhere.example.com")},
		{"no issuer", RefuseTokenIssuer, es("iss", nil)},
		{"a pattern that is none", RefuseTokenMalformed, es("carillon", map[string]any{"subscribe": []string{"a..b"}})},
		{"a limit with a typing error", RefuseTokenMalformed, es("carillon", map[string]any{"subscripe": []string{"a"}})},
		{"too long", RefuseTokenMalformed, es("x", strings.Repeat("x", 16<<10))},
		{"exp is not a number", RefuseTokenMalformed, es("exp", "tomorrow")},
	} {
		t.Run(test.what, func(t *testing.T) {
			var headers []string
			if test.token != "" {
				headers = append(headers, withToken(test.token))
			}
			resp := refused(t, s, 401, test.why, "/ws", headers...)
			if challenge := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, "Bearer") ||
				strings.Contains(challenge, "invalid_token") != (test.token != "") {
				t.Errorf("WWW-Authenticate: %s", challenge)
			}
		})
	}
	t.Run("a public key as a secret", func(t *testing.T) {
		refused(t, s, 401, RefuseTokenAlgorithm, "/rsa", withToken(asSecret))
	})
	t.Run("clocks that differ by less than the leeway", func(t *testing.T) {
		dial(t, s, "/ws", withToken(es("exp", in(-2*time.Second), "nbf", in(3*time.Second))))
	})
	for _, part := range append(strings.Split(good, "."), "alice") {
		if len(part) > 3 && strings.Contains(log.String(), part) {
			t.Errorf("the log has %q", part)
		}
	}
}

// The token may stand in four places, and the first one of the list counts.
func TestWhereTheTokenIs(t *testing.T) {
	i := newIssuer(t)
	ep := i.endpoint("HS256")
	ep.Auth.JWT.From = []string{"header", "cookie:session", "query", "subprotocol"}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	good := i.Token("HS256", alice())
	for name, ask := range map[string][]string{
		"header":             {"/ws", "Authorization: bearer  " + good},
		"cookie":             {"/ws", "Cookie: a=b; session=" + good + "; c"},
		"a cookie in quotes": {"/ws", "Cookie: x=y", `Cookie: session="` + good + `"`},
		"query":              {"/ws?topic=a&token=" + good},
		"subprotocol":        {"/ws", "Sec-WebSocket-Protocol: carillon.token." + good + ", carillon.v1.json"},
		"not a bearer":       {"/ws?token=" + good, "Authorization: Basic YWxpY2U6c2VjcmV0"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write([]byte(upgradeHead(ask[0], ask[1:]...)))
			resp := c.response()
			if resp.StatusCode != 101 {
				t.Fatal(resp.Status)
			}
			chosen := resp.Header["Sec-Websocket-Protocol"]
			if name == "subprotocol" && (len(chosen) != 1 || chosen[0] != "carillon.v1.json") || name != "subprotocol" && chosen != nil {
				t.Errorf("chosen: %q", chosen)
			}
		})
	}
	t.Run("a wrong one is not made good by another", func(t *testing.T) {
		refused(t, s, 401, RefuseTokenMalformed, "/ws?token="+good, withToken("x"))
	})
	t.Run("a token alone is no subprotocol", func(t *testing.T) {
		c := dialRaw(t, s)
		c.write([]byte(upgradeHead("/ws", "Sec-WebSocket-Protocol: carillon.token."+good)))
		if resp := c.response(); resp.StatusCode != 101 || resp.Header["Sec-Websocket-Protocol"] != nil {
			t.Error(resp.Status, resp.Header)
		}
	})
	t.Run("a source that is not listed", func(t *testing.T) {
		ep := i.endpoint("HS256")
		ep.Auth.JWT.From = []string{"header"}
		refused(t, start(t, Options{Endpoints: []Endpoint{ep}}), 401, RefuseNoToken, "/ws?token="+good)
	})
	t.Run("server-sent events", func(t *testing.T) {
		r := httpGet(t, s, "/ws?topic=a&token="+good, "text/event-stream")
		if r.StatusCode != 200 {
			t.Error(r.Status)
		}
		if r = httpGet(t, s, "/ws?topic=a", "text/event-stream"); r.StatusCode != 401 {
			t.Error(r.Status)
		}
	})
}

func httpGet(t testing.TB, s *Server, path, accept string) *http.Response {
	t.Helper()
	r, err := http.NewRequest("GET", "http://"+s.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// Where tokens are optional, a client without one is let in without an identity, and a client with a wrong one is not
// let in.
func TestOptionalToken(t *testing.T) {
	i := newIssuer(t)
	ep := i.endpoint("HS256")
	ep.Auth.JWT.Optional = true
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(newIssuer(t).Token("HS256", alice())))
	c := dial(t, s, "/ws", speakJSON)
	conn := onlyConn(t, s, "/ws")
	conn.shard().Mu.Lock()
	more := conn.core().Extension()
	conn.shard().Mu.Unlock()
	if conn.Subject() != "" || more != nil {
		t.Error("a client without a token has an identity")
	}
	c.send(`{"id":1,"refresh":{"token":"` + i.Token("HS256", alice()) + `"}}`)
	if m := c.said(); m.Error == nil || m.Error.Code != "not_allowed" {
		t.Errorf("%+v", m)
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
		t.Run(what, func(t *testing.T) { refused(t, s, 401, stats.RefuseTokenMalformed, ask[0], ask[1:]...) })
	}
	dial(t, s, "/ws", "Authorization: Basic YWxpY2U6c2VjcmV0")
	dial(t, s, "/ws?topic=a")
}

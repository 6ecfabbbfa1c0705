package server

import (
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
)

// Alice may subscribe to her own prices and publish her orders, bob may do nothing, and cathy what the
// endpoint allows. Nobody may do what the endpoint does not allow, whatever the token says.
func TestClaimsLimitTopics(t *testing.T) {
	i := newIssuer(t)
	ep := i.endpoint("EdDSA")
	ep.Topics = TopicAccess{Subscribe: []string{"prices.>"}, Publish: []string{"orders.>"}, Patterns: true, Presence: true}
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	token := func(sub string, rights any) string {
		c := jwt.MapClaims{"sub": sub, "exp": in(time.Hour)}
		if rights != nil {
			c["carillon"] = rights
		}
		return withToken(i.Token("EdDSA", c))
	}
	type m = map[string]any
	forAlice := token("alice", m{"subscribe": []string{"prices.eu.*", "news"}, "publish": []string{"orders.alice", "prices.eu.x"}})
	forBob := token("bob", m{"subscribe": []string{}, "publish": []string{}})
	forCathy := token("cathy", nil)
	const yes, no = "", "not_allowed"
	for _, test := range []struct{ who, request, answer string }{
		{forAlice, `"subscribe":{"topic":"prices.eu.a"}`, yes},
		{forAlice, `"subscribe":{"topic":"prices.eu.*"}`, yes},
		{forAlice, `"subscribe":{"topic":"prices.eu.>"}`, no},
		{forAlice, `"subscribe":{"topic":"prices.us.a"}`, no},
		{forAlice, `"subscribe":{"topic":"news"}`, no},
		{forAlice, `"publish":{"topic":"orders.alice","data":1}`, yes},
		{forAlice, `"publish":{"topic":"orders.bob","data":1}`, no},
		{forAlice, `"publish":{"topic":"prices.eu.x","data":1}`, no},
		{forAlice, `"history":{"topic":"prices.eu.a"}`, yes},
		{forAlice, `"history":{"topic":"prices.us.a"}`, no},
		{forAlice, `"presence":{"topic":"prices.us.a"}`, no},
		{forBob, `"subscribe":{"topic":"prices.eu.a"}`, no},
		{forBob, `"publish":{"topic":"orders.bob","data":1}`, no},
		{forCathy, `"subscribe":{"topic":"prices.us.a"}`, yes},
		{forCathy, `"publish":{"topic":"orders.bob","data":1}`, yes},
		{forCathy, `"subscribe":{"topic":"news"}`, no},
	} {
		c := dial(t, s, "/ws", speakJSON, test.who)
		c.send(`{"id":1,` + test.request + `}`)
		got := ""
		if m := c.said(); m.Error != nil {
			got = m.Error.Code
		}
		if got != test.answer {
			t.Errorf("%s is answered %q, want %q", test.request, got, test.answer)
		}
	}
	dial(t, s, "/ws?topic=prices.eu.a", forAlice)
	refused(t, s, 403, RefuseTopic, "/ws?topic=prices.us.a", forAlice)
	refused(t, s, 403, RefuseTopic, "/ws?topic=prices.eu.a", forBob)

	t.Run("presence names subjects", func(t *testing.T) {
		dial(t, s, "/ws?topic=prices.presence", forCathy)
		c := dial(t, s, "/ws", speakJSON, forCathy)
		eventually(t, "cathy is there", func() bool { return len(s.Subscribers("prices.presence")) == 1 })
		c.send(`{"id":1,"presence":{"topic":"prices.presence"}}`)
		_, payload, err := c.frame()
		if err != nil || !strings.Contains(string(payload), `"subject":"cathy"`) {
			t.Errorf("%s %v", payload, err)
		}
	})
	t.Run("a raw connection publishes no more than its token lets it", func(t *testing.T) {
		ep := i.endpoint("EdDSA")
		s := start(t, Options{Endpoints: []Endpoint{ep}})
		c := dial(t, s, "/ws?topic=a", token("alice", m{"publish": []string{"b"}}))
		c.send("x")
		c.wantClose(codec.ClosePolicyViolation, errNotYourOutput.Error())
	})
}

func TestIntersect(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"a", "a", "a"},
		{"a", "b", ""},
		{"a.>", "a", ""},
		{"a.>", "a.b.*", "a.b.*"},
		{"a.*.c", "*.b.*", "a.b.c"},
		{"*.*", "a.>", "a.*"},
		{">", "a.*", "a.*"},
		{"*.b.>", "a.>", "a.b.>"},
		{"a.*", "a.*.*", ""},
	} {
		for _, pair := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
			if got, ok := intersect(pair[0], pair[1]); got != test.want || ok != (test.want != "") {
				t.Errorf("%s and %s: %q, want %q", pair[0], pair[1], got, test.want)
			}
		}
	}
}

func TestAuthOptions(t *testing.T) {
	for _, test := range []struct {
		auth    Auth
		problem string
	}{
		{Auth{JWT: JWT{Issuer: "x"}}, "auth.jwt.key_file: is missing"},
		{Auth{JWT: JWT{Optional: true}}, "auth.jwt.key_file: is missing"},
		{Auth{JWT: JWT{KeyFile: "x"}}, "auth.jwt.algorithms: is missing"},
		{Auth{JWT: JWT{KeyFile: "x", JWKSURL: "http://x", Algorithms: []string{"RS256"}}}, "mutually exclusive"},
		{Auth{JWT: JWT{KeyFile: "x", Algorithms: []string{"RS256", "HS256"}}}, "mixes HS256 with others"},
		{Auth{JWT: JWT{KeyFile: "x", Algorithms: []string{"none"}}}, `auth.jwt.algorithms[0]: "none" is unknown`},
		{Auth{JWT: JWT{JWKSURL: "http://x", Algorithms: []string{"HS256"}}}, "are public"},
		{Auth{JWT: JWT{JWKSURL: "file:///x", Algorithms: []string{"ES256"}}}, "auth.jwt.jwks_url: is not a URL"},
		{Auth{JWT: JWT{From: []string{"body"}}}, `auth.jwt.from[0]: "body" is unknown`},
		{Auth{JWT: JWT{From: []string{"cookie:"}}}, `auth.jwt.from[0]: "cookie:" is unknown`},
		{Auth{Hook: Hook{URL: "x"}}, "auth.hook.url: is not a URL"},
		{Auth{Hook: Hook{Timeout: -1}}, "auth.hook.timeout: cannot be turned off"},
		{Auth{Hook: Hook{Headers: []string{"a b"}}}, "auth.hook.headers[0]"},
	} {
		_, err := Options{Endpoints: []Endpoint{{Path: "/", Mode: ModeEcho, Auth: test.auth}}}.Resolve()
		if err == nil || !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%+v: %v, want %q", test.auth, err, test.problem)
		}
	}
}

package server

import (
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
)

// Alice may subscribe to her own prices and publish her orders, bob may do nothing, and cathy what the endpoint allows.
// No client may do what the endpoint does not allow, whatever the token says.
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
		c.wantClose(codec.ClosePolicyViolation, "not in publish of its token")
	})
}

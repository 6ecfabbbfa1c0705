package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
)

// issuer makes tokens, with one key of each kind.
type issuer struct {
	t      testing.TB
	secret []byte
	rsa    *rsa.PrivateKey
	ecdsa  *ecdsa.PrivateKey
	ed     ed25519.PrivateKey
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey { // takes long
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func newIssuer(t testing.TB) *issuer {
	i := &issuer{t: t, secret: []byte(rand.Text() + rand.Text()), rsa: rsaKey()}
	var err error
	if i.ecdsa, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, i.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) private(algorithm string) any {
	switch algorithm {
	case "HS256":
		return i.secret
	case "RS256":
		return i.rsa
	case "ES256":
		return i.ecdsa
	}
	return i.ed
}

// token signs claims. Options are names and values for the header.
func (i *issuer) token(algorithm string, claims jwt.MapClaims, header ...string) string {
	i.t.Helper()
	t := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), claims)
	for n := 0; n < len(header); n += 2 {
		t.Header[header[n]] = header[n+1]
	}
	s, err := t.SignedString(i.private(algorithm))
	if err != nil {
		i.t.Fatal(err)
	}
	return s
}

// file writes the keys of an algorithm as an endpoint needs them.
func (i *issuer) file(algorithms ...string) string {
	i.t.Helper()
	name := filepath.Join(i.t.TempDir(), "key")
	i.write(name, algorithms...)
	return name
}

func (i *issuer) write(name string, algorithms ...string) {
	i.t.Helper()
	var text []byte
	for _, a := range algorithms {
		if a == "HS256" {
			text = append(i.secret[:len(i.secret):len(i.secret)], '\n')
			continue
		}
		text = append(text, publicPEM(i.t, i.private(a))...)
	}
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		i.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		i.t.Fatal(err)
	}
}

func publicPEM(t testing.TB, private any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// withToken is an endpoint with topics that wants tokens of one algorithm.
func (i *issuer) endpoint(algorithm string) Endpoint {
	ep := topicsEndpoint()
	ep.Auth.JWT = JWT{Algorithms: []string{algorithm}, KeyFile: i.file(algorithm), Leeway: -1}
	return ep
}

func in(d time.Duration) int64 { return time.Now().Add(d).Unix() }

func alice() jwt.MapClaims { return jwt.MapClaims{"sub": "alice", "exp": in(time.Hour)} }

func withToken(token string) string { return "Authorization: Bearer " + token }

// refused asks for a connection and checks that the answer is a no.
func refused(t testing.TB, s *Server, status int, why RefuseReason, path string, headers ...string) *http.Response {
	t.Helper()
	before := s.Stats().Refusals[why]
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead(path, headers...)))
	resp := c.response()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status {
		t.Fatalf("%s: answered %s %q, want %d", why, resp.Status, body, status)
	}
	if n := s.Stats().Refusals[why]; n != before+1 {
		t.Fatalf("answered %d %q, but %q counts %d: %v", status, body, why, n-before, s.Stats().Refusals)
	}
	c.wantEOF()
	return resp
}

// Alice has a token of each kind in turn. Each opens a connection that knows her name.
func TestTokenOfEachAlgorithm(t *testing.T) {
	i := newIssuer(t)
	for _, algorithm := range algorithms {
		t.Run(algorithm, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{i.endpoint(algorithm)}})
			c := dial(t, s, "/ws", speakJSON, withToken(i.token(algorithm, alice())))
			if name := onlyConn(t, s, "/ws").Subject(); name != "alice" {
				t.Errorf("subject %q", name)
			}
			c.send(`{"id":1,"ping":{}}`)
			c.want(`{"id":1,"pong":{}}`)
			for other := range algorithms {
				if a := algorithms[other]; a != algorithm {
					refused(t, s, 401, RefuseTokenAlgorithm, "/ws", withToken(i.token(a, alice())))
				}
			}
		})
	}
}

// unsigned makes a token of any parts.
func unsigned(header, claims, signature string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(claims)) + "." + e.EncodeToString([]byte(signature))
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
	es := func(changes ...any) string { return i.token("ES256", claims(changes...)) }
	const body = `{"sub":"alice","iss":"https://issuer.example.com","aud":"carillon"}`

	confused := jwt.NewWithClaims(jwt.SigningMethodHS256, claims())
	asSecret, err := confused.SignedString(publicPEM(t, i.rsa))
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
		{"a header that is not JSON", RefuseTokenMalformed, unsigned("no", body, "")},
		{"the header names something critical", RefuseTokenMalformed, i.token("ES256", claims(), "crit", "b64")},
		{"alg none", RefuseTokenAlgorithm, unsigned(`{"alg":"none"}`, body, "")},
		{"alg None", RefuseTokenAlgorithm, unsigned(`{"alg":"None"}`, body, "")},
		{"alg is missing", RefuseTokenMalformed, unsigned(`{"typ":"JWT"}`, body, "x")},
		{"another algorithm, signed well", RefuseTokenAlgorithm, i.token("EdDSA", claims())},
		{"signed by a stranger", RefuseTokenSignature, stranger.token("ES256", claims())},
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
		{"too long", RefuseTokenMalformed, es("x", strings.Repeat("x", maxToken))},
		{"exp is no number", RefuseTokenMalformed, es("exp", "tomorrow")},
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
	good := i.token("HS256", alice())
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

// Where tokens are optional, somebody without one is let in as nobody, and somebody with a wrong one is not.
func TestOptionalToken(t *testing.T) {
	i := newIssuer(t)
	ep := i.endpoint("HS256")
	ep.Auth.JWT.Optional = true
	s := start(t, Options{Endpoints: []Endpoint{ep}})
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(newIssuer(t).token("HS256", alice())))
	c := dial(t, s, "/ws", speakJSON)
	conn := onlyConn(t, s, "/ws")
	conn.sh.mu.Lock()
	more := conn.more
	conn.sh.mu.Unlock()
	if conn.Subject() != "" || more != nil {
		t.Error("somebody without a token has an identity")
	}
	c.send(`{"id":1,"refresh":{"token":"` + i.token("HS256", alice()) + `"}}`)
	if m := c.said(); m.Error == nil || m.Error.Code != "not_allowed" {
		t.Errorf("%+v", m)
	}
}

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
		return withToken(i.token("EdDSA", c))
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
		c.wantClose(codec.ClosePolicyViolation, "nothing can be published here")
	})
}

// A key is not taken for anything but what its kind is for, even if an endpoint took every algorithm.
func TestEachKeyIsForOneAlgorithm(t *testing.T) {
	i := newIssuer(t)
	ring := &keyring{opts: &JWT{}}
	var keys []signatureKey
	for _, a := range algorithms {
		keys = append(keys, signatureKey{algorithm: a, key: i.private(a)})
	}
	ring.keys.Store(&keys)
	for _, a := range algorithms {
		found, err := ring.find(a, "any")
		if err != nil || len(found.Keys) != 1 || fmt.Sprintf("%T", found.Keys[0]) != fmt.Sprintf("%T", i.private(a)) {
			t.Errorf("%s: %T, %v", a, found.Keys, err)
		}
	}
	if _, err := ring.find("none", ""); err != errTokenKey {
		t.Error(err)
	}
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

// jwksServer publishes keys by name.
type jwksServer struct {
	*httptest.Server
	mu      sync.Mutex
	keys    map[string]any // private ones
	fetches atomic.Int64
	broken  atomic.Bool
}

func newJWKSServer(t testing.TB) *jwksServer {
	s := &jwksServer{keys: map[string]any{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fetches.Add(1)
		if s.broken.Load() {
			http.Error(w, "broken", 500)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		list := []map[string]string{{"kty": "oct", "k": "c2VjcmV0", "kid": "never"}}
		for id, key := range s.keys {
			k := publicJWK(key)
			k["kid"], k["use"] = id, "sig"
			list = append(list, k)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": list})
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *jwksServer) set(id string, key any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = map[string]any{id: key}
}

func publicJWK(private any) map[string]string {
	e := base64.RawURLEncoding.EncodeToString
	switch k := private.(type) {
	case *rsa.PrivateKey:
		return map[string]string{"kty": "RSA", "n": e(k.N.Bytes()), "e": e(big.NewInt(int64(k.E)).Bytes()), "alg": "RS256"}
	case *ecdsa.PrivateKey:
		point, _ := k.PublicKey.Bytes()
		return map[string]string{"kty": "EC", "crv": "P-256", "x": e(point[1:33]), "y": e(point[33:])}
	}
	return map[string]string{"kty": "OKP", "crv": "Ed25519", "x": e(private.(ed25519.PrivateKey).Public().(ed25519.PublicKey))}
}

func quickJWKS(t testing.TB, interval, pause time.Duration) {
	i, p := jwksInterval, jwksPause
	jwksInterval, jwksPause = interval, pause
	t.Cleanup(func() { jwksInterval, jwksPause = i, p })
}

func jwksEndpoint(url string) Endpoint {
	ep := topicsEndpoint()
	ep.Auth.JWT = JWT{Algorithms: []string{"RS256", "ES256", "EdDSA"}, JWKSURL: url, Leeway: -1}
	return ep
}

// The issuer changes its key again and again while clients connect. Each gets in, at the latest with its
// second try or its third.
func TestJWKSRotation(t *testing.T) {
	quickJWKS(t, time.Hour, time.Millisecond)
	published := newJWKSServer(t)
	i := newIssuer(t)
	published.set("RS256-0", i.rsa)
	s := start(t, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL)}})
	dial(t, s, "/ws", withToken(i.token("RS256", alice(), "kid", "RS256-0")))
	for round, algorithm := range []string{"ES256", "EdDSA", "RS256", "ES256"} {
		i := newIssuer(t)
		id := fmt.Sprintf("%s-%d", algorithm, round+1)
		published.set(id, i.private(algorithm))
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				token := withToken(i.token(algorithm, alice(), "kid", id))
				for try := 0; ; try++ {
					c := dialRaw(t, s)
					c.write([]byte(upgradeHead("/ws", token)))
					resp := c.response()
					if resp.StatusCode == 101 {
						return
					}
					if resp.StatusCode != 503 && resp.StatusCode != 401 || try > 200 {
						t.Errorf("%s, try %d: %s", id, try, resp.Status)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		clients.Wait()
		if t.Failed() {
			return
		}
	}
	if refusals := s.Stats().Refusals; refusals[RefuseTokenKey] == 0 || refusals[RefuseTokenSignature] != 0 {
		t.Error(refusals)
	}
}

// Mallory names keys that do not exist, many times. The issuer is asked once.
func TestUnknownKeysDoNotFloodTheIssuer(t *testing.T) {
	quickJWKS(t, time.Hour, 200*time.Millisecond)
	published := newJWKSServer(t)
	i := newIssuer(t)
	published.set("1", i.ecdsa)
	s := start(t, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL)}})
	if n := published.fetches.Load(); n != 1 {
		t.Fatalf("%d fetches at the start", n)
	}
	refused(t, s, 401, RefuseTokenKey, "/ws", withToken(i.token("ES256", alice(), "kid", "2"))) // fetched just now
	time.Sleep(250 * time.Millisecond)
	resp := refused(t, s, 503, RefuseTokenKey, "/ws", withToken(i.token("ES256", alice(), "kid", "3")))
	if resp.Header.Get("Retry-After") != "1" {
		t.Error(resp.Header)
	}
	begin := time.Now()
	for n := range 50 {
		c := dialRaw(t, s)
		c.write([]byte(upgradeHead("/ws", withToken(i.token("ES256", alice(), "kid", fmt.Sprint("x", n))))))
		c.response()
	}
	most := 3 + int64(time.Since(begin)/(200*time.Millisecond))
	if n := published.fetches.Load(); n < 2 || n > most {
		t.Errorf("%d fetches", n)
	}
	dial(t, s, "/ws", withToken(i.token("ES256", alice(), "kid", "1")))
	dial(t, s, "/ws", withToken(i.token("ES256", alice()))) // it does not name its key, and there is one that fits
}

// The issuer is away when the server starts: it starts, refuses politely, and serves as soon as it can. When
// the issuer is away later, its keys are still good.
func TestIssuerIsAway(t *testing.T) {
	quickJWKS(t, 10*time.Millisecond, time.Millisecond)
	published := newJWKSServer(t)
	published.broken.Store(true)
	i := newIssuer(t)
	published.set("1", i.ed)
	s, log := startLogged(t, Options{Endpoints: []Endpoint{jwksEndpoint(published.URL), {Path: "/echo", Mode: ModeEcho}}})
	token := withToken(i.token("EdDSA", alice(), "kid", "1"))
	refused(t, s, 503, RefuseNoKeys, "/ws", token)
	dial(t, s, "/echo")
	if !strings.Contains(log.String(), "keys for tokens cannot be read") {
		t.Error("nobody is told")
	}
	published.broken.Store(false)
	eventually(t, "there are keys", func() bool { return s.endpoints[0].auth.jwt.keys.keys.Load() != nil })
	dial(t, s, "/ws", token)
	published.broken.Store(true)
	n := published.fetches.Load()
	eventually(t, "it was asked again", func() bool { return published.fetches.Load() > n+1 })
	dial(t, s, "/ws", token)
}

// The key file is replaced while the server runs, first by another key, then by rubbish.
func TestKeyFileChanges(t *testing.T) {
	i, next := newIssuer(t), newIssuer(t)
	ep := i.endpoint("ES256")
	s, log := startLogged(t, Options{Endpoints: []Endpoint{ep}})
	dial(t, s, "/ws", withToken(i.token("ES256", alice())))
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(next.token("ES256", alice())))
	before := s.endpoints[0].auth.jwt.keys.keys.Load()
	next.write(ep.Auth.JWT.KeyFile, "ES256")
	eventually(t, "it is read", func() bool { return s.endpoints[0].auth.jwt.keys.keys.Load() != before })
	dial(t, s, "/ws", withToken(next.token("ES256", alice())))
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(i.token("ES256", alice())))
	if err := os.WriteFile(ep.Auth.JWT.KeyFile, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is noticed", func() bool { return strings.Contains(log.String(), "keys for tokens cannot be read") })
	dial(t, s, "/ws", withToken(next.token("ES256", alice())))
}

func TestKeyFilesThatCannotBeUsed(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := newIssuer(t)
	private, err := x509.MarshalPKCS8PrivateKey(i.ecdsa)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ algorithm, text, problem string }{
		{"HS256", "too short", "at least 32"},
		{"HS256", string(publicPEM(t, i.rsa)), "is PEM"},
		{"RS256", "no key", "has 0 keys"},
		{"RS256", string(publicPEM(t, small)), "1024 bits"},
		{"RS256", string(publicPEM(t, i.ecdsa)), "a key for ES256"},
		{"ES256", string(publicPEM(t, p384)), "P-384"},
		{"ES256", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), "PRIVATE KEY"},
		{"ES256", strings.Repeat(string(publicPEM(t, i.ecdsa)), 9), "9 keys"},
	} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		ep := topicsEndpoint()
		ep.Auth.JWT = JWT{Algorithms: []string{test.algorithm}, KeyFile: file}
		_, err := New(Options{Endpoints: []Endpoint{ep}})
		if err == nil || !strings.Contains(err.Error(), test.problem) || !strings.HasPrefix(err.Error(), "endpoints[0].auth.jwt.key_file: ") {
			t.Errorf("%s with %.30q: %v, want %q", test.algorithm, test.text, err, test.problem)
		}
	}
	_, err = New(Options{Endpoints: []Endpoint{{Path: "/", Mode: ModeEcho, Auth: Auth{JWT: JWT{Algorithms: []string{"HS256"}, KeyFile: "/nowhere"}}}}})
	if err == nil {
		t.Error("a file that does not exist")
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
		{Auth{JWT: JWT{KeyFile: "x", JWKSURL: "http://x", Algorithms: []string{"RS256"}}}, "exclude each other"},
		{Auth{JWT: JWT{KeyFile: "x", Algorithms: []string{"RS256", "HS256"}}}, "HS256 beside others"},
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

// What is found is a part of what the client has sent, and never one that only another source may have.
func FuzzFindToken(f *testing.F) {
	f.Add("Bearer abc", "a=b; t=abc", "topic=a&token=abc", "carillon.token.abc, x")
	f.Add("bearer", "t=", "token=%2", "carillon.token.")
	f.Fuzz(func(t *testing.T, authorization, cookie, query, protocol string) {
		head := "GET /?" + query + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + authorization + "\r\nCookie: " + cookie +
			"\r\nSec-WebSocket-Protocol: " + protocol + "\r\n\r\n"
		var r codec.Request
		if r.Parse([]byte(head)) != nil {
			return
		}
		for from, source := range map[string]string{"header": authorization, "cookie:t": cookie, "subprotocol": protocol, "query": query} {
			v := &verifier{opts: &JWT{From: []string{from}}}
			token := v.find(&r)
			if token == "" || from == "query" && strings.ContainsAny(query, "%+") {
				continue
			}
			if !strings.Contains(source, token) {
				t.Errorf("%s: %q is not in %q", from, token, source)
			}
		}
	})
}

func FuzzParseJWKS(f *testing.F) {
	i := newIssuer(f)
	for _, a := range algorithms[1:] {
		k, _ := json.Marshal(map[string]any{"keys": []any{publicJWK(i.private(a))}})
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseJWKS(text)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if a, err := algorithmOf(k.key); err != nil || a != k.algorithm {
				t.Errorf("%v: %v", k, err)
			}
		}
	})
}

// What a token costs the loop.
func BenchmarkToken(b *testing.B) {
	i := newIssuer(b)
	for _, a := range algorithms {
		b.Run("algorithm="+a, func(b *testing.B) {
			v, err := newVerifier(&JWT{Algorithms: []string{a}, KeyFile: i.file(a)}, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			token := i.token(a, alice())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.verify(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

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
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
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

// unsigned makes a token of any parts.
func unsigned(header, claims, signature string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(claims)) + "." + e.EncodeToString([]byte(signature))
}

package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// The key file is replaced while the server runs, first by another key, then by rubbish.
func TestKeyFileChanges(t *testing.T) {
	t.Parallel()
	i, next := newIssuer(t), newIssuer(t)
	ep := i.endpoint("ES256")
	s, log := startLogged(t, Options{Endpoints: []Endpoint{ep}})
	dial(t, s, "/ws", withToken(i.Token("ES256", alice())))
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(next.Token("ES256", alice())))
	next.Write(ep.Auth.JWT.KeyFile, "ES256")
	eventually(t, "it is read", func() bool { return status(t, s, "/ws", withToken(next.Token("ES256", alice()))) == 101 })
	refused(t, s, 401, RefuseTokenSignature, "/ws", withToken(i.Token("ES256", alice())))
	if err := os.WriteFile(ep.Auth.JWT.KeyFile, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is noticed", func() bool { return strings.Contains(log.String(), "could not read token keys") })
	dial(t, s, "/ws", withToken(next.Token("ES256", alice())))
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
	private, err := x509.MarshalPKCS8PrivateKey(i.ECDSA)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ algorithm, text, problem string }{
		{"HS256", "too short", "at least 32"},
		{"HS256", string(testenv.PublicPEM(t, i.RSA)), "is PEM"},
		{"RS256", "no key", "has 0 keys"},
		{"RS256", string(testenv.PublicPEM(t, small)), "1024 bits"},
		{"RS256", string(testenv.PublicPEM(t, i.ECDSA)), "a key for ES256"},
		{"ES256", string(testenv.PublicPEM(t, p384)), "P-384"},
		{"ES256", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), "PRIVATE KEY"},
		{"ES256", strings.Repeat(string(testenv.PublicPEM(t, i.ECDSA)), 9), "9 keys"},
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

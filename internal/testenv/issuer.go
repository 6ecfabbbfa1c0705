package testenv

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
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// Issuer signs tokens. It has one key for each algorithm.
type Issuer struct {
	Secret  []byte
	RSA     *rsa.PrivateKey
	ECDSA   *ecdsa.PrivateKey
	Ed25519 ed25519.PrivateKey

	t testing.TB
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey { // takes long
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// NewIssuer returns an issuer with new keys. All issuers of a process have the same RSA key.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t, Secret: []byte(rand.Text() + rand.Text()), RSA: rsaKey()}
	var err error
	if i.ECDSA, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, i.Ed25519, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return i
}

// Private returns the key of an algorithm: HS256, RS256, ES256 or EdDSA.
func (i *Issuer) Private(algorithm string) any {
	switch algorithm {
	case "HS256":
		return i.Secret
	case "RS256":
		return i.RSA
	case "ES256":
		return i.ECDSA
	}
	return i.Ed25519
}

// Token signs claims. Options are names and values for the header.
func (i *Issuer) Token(algorithm string, claims jwt.MapClaims, header ...string) string {
	i.t.Helper()
	t := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), claims)
	for n := 0; n < len(header); n += 2 {
		t.Header[header[n]] = header[n+1]
	}
	s, err := t.SignedString(i.Private(algorithm))
	if err != nil {
		i.t.Fatal(err)
	}
	return s
}

// File writes the keys of algorithms to a file that a server can check tokens with, and returns its name.
func (i *Issuer) File(algorithms ...string) string {
	i.t.Helper()
	name := filepath.Join(i.t.TempDir(), "key")
	i.Write(name, algorithms...)
	return name
}

// Write replaces such a file.
func (i *Issuer) Write(name string, algorithms ...string) {
	i.t.Helper()
	var text []byte
	for _, a := range algorithms {
		if a == "HS256" {
			text = append(i.Secret[:len(i.Secret):len(i.Secret)], '\n')
			continue
		}
		text = append(text, PublicPEM(i.t, i.Private(a))...)
	}
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		i.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		i.t.Fatal(err)
	}
}

// PublicPEM returns the public half of a key in PEM.
func PublicPEM(t testing.TB, private any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// PublicJWK returns the public half of a key of an [Issuer] as a JSON Web Key.
func PublicJWK(private any) map[string]string {
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

// JoinToken makes a token of any parts.
func JoinToken(header, claims, signature string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(header)) + "." + e.EncodeToString([]byte(claims)) + "." + e.EncodeToString([]byte(signature))
}

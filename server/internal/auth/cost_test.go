package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/internal/testenv"
)

// A check takes as long as the keys do that the token may be signed with. One key of the usual size is no cost.
func TestTokenCost(t *testing.T) {
	i, other := testenv.NewIssuer(t), testenv.NewIssuer(t)
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	pem := func(keys ...any) (text []byte) {
		for _, k := range keys {
			text = append(text, testenv.PublicPEM(t, k)...)
		}
		return text
	}
	token := func(algorithm string, header ...string) string {
		return i.Token(algorithm, jwt.MapClaims{"sub": "a"}, header...)
	}
	crowd := make([]any, maxTried)
	for n := range crowd {
		crowd[n] = i.ECDSA
	}
	for _, row := range []struct {
		name  string
		keys  []byte
		token string
		want  time.Duration
	}{
		{"one secret", i.Secret, token("HS256"), 0},
		{"one key", pem(i.ECDSA), token("ES256"), 0},
		{"one key of each kind", pem(i.RSA, i.ECDSA, i.Ed25519), token("RS256"), 0},
		{"two keys", pem(i.ECDSA, other.ECDSA), token("ES256"), 2 * usualCheck},
		{"two keys, which have no names", pem(i.ECDSA, other.ECDSA), token("ES256", "kid", "a"), 2 * usualCheck},
		{"two keys, for other tokens", pem(i.ECDSA, other.ECDSA, i.Ed25519), token("EdDSA"), 0},
		{"as many as are tried", pem(crowd...), token("ES256"), maxTried * usualCheck},
		{"a large key", pem(large), token("RS256"), usualCheck * 9 / 4},
		{"a large key and another one", pem(large, i.RSA), token("RS256"), usualCheck*9/4 + usualCheck},
		{"an algorithm that no key has", pem(large), token("ES256"), 0},
		{"no token", pem(large), "", 0},
		{"a garbled header", pem(large), "e30x.e30.AA", 0},
		{"an invalid header", pem(large), testenv.JoinToken(`{"alg":"RS256","alg":"RS256"}`, `{}`, "x"), 0},
		{"a token that is too long", pem(large), token("RS256") + strings.Repeat("A", maxToken), 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			opts := &JWT{Algorithms: []string{"RS256", "ES256", "EdDSA"}, KeyFile: filepath.Join(t.TempDir(), "keys")}
			if strings.HasPrefix(row.name, "one secret") {
				opts.Algorithms = []string{"HS256"}
			}
			if err := os.WriteFile(opts.KeyFile, row.keys, 0o600); err != nil {
				t.Fatal(err)
			}
			v, err := newVerifier(opts, Config{Log: slog.New(slog.DiscardHandler), Wall: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			a := &Authenticator{jwt: v}
			if got := a.VerifyCost(row.token); got != row.want {
				t.Errorf("it takes %v, want %v", got, row.want)
			}
		})
	}
	named := []signatureKey{{id: "a", algorithm: "ES256", key: &i.ECDSA.PublicKey}, {id: "b", algorithm: "ES256", key: &other.ECDSA.PublicKey}}
	r := &Keyring{opts: &JWT{Algorithms: []string{"ES256"}}, log: slog.New(slog.DiscardHandler)}
	r.replace(named)
	a := &Authenticator{jwt: &verifier{opts: r.opts, keys: r}}
	for header, want := range map[string]time.Duration{"a": 0, "b": 0, "": 2 * usualCheck} {
		var names []string
		if header != "" {
			names = []string{"kid", header}
		}
		if got := a.VerifyCost(token("ES256", names...)); got != want {
			t.Errorf("a token with kid %q takes %v, want %v", header, got, want)
		}
	}
}

// What a token without kid costs that none of the RSA keys has signed.
func BenchmarkTokenOfNoKey(b *testing.B) {
	for _, bits := range []int{2048, 3072, 4096} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			b.Fatal(err)
		}
		block := testenv.PublicPEM(b, key)
		token, _ := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{"sub": "alice"}).SignedString(key)
		token = token[:len(token)-8] + "AAAAAAAA"
		for _, keys := range []int{1, 8} {
			b.Run(fmt.Sprintf("bits=%d/keys=%d", bits, keys), func(b *testing.B) {
				file := filepath.Join(b.TempDir(), "keys")
				if err := os.WriteFile(file, bytes.Repeat(block, keys), 0o600); err != nil {
					b.Fatal(err)
				}
				v, err := newVerifier(&JWT{Algorithms: []string{"RS256"}, KeyFile: file}, Config{Log: slog.New(slog.DiscardHandler), Wall: time.Now})
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					if _, err := v.verify(token); err != errTokenSignature {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

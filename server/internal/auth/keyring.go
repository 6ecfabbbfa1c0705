package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/internal/redact"
)

// A key for signatures is good for exactly one algorithm, which follows from its kind.
type signatureKey struct {
	id        string // as the issuer names it; empty is unknown
	algorithm string
	key       any // []byte, *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// maxTried is how many keys a token that does not name its own is tried with.
const maxTried = 8

// A check with one key of the usual size takes about usualCheck: it is done at once. More keys, and longer ones, take a
// multiple of that.
const (
	usualCheck = 100 * time.Microsecond
	usualRSA   = 2048 // bits
)

// cost is about how long a check with the key takes. HS256 has only one key, so the little that it takes is no matter.
func (k *signatureKey) cost() time.Duration {
	if r, ok := k.key.(*rsa.PublicKey); ok {
		n := time.Duration(r.N.BitLen())
		return usualCheck * n * n / (usualRSA * usualRSA)
	}
	return usualCheck
}

// mayTry reports whether the key may have signed a token with this algorithm and kid.
func (k *signatureKey) mayTry(algorithm, id string) bool {
	return k.algorithm == algorithm && (k.id == id || k.id == "" || id == "")
}

// Keyring has the keys of an endpoint. Any goroutine may check tokens with it; Load, Refresh and Watch are for one at a
// time.
type Keyring struct {
	opts   *JWT
	log    *slog.Logger
	keys   atomic.Pointer[[]signatureKey] // nil as long as none could be fetched
	costly atomic.Bool                    // some tokens take longer than a check with one usual key
	jwks   *jwks                          // nil for a file
	file   os.FileInfo                    // what was read last; owned by the goroutine that refreshes
}

// newKeyring fails for a file that cannot be used: that is a mistake which is better known at the start.
func newKeyring(opts *JWT, config Config) (*Keyring, error) {
	r := &Keyring{opts: opts, log: config.Log}
	if opts.JWKSURL != "" {
		r.jwks = newJWKS(opts.JWKSURL, config.Fetch)
		return r, nil
	}
	return r, r.readFile()
}

// find returns the keys that may have signed a token. The error is a *Refusal.
func (r *Keyring) find(algorithm, id string) (found jwt.VerificationKeySet, err error) {
	keys := r.keys.Load()
	if keys == nil {
		return found, errNoKeys
	}
	for _, k := range *keys {
		if k.mayTry(algorithm, id) && len(found.Keys) < maxTried {
			found.Keys = append(found.Keys, k.key)
		}
	}
	switch {
	case len(found.Keys) > 0:
		return found, nil
	case r.jwks != nil && r.jwks.ask():
		return found, errKeysFetched
	}
	return found, errTokenKey
}

// cost is about how long it takes to check a token with the keys that may have signed it, 0 if that is no longer than
// a check with one usual key.
func (r *Keyring) cost(algorithm, id string) (takes time.Duration) {
	tried := 0
	for _, k := range *r.keys.Load() {
		if k.mayTry(algorithm, id) && tried < maxTried {
			takes += k.cost()
			tried++
		}
	}
	if takes <= usualCheck {
		return 0
	}
	return takes
}

// Load reads the keys anew. If it fails, the old keys stay.
func (r *Keyring) Load(ctx context.Context) error {
	if r.jwks == nil {
		return r.readFile()
	}
	keys, err := r.jwks.fetch(ctx)
	if err == nil {
		r.replace(keys)
	}
	return err
}

// Refresh is Load for callers that cannot help it if it fails: it logs the error, and reports whether there was none.
func (r *Keyring) Refresh(ctx context.Context) bool {
	err := r.Load(ctx)
	if err != nil && ctx.Err() == nil || errors.Is(err, context.DeadlineExceeded) {
		r.log.Error("could not read token keys; keeping the previous ones", "file", r.opts.KeyFile, "url", redact.URL(r.opts.JWKSURL), "error", err)
	}
	return err == nil
}

func (r *Keyring) replace(keys []signatureKey) {
	keys = slices.DeleteFunc(keys, func(k signatureKey) bool { return !slices.Contains(r.opts.Algorithms, k.algorithm) })
	r.keys.Store(&keys)
	r.costly.Store(slices.ContainsFunc(keys, func(k signatureKey) bool { return r.cost(k.algorithm, "") > 0 }))
	r.log.Debug("token keys loaded", "file", r.opts.KeyFile, "url", redact.URL(r.opts.JWKSURL), "keys", len(keys))
}

// lookAtFile is how often a file is looked at: whether it has changed, the file system knows.
const lookAtFile = time.Second

// Watch keeps the keys new until ctx ends. It is for one goroutine.
func (r *Keyring) Watch(ctx context.Context) {
	if r.jwks != nil {
		r.jwks.watch(ctx, r.keys.Load() != nil, r.Refresh)
		return
	}
	ticker := time.NewTicker(lookAtFile)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			now, err := os.Stat(r.opts.KeyFile)
			if err != nil || isSameFile(now, r.file) {
				continue // one that is gone for a moment is being replaced
			}
			r.Refresh(ctx)
		}
	}
}

// isSameFile reports whether a file has not changed, as far as that can be seen without reading it.
func isSameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// IsRemote reports whether the keys have to be fetched.
func (r *Keyring) IsRemote() bool { return r.jwks != nil }

func (r *Keyring) readFile() error {
	info, err := os.Stat(r.opts.KeyFile) // before it is read: what changes meanwhile is noticed next time
	if err != nil {
		return err
	}
	r.file = info
	text, err := os.ReadFile(r.opts.KeyFile)
	if err != nil {
		return err
	}
	parse := publicKeys
	if slices.Contains(r.opts.Algorithms, "HS256") {
		parse = secretKey
	}
	keys, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", r.opts.KeyFile, err)
	}
	for _, k := range keys {
		if !slices.Contains(r.opts.Algorithms, k.algorithm) {
			return fmt.Errorf("%s: has a key for %s, which is not in algorithms", r.opts.KeyFile, k.algorithm)
		}
	}
	r.replace(keys)
	return nil
}

// secretKey reads the secret of HS256. Line ends at the end of the file do not belong to it.
func secretKey(text []byte) ([]signatureKey, error) {
	secret := bytes.TrimRight(text, "\r\n")
	if block, _ := pem.Decode(text); block != nil {
		return nil, errors.New("is PEM: expected the HS256 secret")
	}
	if len(secret) < 32 { // RFC 7518, section 3.2
		return nil, fmt.Errorf("has %d bytes: expected a secret of at least 32", len(secret))
	}
	return []signatureKey{{algorithm: "HS256", key: secret}}, nil
}

// publicKeys reads public keys and certificates.
func publicKeys(text []byte) (keys []signatureKey, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		var key any
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var certificate *x509.Certificate
			if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = certificate.PublicKey
			}
		default:
			err = fmt.Errorf("has a %s block: expected PUBLIC KEY, RSA PUBLIC KEY or CERTIFICATE", block.Type)
		}
		if err != nil {
			return nil, err
		}
		algorithm, err := algorithmOf(key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, signatureKey{algorithm: algorithm, key: key})
	}
	if len(keys) == 0 || len(keys) > maxTried {
		return nil, fmt.Errorf("has %d keys in PEM: expected 1 to %d", len(keys), maxTried)
	}
	return keys, nil
}

// algorithmOf returns the one that a public key is good for.
func algorithmOf(key any) (string, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 { // RFC 7518, section 3.3
			return "", fmt.Errorf("has an RSA key of %d bits: expected at least 2048", k.N.BitLen())
		}
		return "RS256", nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return "ES256", nil
		}
		return "", fmt.Errorf("has a key on the curve %s: expected P-256", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return "EdDSA", nil
	}
	return "", fmt.Errorf("has a key of type %T: expected RSA, ECDSA or Ed25519", key)
}

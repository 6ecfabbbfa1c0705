package auth

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"carillon/internal/redact"
	"carillon/server/internal/strictjson"
)

// jwks fetches a JSON Web Key Set (RFC 7517). The libraries for it fetch while a token waits for its key,
// and a loop must not wait.
type jwks struct {
	url    string
	client http.Client
	wake   chan struct{}
	begin  time.Time
	last   atomic.Int64 // when a fetch began, in milliseconds after begin; 0 is never
	times  *FetchTimes
}

// FetchTimes are when keys are fetched. Zero is the default.
type FetchTimes struct {
	Interval time.Duration // default: 5 minutes
	Pause    time.Duration // at least, between two fetches because of unknown keys; default: 5 seconds
}

const (
	jwksInterval = 5 * time.Minute
	jwksPause    = 5 * time.Second
	jwksRetry    = time.Second // after the first failure, then twice as long each time, up to a minute
	jwksTimeout  = 10 * time.Second
	maxJWKS      = 1 << 20
)

func newJWKS(url string, times *FetchTimes) *jwks {
	if times == nil {
		times = &FetchTimes{}
	}
	return &jwks{url: url, begin: time.Now(), client: http.Client{Timeout: jwksTimeout, CheckRedirect: secureRedirects}, wake: make(chan struct{}, 1), times: times}
}

// ask has the keys fetched soon because one is not known, and reports whether that is worth coming back for.
// Names of keys that do not exist cause one fetch in each pause.
func (j *jwks) ask() bool {
	if last := j.last.Load(); last > 0 && j.now()-last < cmp.Or(j.times.Pause, jwksPause).Milliseconds() {
		return false
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return true
}

func (j *jwks) now() int64 { return time.Since(j.begin).Milliseconds() + 1 }

func (j *jwks) watch(ctx context.Context, good bool, refresh func(context.Context) bool) {
	failures := 0
	for {
		wait := cmp.Or(j.times.Interval, jwksInterval)
		if !good {
			wait = min(jwksRetry<<min(failures, 6), time.Minute)
			failures++
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-j.wake:
		case <-timer.C:
		}
		timer.Stop()
		if good = refresh(ctx); good {
			failures = 0
		}
	}
}

func (j *jwks) fetch(ctx context.Context) ([]signatureKey, error) {
	j.last.Store(j.now())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return nil, redact.Error(err, j.url)
	}
	r.Header.Set("Accept", "application/jwk-set+json, application/json")
	text, err := fetchBody(&j.client, r, maxJWKS)
	if err != nil {
		return nil, err
	}
	return parseJWKS(text)
}

// jwk is a public key (RFC 7517, section 4; RFC 7518, section 6; RFC 8037).
type jwk struct {
	Kty string   `json:"kty"`
	Kid string   `json:"kid"`
	Use string   `json:"use"`
	Ops []string `json:"key_ops"`
	Alg string   `json:"alg"`
	Crv string   `json:"crv"`
	N   string   `json:"n"`
	E   string   `json:"e"`
	X   string   `json:"x"`
	Y   string   `json:"y"`
}

type jwkSet struct {
	Keys []json.RawMessage `json:"keys"`
}

var (
	jwkShape    = strictjson.ShapeOf[jwk](strictjson.Rules{Unknown: true})
	jwkSetShape = strictjson.ShapeOf[jwkSet](strictjson.Rules{Unknown: true})
)

// checks reports whether the key is for checking signatures (RFC 7517, sections 4.2 and 4.3).
func (k *jwk) checks() bool {
	return (k.Use == "" || k.Use == "sig") && (k.Ops == nil || slices.Contains(k.Ops, "verify"))
}

// parseJWKS returns the keys that can check a signature here. Others are passed over: a set may hold keys
// for other purposes. But a set with members that are not clear is refused as a whole: an issuer that writes one thing
// and means another is not one to guess about.
func parseJWKS(text []byte) ([]signatureKey, error) {
	var set jwkSet
	err := jwkSetShape.Unmarshal(text, &set)
	if e, ok := errors.AsType[*strictjson.Error](err); ok {
		return nil, fmt.Errorf("the response is not a JSON Web Key Set: %w", e)
	} else if err != nil {
		return nil, errors.New("the response is not a JSON Web Key Set")
	}
	var keys []signatureKey
	for i, raw := range set.Keys {
		var k jwk
		err := jwkShape.Unmarshal(raw, &k)
		if e, ok := errors.AsType[*strictjson.Error](err); ok {
			return nil, fmt.Errorf("keys[%d] of the response is not a JSON Web Key: %w", i, e)
		}
		if err != nil || !k.checks() {
			continue
		}
		public, err := k.public()
		if err != nil {
			continue
		}
		algorithm, err := algorithmOf(public)
		if err != nil || k.Alg != "" && k.Alg != algorithm && !(algorithm == "EdDSA" && k.Alg == "Ed25519") {
			continue
		}
		keys = append(keys, signatureKey{id: k.Kid, algorithm: algorithm, key: public})
	}
	if len(keys) == 0 {
		return nil, errors.New("the response has no key for RS256, ES256 or EdDSA")
	}
	return keys, nil
}

var errKeyKind = errors.New("unsupported key type")

func (k *jwk) public() (any, error) {
	switch {
	case k.Kty == "RSA":
		n, err := k.number(k.N)
		if err != nil {
			return nil, err
		}
		e, err := k.number(k.E)
		if err != nil || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
			return nil, errKeyKind
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	case k.Kty == "EC" && k.Crv == "P-256":
		x, errX := base64.RawURLEncoding.DecodeString(k.X)
		y, errY := base64.RawURLEncoding.DecodeString(k.Y)
		if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
			return nil, errKeyKind
		}
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	case k.Kty == "OKP" && k.Crv == "Ed25519":
		x, err := base64.RawURLEncoding.DecodeString(k.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return nil, errKeyKind
		}
		return ed25519.PublicKey(x), nil
	}
	return nil, errKeyKind
}

func (k *jwk) number(text string) (*big.Int, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) == 0 || len(b) > 1024 {
		return nil, errKeyKind
	}
	return new(big.Int).SetBytes(b), nil
}

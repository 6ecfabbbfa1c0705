package server

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/internal/testenv"
)

var algorithms = []string{"HS256", "RS256", "ES256", "EdDSA"}

// issuer makes tokens, and endpoints that want them.
type issuer struct {
	*testenv.Issuer
	t testing.TB
}

func newIssuer(t testing.TB) *issuer { return &issuer{testenv.NewIssuer(t), t} }

// endpoint is one with topics that wants tokens of one algorithm.
func (i *issuer) endpoint(algorithm string) Endpoint {
	ep := topicsEndpoint()
	ep.Auth.JWT = JWT{Algorithms: []string{algorithm}, KeyFile: i.File(algorithm), Leeway: -1}
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

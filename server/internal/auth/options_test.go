package auth

import (
	"strings"
	"testing"

	"carillon/server/internal/option"
)

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		options Options
		problem string
	}{
		{Options{JWT: JWT{Issuer: "x"}}, "auth.jwt.key_file: is missing"},
		{Options{JWT: JWT{Optional: true}}, "auth.jwt.key_file: is missing"},
		{Options{JWT: JWT{KeyFile: "x"}}, "auth.jwt.algorithms: is missing"},
		{Options{JWT: JWT{KeyFile: "x", JWKSURL: "http://x", Algorithms: []string{"RS256"}}}, "mutually exclusive"},
		{Options{JWT: JWT{KeyFile: "x", Algorithms: []string{"RS256", "HS256"}}}, "mixes HS256 with others"},
		{Options{JWT: JWT{KeyFile: "x", Algorithms: []string{"none"}}}, `auth.jwt.algorithms[0]: "none" is unknown`},
		{Options{JWT: JWT{JWKSURL: "http://x", Algorithms: []string{"HS256"}}}, "are public"},
		{Options{JWT: JWT{JWKSURL: "file:///x", Algorithms: []string{"ES256"}}}, "auth.jwt.jwks_url: is not a URL"},
		{Options{JWT: JWT{From: []string{"body"}}}, `auth.jwt.from[0]: "body" is unknown`},
		{Options{JWT: JWT{From: []string{"cookie:"}}}, `auth.jwt.from[0]: "cookie:" is unknown`},
		{Options{Hook: Hook{URL: "x"}}, "auth.hook.url: is not a URL"},
		{Options{Hook: Hook{Timeout: -1}}, "auth.hook.timeout: cannot be turned off"},
		{Options{Hook: Hook{Headers: []string{"a b"}}}, "auth.hook.headers[0]"},
	} {
		var c option.Checker
		Resolve(&test.options, &c, "auth.")
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%+v: %v, want %q", test.options, err, test.problem)
		}
	}
}

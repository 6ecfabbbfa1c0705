package auth

import (
	"strings"
	"testing"

	"carillon/server/internal/option"
)

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		jwt     JWT
		hook    Hook
		problem string
	}{
		{JWT{Issuer: "x"}, Hook{}, "auth.jwt.key_file: is missing"},
		{JWT{Optional: true}, Hook{}, "auth.jwt.key_file: is missing"},
		{JWT{KeyFile: "x"}, Hook{}, "auth.jwt.algorithms: is missing"},
		{JWT{KeyFile: "x", JWKSURL: "http://x", Algorithms: []string{"RS256"}}, Hook{}, "mutually exclusive"},
		{JWT{KeyFile: "x", Algorithms: []string{"RS256", "HS256"}}, Hook{}, "mixes HS256 with others"},
		{JWT{KeyFile: "x", Algorithms: []string{"none"}}, Hook{}, `auth.jwt.algorithms[0]: "none" is unknown`},
		{JWT{JWKSURL: "http://x", Algorithms: []string{"HS256"}}, Hook{}, "are public"},
		{JWT{JWKSURL: "file:///x", Algorithms: []string{"ES256"}}, Hook{}, "auth.jwt.jwks_url: is not a URL"},
		{JWT{From: []string{"body"}}, Hook{}, `auth.jwt.from[0]: "body" is unknown`},
		{JWT{From: []string{"cookie:"}}, Hook{}, `auth.jwt.from[0]: "cookie:" is unknown`},
		{JWT{}, Hook{URL: "x"}, "auth.hook.url: is not a URL"},
		{JWT{}, Hook{Timeout: -1}, "auth.hook.timeout: cannot be turned off"},
		{JWT{}, Hook{Headers: []string{"a b"}}, "auth.hook.headers[0]"},
	} {
		var c option.Checker
		Resolve(&test.jwt, &test.hook, &c, "auth.")
		if err := c.Err(); err == nil || !strings.Contains(err.Error(), test.problem) {
			t.Errorf("%+v %+v: %v, want %q", test.jwt, test.hook, err, test.problem)
		}
	}
}

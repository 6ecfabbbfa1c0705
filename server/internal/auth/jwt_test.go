package auth

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carillon/codec"
	"carillon/internal/testenv"
)

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
			token, found := v.find(&r)
			if token != "" && !found {
				t.Errorf("%s: %q is said not to be there", from, token)
			}
			if token == "" || from == "query" && strings.ContainsAny(query, "%+") {
				continue
			}
			if !strings.Contains(source, token) {
				t.Errorf("%s: %q is not in %q", from, token, source)
			}
		}
	})
}

// What a token costs the loop.
func BenchmarkToken(b *testing.B) {
	i := testenv.NewIssuer(b)
	for _, a := range algorithms {
		b.Run("algorithm="+a, func(b *testing.B) {
			v, err := newVerifier(&JWT{Algorithms: []string{a}, KeyFile: i.File(a)}, Config{Log: slog.New(slog.DiscardHandler), Wall: time.Now})
			if err != nil {
				b.Fatal(err)
			}
			token := i.Token(a, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.verify(token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

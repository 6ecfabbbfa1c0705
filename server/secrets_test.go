package server

import (
	"fmt"
	"strings"
	"testing"
)

// Secrets stand in every URL that an endpoint has, and nothing answers there. Neither the log, nor what the interface
// shows, nor an error has them.
func TestSecretsOfURLsAreNotShown(t *testing.T) {
	const mark = "sesame"
	secret := func(name string) string {
		return fmt.Sprintf("http://user-%[1]s-%[2]s:password-%[1]s-%[2]s@127.0.0.1:1/%[2]s?token=query-%[1]s-%[2]s", mark, name)
	}
	ep := topicsEndpoint()
	ep.Auth = Auth{JWT: JWT{Algorithms: []string{"ES256"}, JWKSURL: secret("jwks"), Optional: true}, Hook: Hook{URL: secret("hook")}}
	s, log := startLogged(t, Options{Endpoints: []Endpoint{ep}, Internal: Internal{Listen: "127.0.0.1:0", Token: mark + "-of-the-interface"}})
	refused(t, s, 503, RefuseHookFailed, "/ws")
	refused(t, s, 503, RefuseNoKeys, "/ws", withToken(newIssuer(t).Token("ES256", alice())))
	eventually(t, "the log has both", func() bool {
		return strings.Contains(log.String(), "connect hook failing") && strings.Contains(log.String(), "could not read token keys")
	})
	if !strings.Contains(log.String(), "url=http://(set)@127.0.0.1:1/hook?(set)") {
		t.Error("the log does not say which hook fails")
	}
	var shown strings.Builder
	doc, _ := document(t) // it has all routes
	for path, item := range doc.Paths.Map() {
		if item.Get != nil {
			shown.Write(call(t, s, "GET", path, "", "Authorization: Bearer "+mark+"-of-the-interface").body)
		}
	}
	_, err := changed(s, func(o *Options) { o.Endpoints[0].Auth.JWT.JWKSURL = secret("other") })
	if err == nil || !strings.Contains(err.Error(), "no keys could be fetched") {
		t.Error(err)
	}
	fmt.Fprintln(&shown, err)
	_, err = changed(s, func(o *Options) {
		o.Endpoints[0].Auth.Hook.URL = "ftp://" + mark + "@x"
		o.Endpoints[0].Origins = []string{"https://" + mark + "@x/y"}
		o.PublicURL = "https://" + mark + ":" + mark + "@x"
	})
	fmt.Fprintln(&shown, err)
	if strings.Count(fmt.Sprint(err), "\n") != 2 {
		t.Errorf("expected three problems: %v", err)
	}
	if text := log.String() + shown.String(); strings.Contains(text, mark) {
		for line := range strings.Lines(text) {
			if strings.Contains(line, mark) {
				t.Error(line)
			}
		}
	}
}

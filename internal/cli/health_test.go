package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A container asks its server whether it lives, and whether it is ready, and is told by the exit status.
func TestHealth(t *testing.T) {
	draining := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer hush-hush-hush-hush":
			http.Error(w, "who are you", http.StatusUnauthorized)
		case r.URL.Path == "/livez":
			_, _ = w.Write([]byte("ok\n"))
		case r.URL.Path == "/readyz":
			http.Error(w, "draining", http.StatusServiceUnavailable)
		}
	}))
	defer draining.Close()
	at := strings.TrimPrefix(draining.URL, "http://")
	for _, test := range []struct {
		sentence, args string
		env            map[string]string
		status         int
		stdout, stderr string
	}{
		{"it lives", "health --api " + at + " --token hush-hush-hush-hush", nil, 0, "ok\n", ""},
		{"it is not ready", "health --ready --api " + at + " --token hush-hush-hush-hush", nil, 1, "", "carillon: /readyz: 503 Service Unavailable: draining\n"},
		{"it wants a token", "health --api " + at, nil, 1, "", "carillon: /livez: 401 Unauthorized: who are you\n"},
		{"the server's own variables say where it is", "health",
			map[string]string{"CARILLON_INTERNAL_LISTEN": ":" + at[strings.Index(at, ":")+1:], "CARILLON_INTERNAL_TOKEN": "hush-hush-hush-hush"}, 0, "ok\n", ""},
		{"a server that listens everywhere is here", "health",
			map[string]string{"CARILLON_INTERNAL_LISTEN": "0.0.0.0:" + at[strings.Index(at, ":")+1:], "CARILLON_INTERNAL_TOKEN": "hush-hush-hush-hush"}, 0, "ok\n", ""},
		{"a server that has no such interface", "health", map[string]string{"CARILLON_INTERNAL_LISTEN": "off"}, 1, "",
			"carillon: CARILLON_INTERNAL_LISTEN is off: check /healthz on the public port instead\n"},
		{"nothing listens", "health --api 127.0.0.1:1", nil, 1, "", "carillon: get /livez: dial tcp 127.0.0.1:1: connect: connection refused\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			for _, name := range []string{"CARILLON_API", "CARILLON_TOKEN", "CARILLON_INTERNAL_LISTEN", "CARILLON_INTERNAL_TOKEN"} {
				t.Setenv(name, test.env[name])
			}
			seat{}.begin(t, strings.Fields(test.args)...).end(test.status, test.stdout, test.stderr)
		})
	}
}

func TestOwnAPI(t *testing.T) {
	for listen, want := range map[string]string{
		":8081": "127.0.0.1:8081", "0.0.0.0:8081": "127.0.0.1:8081", "[::]:8081": "[::1]:8081",
		"10.0.0.1:8081": "10.0.0.1:8081", "localhost:8081": "localhost:8081", "off": "off", "": "",
	} {
		if got := ownAPI(listen); got != want {
			t.Errorf("%q is at %q, want %q", listen, got, want)
		}
	}
}

package demo

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"carillon/client"
)

func TestPages(t *testing.T) {
	h := New(Options{}).Handler()
	get := func(method, path string, header ...string) *http.Response {
		r := httptest.NewRequest(method, path, nil)
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result()
	}
	for path, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/demo/style.css": "text/css; charset=utf-8", "/demo/chat.js": "text/javascript; charset=utf-8",
		"/demo/icon.svg": "image/svg+xml", "/carillon.js": "text/javascript; charset=utf-8",
	} {
		r := get("GET", path)
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != kind || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %s %v", path, r.Status, r.Header)
		}
		policy := r.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'; script-src 'self'; ") || strings.Contains(policy, "unsafe") ||
			!strings.Contains(policy, "connect-src 'self' ws://example.com wss://example.com;") {
			t.Errorf("%s: policy %q", path, policy)
		}
		readable := map[bool]string{true: "*"}[path == "/carillon.js"]
		if got := r.Header.Get("Access-Control-Allow-Origin"); got != readable {
			t.Errorf("%s: pages of other origins: %q, want %q", path, got, readable)
		}
		if again := get("GET", path, "If-None-Match", r.Header.Get("ETag")); again.StatusCode != 304 {
			t.Errorf("%s again: %s", path, again.Status)
		}
		if head := get("HEAD", path); head.StatusCode != 200 || head.ContentLength == 0 {
			t.Errorf("%s: HEAD %s", path, head.Status)
		}
	}
	if r := get("POST", "/"); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %s", r.Status)
	}
	for _, path := range []string{"/x", "/demo/", "/demo/index.html", "/demo/../demo.go"} {
		if r := get("GET", path); r.StatusCode != 404 {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
}

func TestPolicyTrustsNoHost(t *testing.T) {
	for host, want := range map[string]bool{
		"example.com": true, "localhost:8080": true, "[::1]:8080": true, "example.com; script-src *": false, "": false, "a b": false,
	} {
		if got := policy(host); strings.Contains(got, "ws://") != want || strings.Contains(got, "*") {
			t.Errorf("%q: %s", host, got)
		}
	}
}

// All that a browser loads is small, the client included.
func TestPagesAreSmall(t *testing.T) {
	size := len(client.Script)
	err := fs.WalkDir(web, "web", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			size += int(info.Size())
		}
		return err
	})
	if err != nil || size > 64<<10 {
		t.Errorf("the page has %d bytes, %v", size, err)
	}
}

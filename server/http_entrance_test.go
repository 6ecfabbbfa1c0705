package server

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func (e *httpEntrance) setInside(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inside = n
}

func (e *httpEntrance) counts() (inside, waiting int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inside, e.waiting.Len()
}

func bodyOf(t *testing.T, c *client) string {
	t.Helper()
	b, err := io.ReadAll(c.response().Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// Connections for which Options.HTTP has no time wait on their loops, where those that go are noticed; a body that is
// too large to be kept there does not wait. The others are served in the order in which they came.
func TestHTTPEntrance(t *testing.T) {
	s := start(t, Options{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, r.URL.Path+" "+strconv.FormatInt(n, 10))
	})})
	e := &s.plain.entrance
	e.setInside(maxEntering)
	ask := func(path string, body int) *client {
		c := dialRaw(t, s)
		c.write([]byte("POST " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(body) + "\r\n\r\n"))
		return c
	}
	goes, stays := ask("/goes", 0), ask("/stays", 3)
	eventually(t, "both wait", func() bool { _, n := e.counts(); return n == 2 })
	goes.kill()
	eventually(t, "one is gone", func() bool { return s.Stats().Sockets == 1 })
	large := ask("/large", 100_000)
	eventually(t, "it waits", func() bool { _, n := e.counts(); return n == 3 })
	large.write([]byte(strings.Repeat("x", 100_000)))
	if body := bodyOf(t, large); body != "/large 100000" {
		t.Errorf("the large one is answered %q", body)
	}
	stays.write([]byte("abc")) // while it waits
	e.leave()
	if body := bodyOf(t, stays); body != "/stays 3" {
		t.Errorf("the one that waited is answered %q", body)
	}
	eventually(t, "all are gone", func() bool { return s.Stats().Sockets == 0 })
	if inside, waiting := e.counts(); inside != maxEntering-1 || waiting != 0 {
		t.Errorf("%d have a place and %d wait, want %d and 0", inside, waiting, maxEntering-1)
	}
}

// One address may open only so many connections of plain HTTP a second, if the operator says so.
func TestHTTPCountsForItsAddress(t *testing.T) {
	s := start(t, Options{HTTP: http.NotFoundHandler(), Limits: Limits{HandshakesPerSecondPerAddress: 3}})
	var refused int
	for range 10 {
		c := dialRaw(t, s)
		c.write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
		switch status := c.response().StatusCode; status {
		case 429:
			refused++
		case 404:
		default:
			t.Errorf("answered %d", status)
		}
	}
	if n := s.Stats().Refusals[RefuseAddressHandshakes]; refused < 6 || int(n) != refused {
		t.Errorf("%d were refused, %d counted, want about 7", refused, n)
	}
}

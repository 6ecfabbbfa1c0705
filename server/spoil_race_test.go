//go:build race

package server

import (
	"strings"
	"testing"

	"carillon/server/internal/reactor"
)

// Bytes that a handler keeps are overwritten where the race detector watches, so that a test of the application sees
// it.
func TestKeptBytesAreSpoiled(t *testing.T) {
	for _, row := range []struct {
		sentence string
		frames   []byte
		path     string
	}{
		{"a message", text("hello, this is a secret"), "/"},
		{"fragments", join(masked(0x01, []byte("hello, this")), masked(0x80, []byte(" is a secret"))), "/"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: func(c *Conn, op Opcode, b []byte) {
				_ = c.Do(func() { _ = c.Send(op, b) })
			}}}}})
			c := dial(t, s, row.path)
			c.write(row.frames)
			c.want((reactor.Spoiled + reactor.Spoiled)[:len("hello, this is a secret")])
		})
	}
	t.Run("a request", func(t *testing.T) {
		var kept []byte
		s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
			Upgrade: func(r *Request) error { kept = r.Header("X-Secret"); return nil },
			Message: func(c *Conn, op Opcode, _ []byte) { _ = c.Send(op, kept) },
		}}}})
		c := dial(t, s, "/", "X-Secret: 123")
		c.send("well?")
		op, b, err := c.frame()
		if err != nil || op != Text || len(b) != 3 || !strings.Contains(reactor.Spoiled+reactor.Spoiled, string(b)) {
			t.Errorf("it is still %q, %v", b, err)
		}
	})
}

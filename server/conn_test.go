package server

import (
	"errors"
	"io"
	"strings"
	"testing"

	"carillon/codec"
)

// A handler that closes its connection hears nothing more of it, whatever came in the same read, and
// what it had sent before goes out first.
func TestCloseEndsMessages(t *testing.T) {
	heard := make(chan string, 10)
	after := make(chan error, 10)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/once", Handler: Handler{
		Message: func(c *Conn, op codec.Opcode, payload []byte) {
			heard <- string(payload)
			_ = c.Send(op, payload)
			_ = c.Close(codec.CloseNormal, "one is enough")
			after <- c.Send(op, payload)
		},
		Close: func(*Conn, error) { close(heard) },
	}}}})
	c := dial(t, s, "/once")
	c.write(append(append(text("one"), text("two")...), text("three")...))
	c.want("one")
	c.wantClose(codec.CloseNormal, "one is enough")
	if err := <-after; !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	var all []string
	for text := range heard {
		all = append(all, text)
	}
	if len(all) != 1 {
		t.Errorf("the handler got %q", all)
	}
}

// HEAD is refused like any method that is not GET, but without a body.
func TestHeadHasNoBody(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dialRaw(t, s)
	c.write([]byte(strings.Replace(upgradeHead("/echo"), "GET", "HEAD", 1)))
	answer, err := io.ReadAll(c.r)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 405 ") || !strings.HasSuffix(string(answer), "\r\n\r\n") {
		t.Errorf("%q, %v", answer, err)
	}
}

// When the application closes and the peer's close frame, or its last mistake, has come already, nothing is
// waited for.
func TestCloseWhenThePeerIsDone(t *testing.T) {
	t.Parallel()
	for name, last := range map[string][]byte{
		"the peer closes too":     masked(0x88, []byte{0x03, 0xe8}),
		"the peer breaks a rule":  {0xff, 0x80, 0, 0, 0, 0},
		"the handler panics then": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{Limits: Limits{CloseTimeout: 2 * patience}, Endpoints: []Endpoint{{Path: "/", Handler: Handler{
				Message: func(c *Conn, op codec.Opcode, payload []byte) {
					_ = c.Close(4000, "")
					if last == nil {
						panic("and out")
					}
				},
			}}}})
			c := dial(t, s, "/")
			c.write(append(text("close"), last...))
			if op, payload, err := c.frame(); op != codec.OpClose || string(payload) != "\x0f\xa0" || err != nil {
				t.Fatalf("got %v %q, %v; want close frame 4000", op, payload, err)
			}
			c.wantEOF()
		})
	}
}

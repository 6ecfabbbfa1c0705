package server

import (
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"carillon/codec"
)

// record is a handler that notes what is called, in order.
func record(calls chan string, hooks Handler) Handler {
	hooks.Error = func(next func(*Conn, error)) func(*Conn, error) {
		return func(c *Conn, err error) {
			calls <- "error"
			if next != nil {
				next(c, err)
			}
		}
	}(hooks.Error)
	hooks.Close = func(next func(*Conn, error)) func(*Conn, error) {
		return func(c *Conn, err error) {
			calls <- "close"
			if next != nil {
				next(c, err)
			}
		}
	}(hooks.Close)
	return hooks
}

// Whatever panics, Error is called with it and the stack, once, and the peer gets 1011.
func TestErrorHearsPanics(t *testing.T) {
	cause := errors.New("the database is gone")
	blow := func() { panic(cause) }
	for _, row := range []struct {
		hook  string
		hooks Handler
		calls string
	}{
		{"Open", Handler{Open: func(*Conn) { blow() }}, "error, close"},
		{"Message", Handler{Message: func(*Conn, Opcode, []byte) { blow() }}, "error, close"},
		{"Done", Handler{Message: func(c *Conn, _ Opcode, _ []byte) { c.Unsubscribe("x", func(error) { blow() }) }}, "error, close"},
		{"Do", Handler{Message: func(c *Conn, _ Opcode, _ []byte) { _ = c.Do(blow) }}, "error, close"},
		{"After", Handler{Message: func(c *Conn, _ Opcode, _ []byte) { _, _ = c.After(1, blow) }}, "error, close"},
		{"Close", Handler{Close: func(*Conn, error) { blow() }, Message: func(c *Conn, _ Opcode, _ []byte) {
			_ = c.Close(codec.CloseInternalError, "internal server error")
		}}, "close, error"},
	} {
		t.Run(row.hook, func(t *testing.T) {
			calls, heard := make(chan string, 10), make(chan error, 10)
			row.hooks.Error = func(_ *Conn, err error) { heard <- err }
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: record(calls, row.hooks)}}})
			c := dialRaw(t, s)
			c.write(join([]byte(upgradeHead("/")), text("hello")))
			c.response()
			c.wantClose(codec.CloseInternalError, "internal server error")
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != row.calls {
				t.Errorf("called %s; want %s", got, row.calls)
			}
			var p *PanicError
			err := <-heard
			if !errors.As(err, &p) || !errors.Is(err, cause) || p.Hook != row.hook || !strings.Contains(string(p.Stack), "error_test.go") {
				t.Fatalf("Error got %#v", err)
			}
			if want := "panic in " + row.hook + ": the database is gone"; err.Error() != want {
				t.Errorf("it says %q, want %q", err, want)
			}
			if n := s.Stats().Panics; n != 1 {
				t.Errorf("%d panics are counted, want 1", n)
			}
		})
	}
}

// Error itself may panic: the connection ends, and Error is not called again.
func TestErrorPanics(t *testing.T) {
	for _, row := range []struct {
		name  string
		hooks Handler
		send  []byte
		count uint64
	}{
		{"about a panic", Handler{Message: func(*Conn, Opcode, []byte) { panic("first") }}, text("x"), 2},
		{"about a broken rule", Handler{}, []byte{0xff, 0x80, 0, 0, 0, 0}, 1},
		{"about a message that is not JSON", Handler{Message: JSONWith(JSONRules{KeepOpen: true}, func(*Conn, int) {})}, text("x"), 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			calls := make(chan string, 10)
			row.hooks.Error = func(*Conn, error) { panic("in Error") }
			s, log := startLogged(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: record(calls, row.hooks)}}})
			c := dial(t, s, "/")
			c.write(append(row.send, text("unheard")...))
			c.wantClose(codec.CloseInternalError, "internal server error")
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != "error, close" {
				t.Errorf("called %s", got)
			}
			if n := s.Stats().Panics; n != row.count || !strings.Contains(log.String(), "hook=Error") {
				t.Errorf("%d panics are counted, want %d; the log says %s", n, row.count, log)
			}
		})
	}
}

// A panic that is none of the runtime's errors, and one that is.
func TestPanicErrorUnwraps(t *testing.T) {
	if err := (&PanicError{Hook: "Open", Value: "plain"}); errors.Unwrap(err) != nil {
		t.Error("a string is no error")
	}
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	dial(t, s, "/echo")
	conn := onlyConn(t, s, "/echo")
	heard := make(chan error, 1)
	var empty []int
	if err := conn.SetHandler(&Handler{Message: func(*Conn, Opcode, []byte) { empty[0]++ }, Error: func(_ *Conn, err error) { heard <- err }}); err != nil {
		t.Fatal(err)
	}
	conn.shard().PostDo(conn.core(), 0, func() { conn.callMessage(Text, nil) })
	var of runtime.Error
	if err := <-heard; !errors.As(err, &of) {
		t.Errorf("Error got %v, want a runtime error inside", err)
	}
}

// A peer that breaks a rule: Error hears which, before the close.
func TestErrorHearsBrokenRules(t *testing.T) {
	for _, row := range []struct {
		name string
		send []byte
		rule *codec.ProtocolError
	}{
		{"reserved bits", []byte{0xf1, 0x80, 0, 0, 0, 0}, codec.ErrReservedBits},
		{"text that is not UTF-8", masked(0x81, []byte{0xff}), codec.ErrInvalidUTF8},
		{"a message that is too large", masked(0x82, make([]byte, 2000)), codec.ErrMessageTooBig},
	} {
		t.Run(row.name, func(t *testing.T) {
			calls, heard := make(chan string, 10), make(chan error, 10)
			hooks := Handler{Error: func(c *Conn, err error) {
				heard <- err
				_ = c.Send(Text, []byte("a last word"))
			}}
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: record(calls, hooks)}}, Limits: Limits{MaxMessage: 1000}})
			c := dial(t, s, "/")
			c.write(row.send)
			c.want("a last word")
			c.wantClose(row.rule.Code, row.rule.Rule)
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != "error, close" {
				t.Errorf("called %s", got)
			}
			if err := <-heard; !errors.Is(err, row.rule) {
				t.Errorf("Error got %v, want %v", err, row.rule)
			}
		})
	}
}

// The application may end the connection in its own way.
func TestErrorChoosesTheCode(t *testing.T) {
	for _, row := range []struct {
		name string
		send []byte
	}{
		{"after a panic", text("panic")},
		{"after a broken rule", []byte{0xf1, 0x80, 0, 0, 0, 0}},
		{"after a message that is not JSON", text("{")},
	} {
		t.Run(row.name, func(t *testing.T) {
			calls := make(chan string, 10)
			decode := JSON(func(*Conn, int) {})
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: record(calls, Handler{
				Message: func(c *Conn, op Opcode, b []byte) {
					if string(b) == "panic" {
						panic("as told")
					}
					decode(c, op, b)
				},
				Error: func(c *Conn, _ error) { _ = c.Close(4000, "mine") },
			})}}})
			c := dial(t, s, "/")
			c.write(row.send)
			c.wantClose(4000, "mine")
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != "error, close" {
				t.Errorf("called %s", got)
			}
		})
	}
}

// What is no error: an orderly close, a lost connection, and whatever comes after the application has
// closed.
func TestErrorIsNotCalled(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(c *client)
	}{
		{"when the peer closes", func(c *client) { c.write(masked(0x88, []byte{0x03, 0xe8})) }},
		{"when the peer resets", func(c *client) { c.kill() }},
		{"when a rule is broken behind a Close", func(c *client) { c.write(append(text("close"), 0xff, 0x80, 0, 0, 0, 0)) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			calls := make(chan string, 10)
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: record(calls, Handler{
				Message: func(c *Conn, _ Opcode, _ []byte) { _ = c.Close(codec.CloseNormal, "") },
			})}}})
			c := dial(t, s, "/")
			row.end(c)
			if !strings.Contains(row.name, "resets") {
				_, _ = io.Copy(io.Discard, c.r)
			}
			_ = c.conn.Close()
			if got := drainCalls(s, t, calls); got != "close" {
				t.Errorf("called %s", got)
			}
		})
	}
}

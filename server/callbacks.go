package server

import (
	"fmt"
	"runtime/debug"

	"carillon/codec"
	"carillon/server/internal/logs"
	"carillon/server/internal/reactor"
)

// The calls into the application. A panic there is the application's, and ends no more than the
// connection that it happened on.

// PanicError is a panic in a function of the application; [Handler.Error] gets it.
type PanicError struct {
	Hook  string // the function: "Open", "Message", "Close", or "Done", "Do" or "After" for one that was passed along
	Value any    // what it panicked with
	Stack []byte // of the goroutine, as text
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic in %s: %v", e.Hook, e.Value) }

// Unwrap returns the value of the panic if that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

func (c *Conn) callUpgrade(r *Request) (why RefuseReason, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.panicked("Upgrade", p)
			why, err = RefusePanic, &codec.Rejection{Status: 500, Reason: "internal server error"}
		}
	}()
	c.core().Calls(reactor.HookUpgrade)
	return RefuseHandler, c.endpoint().handler.Upgrade(r)
}

func (c *Conn) callOpen() {
	if c.endpoint().handler.Open == nil {
		return
	}
	defer c.rescue("Open")
	c.core().Calls(reactor.HookOpen)
	c.endpoint().handler.Open(c)
}

func (c *Conn) callMessage(op codec.Opcode, payload []byte) {
	h := c.handler()
	if h.Message == nil {
		return
	}
	defer c.rescue("Message")
	c.core().Calls(reactor.HookMessage)
	h.Message(c, op, payload)
	reactor.Spoil(payload)
}

// callFunc calls a function that the application has passed along, or one that ends in such a call.
func (c *Conn) callFunc(hook reactor.HookKind, do func()) {
	defer c.rescue(reactor.HookNames[hook])
	c.core().Calls(hook)
	do()
}

// callClose is given the handler, because the connection has none any more.
func (c *Conn) callClose(h *Handler, why *CloseError) {
	if h.Close == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			c.callError(h, c.panicked("Close", p))
		}
	}()
	c.core().Calls(reactor.HookClose)
	h.Close(c, why)
}

// callError must come before the close that the error leads to: what the application sends and how it
// closes takes its turn before that.
func (c *Conn) callError(h *Handler, err error) {
	if h.Error == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			c.panicked("Error", p)
			c.failInternally()
		}
	}()
	c.core().Calls(reactor.HookError)
	h.Error(c, err)
}

// rescue is deferred around calls for a connection that is open.
func (c *Conn) rescue(hook string) {
	if p := recover(); p != nil {
		c.core().Mark(reactor.MarkPeerDone, true) // what it has sent after this message stays unread
		c.callError(c.handler(), c.panicked(hook, p))
		c.failInternally()
	}
}

func (c *Conn) failInternally() {
	c.core().Mark(reactor.MarkPeerDone, true)
	c.shard().PostClose(c.core(), reactor.CloseFail, codec.CloseInternalError, "internal server error")
}

func (c *Conn) panicked(hook string, p any) *PanicError {
	e := &PanicError{Hook: hook, Value: p, Stack: debug.Stack()}
	c.shard().Stats.Panics.Add(1)
	c.shard().Engine.LogGrave("handler panicked", "hook", hook, "path", c.core().Endpoint().Path, "remote", reactor.ShownAddr(c.RemoteAddr()), "panic", logs.Shorten(fmt.Sprint(p)), "stack", string(e.Stack))
	return e
}

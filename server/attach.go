package server

import "context"

// attachment is what the application attached to one connection, which most connections have nothing of.
// Immutable: a change replaces it as a whole, so that the loop reads it without a lock.
type attachment struct {
	value   any
	handler *Handler    // in place of the endpoint's; nil for that, &detached when nothing is to be called any more
	life    *lifetime   // nil until somebody asks for the context
	timers  *connTimers // nil until there is one
}

// lifetime is a connection's context.
type lifetime struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// detached is the handler of a connection whose Close is called, and detachedAttachment what is attached to it when
// nothing else is.
var (
	detached           Handler
	detachedAttachment = &attachment{handler: &detached}
)

// attach changes a copy of what is attached and puts it in the place of the old one. The change may be
// made more than once, when others come first.
func (c *Conn) attach(change func(*attachment)) (before, after attachment) {
	for {
		old, now := c.attachment.Load(), new(attachment)
		if old != nil {
			*now = *old
		}
		before = *now
		change(now)
		if c.attachment.CompareAndSwap(old, now) {
			return before, *now
		}
	}
}

// handler returns the one whose functions are called for the connection now.
func (c *Conn) handler() *Handler {
	if o := c.attachment.Load(); o != nil && o.handler != nil {
		return o.handler
	}
	return &c.ep.handler
}

// detach ends the context, and returns the handler whose Close is to be called. It is the last one.
func (c *Conn) detach(why error) *Handler {
	if c.attachment.CompareAndSwap(nil, detachedAttachment) {
		return &c.ep.handler
	}
	before, _ := c.attach(func(o *attachment) { o.handler = &detached })
	if before.life != nil {
		before.life.cancel(why)
	}
	if before.handler == nil {
		return &c.ep.handler
	}
	return before.handler
}

// Value returns what SetValue, or [Request.Value] during the handshake, attached to the connection.
func (c *Conn) Value() any {
	if o := c.attachment.Load(); o != nil {
		return o.value
	}
	return nil
}

// SetValue attaches any value of the application to the connection. It stays readable after the
// connection has closed. Each call allocates, so state that changes often is best kept in a struct whose pointer
// is attached.
func (c *Conn) SetValue(v any) { c.attach(func(o *attachment) { o.value = v }) }

// SetHandler has h handle this connection in place of the endpoint's [Handler], from the next call on:
// in a handler, that is already the next message, even one that came in the same packet; from another
// goroutine, a call that is under way is not disturbed. What h does not have is not called, and on an
// endpoint with a [Mode] its Message takes the place of what the mode does. Upgrade and Open are past and
// not called. With nil the endpoint's handler comes back.
//
// One Handler may serve any number of connections; it must not be changed once it is set. It fails with
// [ErrClosed] when the Close of the handler before was called or is about to be; then nothing of h ever
// is. So exactly one Close is called for each connection, that of its last handler.
func (c *Conn) SetHandler(h *Handler) error {
	before, _ := c.attach(func(o *attachment) {
		if o.handler != &detached {
			o.handler = h
		}
	})
	if before.handler == &detached {
		return ErrClosed
	}
	return nil
}

// Context returns a context that ends when the connection does, just before [Handler.Close]; its cause is
// the same *[CloseError], or [ErrClosed] if it was asked for later than that. It is for goroutines that
// work for a connection. Only connections whose context was asked for have one.
func (c *Conn) Context() context.Context {
	if o := c.attachment.Load(); o != nil && o.life != nil {
		return o.life.ctx
	}
	l := &lifetime{}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	_, after := c.attach(func(o *attachment) {
		if o.life == nil {
			o.life = l
		}
	})
	if after.life == l && after.handler == &detached {
		l.cancel(ErrClosed) // part has been here before
	}
	return after.life.ctx
}

package server

import "context"

// attachment is what the application attached to one connection, which most connections have nothing of.
// Immutable: a change replaces it as a whole, so that the loop reads it without a lock.
type attachment struct {
	value   any
	handler any         // in place of the endpoint's; nil for that, detached when nothing is to be called any more
	life    *lifetime   // nil until somebody asks for the context
	timers  *connTimers // nil until there is one
}

// lifetime is a connection's context.
type lifetime struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// detached is the handler of a connection whose Close is called.
type detached struct{}

// detachedAttachment is what is attached to such a connection when nothing else is.
var detachedAttachment = &attachment{handler: detached{}}

func (o *attachment) isDetached() bool { return o.handler == any(detached{}) }

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

// hasOwnHandler reports whether another handler than the endpoint's has been set.
func (c *Conn) hasOwnHandler() bool {
	o := c.attachment.Load()
	return o != nil && o.handler != nil
}

// detach ends the context, and returns the handler that was attached, or nil. It is the last one.
func (c *Conn) detach(why error) (handler any) {
	if c.attachment.CompareAndSwap(nil, detachedAttachment) {
		return nil
	}
	before, _ := c.attach(func(o *attachment) { o.handler = detached{} })
	if before.life != nil {
		before.life.cancel(why)
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
	if after.life == l && after.isDetached() {
		l.cancel(ErrClosed) // detach has been here before
	}
	return after.life.ctx
}

package reactor

import "context"

// Attachment is what the application attached to one connection, which most connections have nothing of.
// Immutable: a change replaces it as a whole, so that the loop reads it without a lock.
type Attachment struct {
	value   any
	Handler any         // in place of the endpoint's; nil for that, detached when nothing is to be called any more
	Life    *lifetime   // nil until the context is asked for
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
var detachedAttachment = &Attachment{Handler: detached{}}

// IsDetached reports whether no handler of the connection is called any more.
func (o *Attachment) IsDetached() bool { return o.Handler == any(detached{}) }

// Attach changes a copy of what is attached and puts it in the place of the old one. The change may be
// made more than once, when others come first.
func (c *Conn) Attach(change func(*Attachment)) (before, after Attachment) {
	for {
		old, now := c.attachment.Load(), new(Attachment)
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
	return o != nil && o.Handler != nil
}

// Detach ends the context, and returns the handler that was attached, or nil. It is the last one.
func (c *Conn) Detach(why error) (handler any) {
	if c.attachment.CompareAndSwap(nil, detachedAttachment) {
		return nil
	}
	before, _ := c.Attach(func(o *Attachment) { o.Handler = detached{} })
	if before.Life != nil {
		before.Life.cancel(why)
	}
	return before.Handler
}

// Value is that of the public connection.
func (c *Conn) Value() any {
	if o := c.attachment.Load(); o != nil {
		return o.value
	}
	return nil
}

// SetValue is that of the public connection.
func (c *Conn) SetValue(v any) { c.Attach(func(o *Attachment) { o.value = v }) }

// Context is that of the public connection.
func (c *Conn) Context() context.Context {
	if o := c.attachment.Load(); o != nil && o.Life != nil {
		return o.Life.ctx
	}
	l := &lifetime{}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	_, after := c.Attach(func(o *Attachment) {
		if o.Life == nil {
			o.Life = l
		}
	})
	if after.Life == l && after.IsDetached() {
		l.cancel(ErrClosed) // detach has been here before
	}
	return after.Life.ctx
}

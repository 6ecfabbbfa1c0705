package reactor

import (
	"errors"
	"io"
	"os"
	"syscall"

	"carillon/codec"
	"carillon/server/internal/drain"
	"carillon/server/internal/envelope"
	"carillon/server/internal/logs"
	"carillon/server/stats"
)

// closeHow is who wants a connection closed.
type closeHow uint8

const (
	CloseOwn   closeHow = iota // the server: the peer's close frame is waited for
	closeReply                 // the peer: ours answers its close frame
	CloseFail                  // the peer broke a rule: nothing more is expected of it (RFC 6455, section 7.1.7)
)

// StartClose begins our side of the closing handshake (RFC 6455, section 7) behind everything that
// was sent or broadcast before.
func (c *Conn) StartClose(how closeHow, code codec.CloseCode, reason string) {
	c.sh.Check()
	if c.Ready() && how == CloseOwn {
		c.Refresh()
	}
	if c.state.Load() == StateOpen {
		c.beginClose(how, code, reason)
	}
}

// beginClose is StartClose for a connection that shall get nothing more.
func (c *Conn) beginClose(how closeHow, code codec.CloseCode, reason string) {
	c.leave(&codec.CloseError{Code: code, Reason: reason, Remote: how == closeReply})
	c.Mark(MarkPeerDone, c.Is(MarkPeerDone) || how != CloseOwn || c.IsEvents())
	c.sh.closing.Add(c, Times{Read: c.sh.Clock})
	if how == closeReply {
		reason = ""
	}
	b := c.sh.Control[:0]
	if c.IsEvents() {
		if retry := drain.RetryOf(reason); retry != "" { // an EventSource does by itself what this says
			b = append(append(append(b, "retry: "...), retry...), '\n')
		}
		b = envelope.AppendCloseEvent(b, code, reason)
	} else {
		b = codec.AppendClose(b, code, reason)
	}
	c.sh.Control = b
	c.SendControl(b)
	c.flushed()
}

// leave takes an open connection out of its endpoint and tells the application.
func (c *Conn) leave(why *codec.CloseError) {
	c.sh.Stats.Drop(stats.DropClosed, c.table.missed(c.slot))
	c.LeaveTopics()
	c.sh.Deadlines.remove(c)
	c.dropTimers()
	c.table.Remove(c)
	c.state.Store(StateClosing)
	c.sh.Stats.Open.Add(-1)
	c.sh.Stats.Closed(why.Code)
	if c.sh.Engine.LogsEvents() {
		c.sh.Engine.LogEvent("connection closed", "id", c.id, "remote", ShownAddr(c.RemoteAddr()), "path", c.ep.Path, "code", int(why.Code), "by_peer", why.Remote, "reason", logs.Shorten(why.Reason))
	}
	c.Owner().HasClosed(c, why)
}

// closeBytes is about what a close takes in a socket: the frame, and twice as much with TLS and its end.
const closeBytes = 256

// flushed goes on with a close as far as it can. When our close frame is out and the peer's is in, our
// side of the TCP connection is shut down; the socket is closed only after the peer's FIN, because
// closing it while bytes come in makes the kernel reset the connection, and the peer might lose what
// we sent last.
func (c *Conn) flushed() {
	if c.state.Load() != StateClosing || c.out != nil {
		return
	}
	c.table.Times[c.slot].Read = c.sh.Clock
	c.noteLag(closeBytes)
	if !c.Is(MarkPeerDone) || !c.sayEnd() {
		return
	}
	if c.gc == nil { // the peer's FIN has come: see outlive
		c.Abort(io.EOF)
		return
	}
	c.state.Store(stateLingering)
	c.dropInput()
	if err := syscall.Shutdown(int(c.fd), syscall.SHUT_WR); err != nil {
		c.Abort(os.NewSyscallError("shutdown", err))
	}
}

var (
	errWriteTimeout = errors.New("the peer read nothing for limits.write_timeout")
	errCloseTimeout = errors.New("the closing handshake took longer than limits.close_timeout")
	ErrStopped      = errors.New("the server stopped")
)

// Abort closes the socket now. The connection is gone when it returns.
func (c *Conn) Abort(err error) {
	c.sh.Check()
	if c.state.Load() != StateClosed {
		c.sh.lost = err
		if c.gc != nil {
			_ = c.sh.loop.Close(c.gc)
		} else {
			c.isDetached(err)
			_ = syscall.Close(int(c.fd))
		}
		c.sh.lost = nil
	}
}

// isDetached is the end of every connection: gnet, or abort, closes the descriptor when it returns.
func (c *Conn) isDetached(err error) {
	c.sh.Check()
	if c.sh.lost != nil {
		err = c.sh.lost
	}
	if err == nil {
		err = ErrStopped // the peer's end and failures of the socket have an error
	}
	c.FinishInput(err)
	if c.out != nil {
		c.sh.Stats.Drop(c.dropReason(err), c.out.Messages()+c.lostPending())
		c.unstall()
	}
	switch c.state.Load() {
	case StateOpen:
		ours := errors.Is(err, errWriteTimeout) || errors.Is(err, ErrStopped)
		c.leave(&codec.CloseError{Code: codec.CloseAbnormal, Reason: err.Error(), Remote: !ours, Err: err})
	case StateHandshake:
		c.sh.Stats.Refusals[stats.RefuseLost].Add(1)
		c.Owner().StopDeciding(c)
		c.dropHandshake()
		c.table.Remove(c)
	default:
		c.table.Remove(c)
	}
	c.dropInput()
	c.sh.Lags.Delete(c)
	c.setSession(nil)
	c.state.Store(StateClosed)
	c.sh.Engine.Release(c.remote, c.Is(MarkCounted))
	c.sh.Engine.SocketClosed()
}

func (c *Conn) dropReason(err error) stats.DropReason {
	switch {
	case errors.Is(err, errWriteTimeout):
		return stats.DropWriteTimeout
	case c.sh.Engine.Schedule.Load() != nil:
		return stats.DropShutdown
	}
	return stats.DropClosed
}

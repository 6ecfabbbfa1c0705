package server

import (
	"errors"
	"io"
	"os"
	"syscall"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/logs"
	"carillon/server/stats"
)

// closeHow is who wants a connection closed.
type closeHow uint8

const (
	closeOwn   closeHow = iota // the server: the peer's close frame is waited for
	closeReply                 // the peer: ours answers its close frame
	closeFail                  // the peer broke a rule: nothing more is expected of it (RFC 6455, section 7.1.7)
)

// startClose begins our side of the closing handshake (RFC 6455, section 7) behind everything that
// was sent or broadcast before.
func (c *Conn) startClose(how closeHow, code codec.CloseCode, reason string) {
	c.sh.check()
	if c.ready() && how == closeOwn {
		c.refresh(true)
	}
	if c.state.Load() == stateOpen {
		c.beginClose(how, code, reason)
	}
}

// beginClose is startClose for a connection that shall get nothing more.
func (c *Conn) beginClose(how closeHow, code codec.CloseCode, reason string) {
	c.leave(&CloseError{Code: code, Reason: reason, Remote: how == closeReply})
	c.mark(markPeerDone, c.is(markPeerDone) || how != closeOwn || c.isEvents())
	c.sh.closing.add(c, times{read: c.sh.clock})
	if how == closeReply {
		reason = ""
	}
	b := c.sh.control[:0]
	if c.isEvents() {
		if retry := retryOf(reason); retry != "" { // an EventSource does by itself what this says
			b = append(append(append(b, "retry: "...), retry...), '\n')
		}
		b = envelope.AppendCloseEvent(b, code, reason)
	} else {
		b = codec.AppendClose(b, code, reason)
	}
	c.sh.control = b
	c.sendControl(b)
	c.flushed()
}

// leave takes an open connection out of its endpoint and tells the application.
func (c *Conn) leave(why *CloseError) {
	c.sh.stats.Drop(stats.DropClosed, c.table.missed(c.slot))
	c.leaveTopics()
	c.sh.deadlines.remove(c)
	c.dropTimers()
	c.table.remove(c)
	c.state.Store(stateClosing)
	c.sh.stats.Open.Add(-1)
	c.sh.stats.Closed(why.Code)
	if c.sh.engine.logsEvents() {
		c.sh.engine.logEvent("connection closed", "id", c.id, "remote", shownAddr(c.RemoteAddr()), "path", c.ep.Path, "code", int(why.Code), "by_peer", why.Remote, "reason", logs.Shorten(why.Reason))
	}
	c.owner().hasClosed(c, why)
}

// closeBytes is about what a close takes in a socket: the frame, and twice as much with TLS and its end.
const closeBytes = 256

// flushed goes on with a close as far as it can. When our close frame is out and the peer's is in, our
// side of the TCP connection is shut down; the socket is closed only after the peer's FIN, because
// closing it while bytes come in makes the kernel reset the connection, and the peer might lose what
// we sent last.
func (c *Conn) flushed() {
	if c.state.Load() != stateClosing || c.out != nil {
		return
	}
	c.table.times[c.slot].read = c.sh.clock
	c.noteLag(closeBytes)
	if !c.is(markPeerDone) || !c.sayEnd() {
		return
	}
	if c.gc == nil { // the peer's FIN has come: see outlive
		c.abort(io.EOF)
		return
	}
	c.state.Store(stateLingering)
	c.dropInput()
	if err := syscall.Shutdown(int(c.fd), syscall.SHUT_WR); err != nil {
		c.abort(os.NewSyscallError("shutdown", err))
	}
}

var (
	errWriteTimeout = errors.New("the peer read nothing for limits.write_timeout")
	errCloseTimeout = errors.New("the closing handshake took longer than limits.close_timeout")
	errStopped      = errors.New("the server stopped")
)

// abort closes the socket now. The connection is gone when it returns.
func (c *Conn) abort(err error) {
	c.sh.check()
	if c.state.Load() != stateClosed {
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
	c.sh.check()
	if c.sh.lost != nil {
		err = c.sh.lost
	}
	if err == nil {
		err = errStopped // the peer's end and failures of the socket have an error
	}
	c.finishInput(err)
	if c.out != nil {
		c.sh.stats.Drop(c.dropReason(err), c.out.waitingMessages()+c.lostPending())
		c.unstall()
	}
	switch c.state.Load() {
	case stateOpen:
		ours := errors.Is(err, errWriteTimeout) || errors.Is(err, errStopped)
		c.leave(&CloseError{Code: codec.CloseAbnormal, Reason: err.Error(), Remote: !ours, Err: err})
	case stateHandshake:
		c.sh.stats.Refusals[stats.RefuseLost].Add(1)
		c.owner().stopDeciding(c)
		c.dropHandshake()
		c.table.remove(c)
	default:
		c.table.remove(c)
	}
	c.dropInput()
	c.sh.lags.Delete(c)
	c.setSession(nil)
	c.state.Store(stateClosed)
	c.sh.engine.release(c.remote, c.is(markCounted))
	c.sh.engine.socketClosed()
}

func (c *Conn) dropReason(err error) stats.DropReason {
	switch {
	case errors.Is(err, errWriteTimeout):
		return stats.DropWriteTimeout
	case c.sh.engine.schedule.Load() != nil:
		return stats.DropShutdown
	}
	return stats.DropClosed
}

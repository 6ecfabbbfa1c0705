package server

import (
	"errors"

	"carillon/codec"
)

// inbound is what has come on a connection and is not complete: part of a request head, or of a
// frame, or the first fragments of a message. Owned by the loop.
type inbound struct {
	rest    []byte // not decoded yet
	decoder codec.Decoder
}

// received takes what came on the connection. The bytes are the loop's read buffer and may be changed.
func (c *Conn) received(b []byte) {
	c.sh.check()
	c.sh.stats.BytesIn.Add(uint64(len(b)))
	if c.state.Load() == stateOpen && !c.is(markPeerDone) && !c.isEvents() {
		t := &c.group.times[c.slot]
		if c.group.debts != nil {
			c.debts().relax(c.sh.clock - t.read)
		}
		t.read, t.ping = c.sh.clock, 0
	}
	if c.is(markTLS) && !c.is(markPreface) {
		c.unseal(b)
		return
	}
	c.plaintext(b)
}

// plaintext takes what the client has sent.
func (c *Conn) plaintext(b []byte) {
	state := c.state.Load()
	if state == stateHandshake {
		c.shake(b)
		return
	}
	if c.is(markPeerDone) || state >= stateLingering || c.isEvents() {
		return // whatever it is, nobody expects it
	}
	c.decode(b)
}

// decode hands out each whole message in b, behind what is kept from before, and keeps what is not.
func (c *Conn) decode(b []byte) {
	sh := c.sh
	if !c.paysBytes(len(b)) {
		c.dropInbound()
		return
	}
	d := &sh.decoder
	if c.in != nil {
		d = &c.in.decoder
		if len(c.in.rest) > 0 {
			sh.joined = append(append(sh.joined[:0], c.in.rest...), b...)
			b, c.in.rest = sh.joined, c.in.rest[:0]
		}
	}
	d.Inflater = nil
	if c.deflate {
		d.Inflater = sh.inflate()
	}
	for !c.is(markPeerDone) {
		ev, n, ok, err := d.Next(b)
		b = b[n:]
		if err != nil {
			c.broke(err)
			break
		}
		if !ok {
			break
		}
		c.handle(ev)
	}
	d.Release()
	c.keep(d, b)
}

// keep holds on to the decoder and to the rest of the bytes if they are needed for the next turn.
func (c *Conn) keep(d *codec.Decoder, rest []byte) {
	sh := c.sh
	if c.is(markPeerDone) || c.state.Load() >= stateLingering {
		d.Reset()
		c.dropInbound()
		return
	}
	if d.Idle() && len(rest) == 0 {
		c.dropInbound()
		return
	}
	if c.in == nil {
		c.in = sh.newInbound()
		c.in.decoder, sh.decoder = sh.decoder, sh.srv.newDecoder()
	}
	c.in.rest = append(c.in.rest[:0], rest...)
}

func (c *Conn) handle(ev codec.Event) {
	open := c.state.Load() == stateOpen
	switch ev.Op {
	case codec.OpClose:
		c.mark(markPeerDone, true)
		if !open {
			c.flushed()
			return
		}
		c.sh.postClose(c, closeReply, ev.Code, string(ev.Payload))
	case codec.OpPing:
		if open && c.paysMessage() {
			c.sh.postBytes(letterBytes, c, codec.OpPong, ev.Payload)
		}
	case codec.OpText, codec.OpBinary:
		if open && !c.asked.Load() && c.paysMessage() {
			c.group.times[c.slot].message = c.sh.clock
			c.sh.stats.MessagesIn.Add(1)
			c.callMessage(ev.Op, ev.Payload)
		}
	}
}

// broke ends a connection whose peer broke a rule of the protocol.
func (c *Conn) broke(err error) {
	c.mark(markPeerDone, true)
	if c.state.Load() != stateOpen {
		c.flushed()
		return
	}
	code, reason := codec.CloseProtocolError, err.Error()
	var rule *codec.ProtocolError
	if errors.As(err, &rule) {
		code, reason = rule.Code, rule.Rule
	}
	if !c.asked.Load() {
		c.callError(c.handler(), err)
	}
	c.sh.postClose(c, closeFail, code, reason)
}

func (c *Conn) dropInbound() {
	if c.in != nil {
		c.sh.freeInboundOf(c.in)
		c.in = nil
	}
}

// Incomplete input is pooled, unless it has grown large.
const (
	keepInbound = 64
	keepRest    = 1 << 10
)

func (sh *shard) newInbound() *inbound {
	if last := len(sh.freeInbound) - 1; last >= 0 {
		in := sh.freeInbound[last]
		sh.freeInbound = sh.freeInbound[:last]
		return in
	}
	return &inbound{}
}

func (sh *shard) freeInboundOf(in *inbound) {
	if len(sh.freeInbound) >= keepInbound {
		return
	}
	rest := in.rest[:0]
	if cap(rest) > keepRest {
		rest = nil
	}
	*in = inbound{rest: rest}
	sh.freeInbound = append(sh.freeInbound, in)
}

func (sh *shard) inflate() *codec.Inflater {
	if sh.inflater == nil {
		sh.inflater = codec.NewInflater()
	}
	return sh.inflater
}

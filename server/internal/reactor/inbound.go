package reactor

import (
	"bytes"
	"errors"
	"time"

	"carillon/codec"
)

// inbound is what has come on a connection and is not complete: part of a request head, or of a
// frame, or the first fragments of a message. Owned by the loop.
type inbound struct {
	Rest    []byte // not decoded yet, from at on
	at      int
	decoder codec.Decoder

	// While much of a message is kept: see shard.weigh.
	conn    *Conn
	counted int // bytes
	slot    int // in shard.partials
}

// Received takes what came on the connection. The bytes are the loop's read buffer and may be changed.
func (c *Conn) Received(b []byte) {
	c.sh.Check()
	c.sh.Stats.BytesIn.Add(uint64(len(b)))
	c.heard()
	if c.Is(MarkTLS) && !c.Is(MarkPreface) {
		c.unseal(b)
		return
	}
	c.plaintext(b)
}

// heard notes that something has come, or that something is looked at that has come.
func (c *Conn) heard() {
	if c.state.Load() != StateOpen || c.Is(MarkPeerDone) || c.IsEvents() {
		return
	}
	t := &c.table.Times[c.slot]
	if c.table.debts != nil {
		c.Debts().relax(c.sh.Clock - t.Read)
	}
	if t.Ping != 0 {
		c.sh.Lags.Delete(c)
	}
	t.Read, t.Ping = c.sh.Clock, 0
}

// plaintext takes what the client has sent, or has it wait for the connection's turn.
func (c *Conn) plaintext(b []byte) {
	if c.mustWait() && c.listens() {
		if c.state.Load() == StateHandshake || c.paysBytes(len(b)) {
			c.postpone(b)
		} else {
			c.dropInput()
		}
		return
	}
	c.consume(b, c.sh.TurnEnd())
}

// listens is false when nothing more is expected of the client.
func (c *Conn) listens() bool {
	state := c.state.Load()
	return state == StateHandshake || !c.Is(MarkPeerDone) && state < stateLingering && !c.IsEvents()
}

// consume handles what the client has sent, until a time.
func (c *Conn) consume(b []byte, deadline time.Duration) {
	switch {
	case !c.listens():
	case c.state.Load() == StateHandshake:
		c.Owner().TakeHead(c, b)
	case !c.paysBytes(len(b)):
		c.dropInput()
	default:
		c.Decode(b, deadline)
	}
}

// Decode hands out each whole message in b, behind what is kept from before, and keeps what is not.
func (c *Conn) Decode(b []byte, deadline time.Duration) {
	sh := c.sh
	d := &sh.decoder
	if c.in != nil {
		d = &c.in.decoder
		if len(c.in.Rest) > 0 {
			sh.joined = append(append(sh.joined[:0], c.in.Rest...), b...)
			b, c.in.Rest = sh.joined, c.in.Rest[:0]
		}
	}
	c.decodeUntil(deadline, d, b)
}

// decodeInput goes on with input that was kept for the connection's turn.
func (c *Conn) decodeInput(deadline time.Duration) {
	if c.in == nil { // it had only to wait
		c.unsuspend()
		return
	}
	c.decodeUntil(deadline, &c.in.decoder, c.in.Rest[c.in.at:])
}

// decodeUntil hands out messages until none is whole, or until a time.
func (c *Conn) decodeUntil(deadline time.Duration, d *codec.Decoder, b []byte) {
	sh := c.sh
	if deadline != MaxDeadline && (c.holdBack(d) || !c.collects(d)) {
		c.keep(d, b)
		c.suspend()
		return
	}
	d.Inflater = nil
	if c.Deflates() {
		d.Inflater = sh.inflate()
	}
	d.Budget = sh.inflateBudget()
	fanout, wait := sh.fanoutIfCongested(), false
	// What a message costs varies if it is compressed, if an application handles it, and with the patterns of its
	// topic.
	varies := c.Deflates() || !c.ep.IsSteady
	heavy, size := varies, 0
	piece := len(b)
	if deadline != MaxDeadline && sh.Run.isLong() {
		piece = queuedPiece
	}
	for n := 1; !wait && !c.Is(MarkPeerDone); n++ {
		isCut := len(b) > piece
		ev, used, ok, err := d.Next(b[:min(piece, len(b))])
		b = b[used:]
		size += used
		if !c.paysDecompression(d) {
			break
		}
		if err != nil {
			c.broke(err)
			break
		}
		if !ok {
			if d.Suspended() {
				heavy, wait = true, true
				c.awaitInflater(d)
			} else if isCut {
				heavy, wait = true, sh.Engine.Uptime() >= deadline
				continue
			}
			break
		}
		c.handle(ev)
		if varies || n&15 == 0 || len(ev.Payload) >= heavyPayload {
			heavy, wait = true, len(b) > 0 && sh.Engine.Uptime() >= deadline
		}
		wait = wait || c.isFull()
		wait = c.block(fanout) || wait
	}
	if c.Session() == nil { // else decryptUntil charges, and records take time of their own
		if w := c.Workload(); w != nil && w.Served && !varies {
			w.MaxTurn += c.maxCharge(size, 0)
		}
		if heavy || size >= heavyPayload {
			c.chargeInput(size, 0)
		}
	}
	d.Release()
	wait = deadline != MaxDeadline && !c.collects(d) || wait
	if c.keep(d, b); wait && !c.Is(MarkPeerDone) && c.state.Load() < stateLingering {
		c.suspend()
	} else {
		c.unsuspend()
		sh.shrink(c.in)
	}
}

// queuedPiece is how many bytes of input are decoded before the clock is looked at, where very many connections wait
// for their turns: what is a part of a large message takes memory that may be new, a page fault each 4 KiB.
const queuedPiece = 4 << 10

// shrink lets go of the buffer in which input has waited.
func (sh *Shard) shrink(in *inbound) {
	if in == nil || in.at == 0 && (len(in.Rest) > 0 || cap(in.Rest) <= keepRest) {
		return
	}
	rest := bytes.Clone(in.Rest[in.at:])
	sh.rests.Put(in.Rest)
	in.Rest, in.at = rest, 0
	if in.counted > 0 {
		sh.weigh(in.conn)
	}
}

// inflateBudget bounds the decompression in one turn of a connection, in the units of [codec.Decoder.Budget]: 50 to 300
// us, or less where turns are shorter.
const inflateBudget = 64 << 10

func (sh *Shard) inflateBudget() int { return int(inflateBudget * sh.Run.Quantum() / quantum) }

// heavyPayload is the size in bytes of a message from which on the clock is looked at after each.
const heavyPayload = 4 << 10

// maxCharge bounds what a connection is charged for so many bytes of input, in so many TLS records, outside its turns,
// and in those in which it only sends plain messages to be echoed or broadcast: what took longer was most likely the
// system, which ran something else in between. What an application's handler takes is not known.
func (c *Conn) maxCharge(size, records int) time.Duration {
	base := 2 * quantum
	if c.state.Load() == StateOpen && !c.ep.IsCustom && !c.hasOwnHandler() {
		base = 40 * time.Microsecond
	}
	return base + time.Duration(size)*20*time.Nanosecond + time.Duration(records)*2*time.Microsecond
}

// chargeInput charges the connection for what it has used of the loop, for so many bytes of input, unless that is done
// at the end of its turn.
func (c *Conn) chargeInput(size, records int) {
	if w := c.Workload(); w != nil && w.Served {
		return
	}
	now := c.sh.Engine.Uptime()
	if used := min(now-c.sh.Began, c.maxCharge(size, records)); used >= chargeFrom {
		w := c.NeedWorkload()
		w.Used.AddTurn(used, now)
		c.settleWorkload(w)
	}
}

// chargeOutput charges the connection for what was sent to it alone, such as an echo, if it is large.
func (c *Conn) chargeOutput(size int) {
	if size < largeMessage || c.state.Load() != StateOpen {
		return
	}
	w := c.NeedWorkload()
	w.Used.AddTurn(time.Duration(size)*OutputByte, c.sh.Engine.Uptime())
	c.settleWorkload(w)
}

// ChargeFanout charges the connection for a message that it has published, of n bytes for all loops and in all forms,
// if that is much. It is not the connection's own turn in which they are encoded and sent.
func (c *Conn) ChargeFanout(n int) {
	takes := time.Duration(n) * fanoutByte
	if takes < chargeFrom || c.state.Load() != StateOpen {
		return
	}
	c.sh.Check()
	w := c.NeedWorkload()
	w.Used.Add(takes, c.sh.Engine.Uptime())
	c.settleWorkload(w)
}

// fanoutByte is about how long a byte of a message takes that is encoded, and perhaps compressed, for others.
const fanoutByte = 4 * time.Nanosecond

// OutputByte is about how long a byte takes that is written.
const OutputByte = time.Nanosecond / 2

// keep holds on to the decoder and to the rest of the bytes if they are needed for the next turn.
func (c *Conn) keep(d *codec.Decoder, rest []byte) {
	sh := c.sh
	if c.Is(MarkPeerDone) || c.state.Load() >= stateLingering {
		d.Reset()
		c.DropInbound()
		return
	}
	if d.Idle() && len(rest) == 0 {
		c.DropInbound()
		return
	}
	if c.in == nil {
		c.in = sh.newInbound()
	}
	if d != &c.in.decoder {
		c.in.decoder, sh.decoder = sh.decoder, sh.newDecoder()
	}
	if at := len(c.in.Rest) - len(rest); at > 0 && len(rest) > 0 && &c.in.Rest[at] == &rest[0] {
		c.in.at = at // where it lies, since it may have to wait again
	} else {
		c.in.Rest, c.in.at = sh.hold(c.in.Rest[:0], rest), 0
	}
	sh.weigh(c)
}

func (c *Conn) handle(ev codec.Event) {
	open := c.state.Load() == StateOpen
	switch ev.Op {
	case codec.OpClose:
		c.Mark(MarkPeerDone, true)
		if !open {
			c.flushed()
			return
		}
		c.CloseInOrder(closeReply, ev.Code, string(ev.Payload))
	case codec.OpPing:
		if open && c.paysMessage() {
			c.sh.PostBytes(commandBytes, c, codec.OpPong, ev.Payload)
		}
	case codec.OpText, codec.OpBinary:
		if open && !c.asked.Load() && c.paysMessage() {
			c.table.Times[c.slot].Message = c.sh.Clock
			c.sh.Stats.MessagesIn.Add(1)
			c.Owner().TakeMessage(c, ev.Op, ev.Payload)
		}
	}
}

// broke ends a connection whose peer broke a rule of the protocol.
func (c *Conn) broke(err error) {
	c.Mark(MarkPeerDone, true)
	if c.state.Load() != StateOpen {
		c.flushed()
		return
	}
	code, reason := codec.CloseProtocolError, err.Error()
	var rule *codec.ProtocolError
	if errors.As(err, &rule) {
		code, reason = rule.Code, rule.Rule
	}
	if !c.asked.Load() {
		c.Owner().BrokeRule(c, err)
	}
	c.CloseInOrder(CloseFail, code, reason)
}

// DropInbound forgets what has come but is not complete.
func (c *Conn) DropInbound() {
	if w := c.Workload(); w != nil {
		c.sh.leavePlace(w)
	}
	if c.in != nil {
		c.sh.FreeInboundOf(c.in)
		c.in = nil
	}
}

// dropInput forgets what has come, and reads the socket again if that had to wait.
func (c *Conn) dropInput() {
	c.DropInbound()
	if s := c.Session(); s != nil {
		s.DropWaiting()
	}
	c.unsuspend()
}

// Incomplete input is pooled, unless it has grown large.
const (
	keepInbound = 64
	keepRest    = 1 << 10
	largeRest   = 4 << 10 // has one of the loop's buffers
)

// hold appends input that waits to a buffer, which belongs to the loop if it is large.
func (sh *Shard) hold(to, b []byte) []byte {
	if n := len(to) + len(b); n > cap(to) && n >= largeRest {
		larger := append(sh.rests.Get(n), to...)
		sh.rests.Put(to)
		to = larger
	}
	return append(to, b...)
}

func (sh *Shard) newInbound() *inbound {
	if last := len(sh.freeInbound) - 1; last >= 0 {
		in := sh.freeInbound[last]
		sh.freeInbound = sh.freeInbound[:last]
		return in
	}
	return &inbound{}
}

// FreeInboundOf takes an Inbound back that its connection does not need any more.
func (sh *Shard) FreeInboundOf(in *inbound) {
	in.decoder.Reset() // a message may be suspended
	sh.unweigh(in)
	if len(sh.freeInbound) >= keepInbound {
		return
	}
	rest := in.Rest[:0]
	if cap(rest) > keepRest {
		sh.rests.Put(rest)
		rest = nil
	}
	*in = inbound{Rest: rest}
	sh.freeInbound = append(sh.freeInbound, in)
}

// inflate returns the inflater of the loop.
func (sh *Shard) inflate() *codec.Inflater {
	if sh.inflater == nil {
		sh.inflater = codec.NewInflater()
		sh.inflater.MaxSuspended = maxInflating
	}
	return sh.inflater
}

package server

import (
	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/stats"
)

var (
	rejectHandshakes = &codec.Rejection{Status: 503, Reason: "too many handshakes per second",
		Header: [][2]string{{"Retry-After", "5"}}}
	rejectAddressHandshakes = &codec.Rejection{Status: 429, Reason: "too many handshakes per second from this address",
		Header: [][2]string{{"Retry-After", "5"}}}
)

// mayShake reports whether there may be one more handshake, for all and for the client's address.
func (c *Conn) mayShake() (stats.RefuseReason, error) {
	e := c.sh.engine
	set := e.settings()
	if p := set.addressShake; c.is(markCounted) && p.Limited() && !e.addresses.AllowHandshake(limit.KeyOf(addrOf(c.remote)), p) {
		return stats.RefuseAddressHandshakes, rejectAddressHandshakes
	}
	if p := set.handshakes; p.Limited() && !e.handshakes.Allow(p) {
		return stats.RefuseHandshakes, rejectHandshakes
	}
	return 0, nil
}

// debts are what a connection has sent lately and may soon send again. Owned by the loop.
type debts struct{ messages, bytes, publishes, requests, decompressed uint32 }

// debts are there while a limit asks for them.
func (c *Conn) debts() *debts { return &c.table.debts[c.slot] }

// relax is called for what comes after a while, in milliseconds, in which nothing came.
func (d *debts) relax(passed uint32) {
	if *d != (debts{}) {
		d.messages, d.bytes = limit.Decay(d.messages, passed), limit.Decay(d.bytes, passed)
		d.publishes, d.requests = limit.Decay(d.publishes, passed), limit.Decay(d.requests, passed)
		d.decompressed = limit.Decay(d.decompressed, passed)
	}
}

// paysBytes charges the connection for what has come. When it is false the connection is being closed.
func (c *Conn) paysBytes(n int) bool {
	if p := c.sh.set.bytes; !p.Limited() || c.state.Load() != stateOpen || p.Allow(&c.debts().bytes, n) {
		return true
	}
	c.tooFast(stats.CutByteRate, "limits.bytes_per_second exceeded")
	return false
}

// paysDecompression is the same for what d has done beyond what the size of compressed messages explains.
func (c *Conn) paysDecompression(d *codec.Decoder) bool {
	n, p := d.Amplified, c.sh.set.decompressed
	d.Amplified = 0
	if n == 0 || !p.Limited() || c.state.Load() != stateOpen || p.Allow(&c.debts().decompressed, n) {
		return true
	}
	c.tooFast(stats.CutDecompressionRate, "limits.decompressed_bytes_per_second exceeded")
	return false
}

// paysMessage is the same for a message or a ping.
func (c *Conn) paysMessage() bool {
	p := c.sh.set.messages
	if !p.Limited() || p.Allow(&c.debts().messages, 1) {
		return true
	}
	c.tooFast(stats.CutMessageRate, "limits.messages_per_second exceeded")
	return false
}

// paysPublish is for a message that is published, by a client that can only be told by a close. That it
// is false says the same as of paysBytes.
func (c *Conn) paysPublish() bool {
	if c.mayPublishNow() {
		return true
	}
	c.tooFast(stats.CutPublishRate, "limits.publishes_per_second exceeded")
	return false
}

func (c *Conn) mayPublishNow() bool {
	p := c.sh.set.publishes
	return !p.Limited() || p.Allow(&c.debts().publishes, 1)
}

func (c *Conn) mayRequestNow() bool {
	p := c.sh.set.requests
	return !p.Limited() || p.Allow(&c.debts().requests, 1)
}

func (c *Conn) tooFast(why stats.CutReason, reason string) {
	c.sh.stats.Cut(why)
	c.mark(markPeerDone, true) // nobody reads the rest
	c.closeInOrder(closeFail, codec.ClosePolicyViolation, reason)
}

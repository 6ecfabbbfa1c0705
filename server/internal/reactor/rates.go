package reactor

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

// MayShake reports whether there may be one more handshake, for all and for the client's address.
func (c *Conn) MayShake() (stats.RefuseReason, error) {
	if why, err := c.AddressMayShake(); err != nil {
		return why, err
	}
	e := c.sh.Engine
	if p := e.Settings().Handshakes; p.Limited() && !e.handshakes.Allow(p) {
		return stats.RefuseHandshakes, rejectHandshakes
	}
	return 0, nil
}

// AddressMayShake reports whether the client's address may have one more handshake, or connection of plain HTTP.
func (c *Conn) AddressMayShake() (stats.RefuseReason, error) {
	e := c.sh.Engine
	if p := e.Settings().AddressShake; c.Is(MarkCounted) && p.Limited() && !e.Addresses.AllowHandshake(limit.KeyOf(AddrOf(c.remote)), p) {
		return stats.RefuseAddressHandshakes, rejectAddressHandshakes
	}
	return 0, nil
}

// Debts are what a connection has sent lately and may soon send again. Owned by the loop.
type Debts struct{ Messages, Bytes, publishes, requests, decompressed uint32 }

// Debts are there while a limit asks for them.
func (c *Conn) Debts() *Debts { return &c.table.debts[c.slot] }

// relax is called for what comes after a while, in milliseconds, in which nothing came.
func (d *Debts) relax(passed uint32) {
	if *d != (Debts{}) {
		d.Messages, d.Bytes = limit.Decay(d.Messages, passed), limit.Decay(d.Bytes, passed)
		d.publishes, d.requests = limit.Decay(d.publishes, passed), limit.Decay(d.requests, passed)
		d.decompressed = limit.Decay(d.decompressed, passed)
	}
}

// paysBytes charges the connection for what has come. When it is false the connection is being closed.
func (c *Conn) paysBytes(n int) bool {
	if p := c.sh.Set.Bytes; !p.Limited() || c.state.Load() != StateOpen || p.Allow(&c.Debts().Bytes, n) {
		return true
	}
	c.tooFast(stats.CutByteRate, "limits.bytes_per_second exceeded")
	return false
}

// paysDecompression is the same for what d has done beyond what the size of compressed messages explains.
func (c *Conn) paysDecompression(d *codec.Decoder) bool {
	n, p := d.Amplified, c.sh.Set.Decompressed
	d.Amplified = 0
	if n == 0 || !p.Limited() || c.state.Load() != StateOpen || p.Allow(&c.Debts().decompressed, n) {
		return true
	}
	c.tooFast(stats.CutDecompressionRate, "limits.decompressed_bytes_per_second exceeded")
	return false
}

// paysMessage is the same for a message or a ping.
func (c *Conn) paysMessage() bool {
	p := c.sh.Set.Messages
	if !p.Limited() || p.Allow(&c.Debts().Messages, 1) {
		return true
	}
	c.tooFast(stats.CutMessageRate, "limits.messages_per_second exceeded")
	return false
}

// PaysPublish is for a message that is published, by a client that can only be told by a close. That it
// is false says the same as of paysBytes.
func (c *Conn) PaysPublish() bool {
	if c.MayPublishNow() {
		return true
	}
	c.tooFast(stats.CutPublishRate, "limits.publishes_per_second exceeded")
	return false
}

// MayPublishNow charges for a message to publish, and reports whether limits.publishes_per_second allows it.
func (c *Conn) MayPublishNow() bool {
	p := c.sh.Set.Publishes
	return !p.Limited() || p.Allow(&c.Debts().publishes, 1)
}

// MayRequestNow does the same for a request and limits.requests_per_second.
func (c *Conn) MayRequestNow() bool {
	p := c.sh.Set.Requests
	return !p.Limited() || p.Allow(&c.Debts().requests, 1)
}

func (c *Conn) tooFast(why stats.CutReason, reason string) {
	c.sh.Stats.Cut(why)
	c.Mark(MarkPeerDone, true) // the rest is not read
	c.CloseInOrder(CloseFail, codec.ClosePolicyViolation, reason)
}

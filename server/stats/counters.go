package stats

import (
	"sync/atomic"

	"carillon/codec"
)

// Counters are those of one loop. Nearly all are written by its loop only, so that no processor waits
// for another. [Totals.Add] adds them up.
type Counters struct {
	Open        atomic.Int64
	Accepted    atomic.Uint64
	Opened      atomic.Uint64
	PlainHTTP   atomic.Uint64
	Returned    atomic.Uint64
	MessagesIn  atomic.Uint64
	BytesIn     atomic.Uint64
	Deliveries  atomic.Uint64
	BytesOut    atomic.Uint64
	Writes      atomic.Uint64
	QueuedBytes atomic.Int64
	Panics      atomic.Uint64
	Limited     atomic.Uint64
	Blocked     atomic.Uint64
	Checks      atomic.Uint64

	TLSHandshakes atomic.Uint64
	TLSResumed    atomic.Uint64

	Drops    [NumDropReasons]atomic.Uint64
	Refusals [NumRefuseReasons]atomic.Uint64
	Cuts     [NumCutReasons]atomic.Uint64
	HTTPCuts [NumPlainCutReasons]atomic.Uint64
	Closes   [NumCloseCodes + 1]atomic.Uint64 // by code from 1000 on, then all others
}

// NumCloseCodes is the number of close codes that have a counter of their own: 1000 to 1015.
const NumCloseCodes = 16

// Drop counts messages that a receiver will not get.
func (c *Counters) Drop(r DropReason, n uint64) {
	if n > 0 {
		c.Drops[r].Add(n)
	}
}

// Cut counts a WebSocket that the server ends.
func (c *Counters) Cut(r CutReason) { c.Cuts[r].Add(1) }

// CutHTTP counts a connection of Options.HTTP that the server ends.
func (c *Counters) CutHTTP(r PlainCutReason) { c.HTTPCuts[r].Add(1) }

// Closed counts a WebSocket that has ended, by its close code.
func (c *Counters) Closed(code codec.CloseCode) {
	c.Closes[min(int(code-codec.CloseNormal), len(c.Closes)-1)].Add(1)
}

// Totals is what has happened since the server was made. Counters never go down.
type Totals struct {
	Sockets     int64  // open connections, handshakes, closes and plain HTTP included
	Open        int64  // open WebSockets
	Accepted    uint64 // connections
	Opened      uint64 // handshakes that succeeded
	PlainHTTP   uint64 // connections that were handed to Options.HTTP
	Returned    uint64 // connections that came back from there with a request for an endpoint
	MessagesIn  uint64 // whole messages from clients
	BytesIn     uint64 // from sockets, handshakes and framing included
	Deliveries  uint64 // messages handed to one connection each, whether they then waited or not
	BytesOut    uint64 // to sockets, handshakes and framing included
	Writes      uint64 // system calls that BytesOut took
	QueuedBytes int64  // memory of what waits now for slow consumers, as SlowConsumer.MaxQueue counts it, history included
	Panics      uint64 // in a Handler; net/http logs those in Options.HTTP
	Limited     uint64 // requests of the JSON protocol that were refused as rate_limited
	Blocked     uint64 // times that a loop did not come round for a second, as when a handler blocks

	AcceptErrors uint64 // tries of a unix socket to accept that failed, mostly for want of descriptors, and are made again
	HealthChecks uint64 // connections that were answered at Options.HealthPath

	TLSHandshakes uint64 // that went well; those that did not are in Refusals
	TLSResumed    uint64 // of these, how many went on with a session from before

	Drops    map[DropReason]uint64      // messages that one receiver each never got
	Refusals map[RefuseReason]uint64    // connections that did not become WebSockets
	Cuts     map[CutReason]uint64       // WebSockets that the server ended by itself
	HTTPCuts map[PlainCutReason]uint64  // connections of Options.HTTP that the server ended by itself
	Closes   map[codec.CloseCode]uint64 // WebSockets that ended, by CloseError.Code; 0 is any code above 1015
}

// NewTotals returns totals without counts.
func NewTotals() Totals {
	return Totals{
		Drops:    map[DropReason]uint64{},
		Refusals: map[RefuseReason]uint64{},
		Cuts:     map[CutReason]uint64{},
		HTTPCuts: map[PlainCutReason]uint64{},
		Closes:   map[codec.CloseCode]uint64{},
	}
}

// Add adds the counters of one loop.
func (t *Totals) Add(c *Counters) {
	t.Open += c.Open.Load()
	t.Accepted += c.Accepted.Load()
	t.Opened += c.Opened.Load()
	t.PlainHTTP += c.PlainHTTP.Load()
	t.Returned += c.Returned.Load()
	t.MessagesIn += c.MessagesIn.Load()
	t.BytesIn += c.BytesIn.Load()
	t.Deliveries += c.Deliveries.Load()
	t.BytesOut += c.BytesOut.Load()
	t.Writes += c.Writes.Load()
	t.QueuedBytes += c.QueuedBytes.Load()
	t.Panics += c.Panics.Load()
	t.Limited += c.Limited.Load()
	t.Blocked += c.Blocked.Load()
	t.HealthChecks += c.Checks.Load()
	t.TLSHandshakes += c.TLSHandshakes.Load()
	t.TLSResumed += c.TLSResumed.Load()
	for r := range c.Drops {
		t.Drops[DropReason(r)] += c.Drops[r].Load()
	}
	for r := range c.Refusals {
		t.Refusals[RefuseReason(r)] += c.Refusals[r].Load()
	}
	for r := range c.Cuts {
		t.Cuts[CutReason(r)] += c.Cuts[r].Load()
	}
	for r := range c.HTTPCuts {
		t.HTTPCuts[PlainCutReason(r)] += c.HTTPCuts[r].Load()
	}
	for i := range c.Closes {
		code := codec.CloseCode(0)
		if i < len(c.Closes)-1 {
			code = codec.CloseNormal + codec.CloseCode(i)
		}
		if n := c.Closes[i].Load(); n > 0 {
			t.Closes[code] += n
		}
	}
}

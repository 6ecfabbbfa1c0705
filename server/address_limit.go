package server

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/internal/listen"
	"carillon/server/stats"
)

var errCrowded = errors.New("the address has too many connections (limits.max_connections_per_address)")

var rejectCrowded = &codec.Rejection{Status: 429, Reason: "too many connections from this address", Header: [][2]string{{"Retry-After", "5"}}}

// crowdSlots is how many connections of an address beyond its limit are still given time to send their
// request, so that they can be answered in order. See refuseSlots.
const crowdSlots = 8

// claim counts a socket under its address, unless that is a proxy's, which many clients share: those are counted when
// the request tells the client. A client of a unix socket has no address. excess is how many the address has too many.
func (e *engine) claim(remote *net.TCPAddr) (counted bool, excess int) {
	set := e.settings()
	most := set.maxPerAddress
	if remote == nil || most < 0 && !set.addressShake.Limited() || set.trusted.Contains(addrOf(remote)) {
		return false, 0
	}
	return true, e.addresses.Add(limit.KeyOf(addrOf(remote)), most)
}

// claim counts a connection whose address has become known after it was accepted. It returns false when
// the connection is gone, because the address has far too many.
func (c *Conn) claim() bool {
	if c.is(markCounted) {
		return true
	}
	isCounted, excess := c.sh.engine.claim(c.remote)
	c.mark(markCounted, isCounted)
	c.mark(markCrowd, excess > 0)
	if excess <= crowdSlots {
		return true
	}
	c.sh.stats.Refusals[stats.RefuseAddressFull].Add(1)
	c.state.Store(stateClosing) // its end is accounted for
	if c.canAnswer() {
		_, _ = c.put(rejectCrowded.AppendResponse(nil))
	}
	c.abort(errCrowded)
	return false
}

// release is called for each socket that closes, with what claim has noted.
func (e *engine) release(remote *net.TCPAddr, counted bool) {
	if counted {
		e.addresses.Remove(limit.KeyOf(addrOf(remote)))
	}
}

// addrOf is the address without port and zone, or the zero one for a client of a unix socket.
func addrOf(remote *net.TCPAddr) netip.Addr {
	if remote == nil {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(remote.IP)
	return a.Unmap()
}

// addressText is an address as people and programs are shown it: "unix" for a client of a unix socket of whom
// nobody has told more.
func addressText(a netip.AddrPort) string {
	if !a.IsValid() {
		return listen.UnixWord
	}
	return a.String()
}

// nobody is the address of a client of a unix socket, as net/http has it.
var nobody = &net.UnixAddr{Net: "unix", Name: "@"}

// shownAddr is an address in the log, where it becomes a text only if the line is written.
type shownAddr netip.AddrPort

// LogValue is addressText.
func (a shownAddr) LogValue() slog.Value { return slog.StringValue(addressText(netip.AddrPort(a))) }

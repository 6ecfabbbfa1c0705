package reactor

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

// RejectCrowded is the answer to connections above limits.max_connections_per_address.
var RejectCrowded = &codec.Rejection{Status: 429, Reason: "too many connections from this address", Header: [][2]string{{"Retry-After", "5"}}}

// CrowdSlots is how many connections of an address beyond its limit are still given time to send their
// request, so that they can be answered in order. See refuseSlots.
const CrowdSlots = 8

// Claim counts a socket under its address, unless that is a proxy's, which many clients share: those are counted when
// the request tells the client. A client of a unix socket has no address. excess is how many the address has too many.
func (e *Engine) Claim(remote *net.TCPAddr) (counted bool, excess int) {
	set := e.Settings()
	most := set.MaxPerAddress
	if remote == nil || most < 0 && !set.AddressShake.Limited() || set.Trusted.Contains(AddrOf(remote)) {
		return false, 0
	}
	return true, e.Addresses.Add(limit.KeyOf(AddrOf(remote)), most)
}

// Claim counts a connection whose address has become known after it was accepted. It returns false when
// the connection is gone, because the address has far too many.
func (c *Conn) Claim() bool {
	if c.Is(MarkCounted) {
		return true
	}
	isCounted, excess := c.sh.Engine.Claim(c.remote)
	c.Mark(MarkCounted, isCounted)
	c.Mark(MarkCrowd, excess > 0)
	if excess <= CrowdSlots {
		return true
	}
	c.sh.Stats.Refusals[stats.RefuseAddressFull].Add(1)
	c.state.Store(StateClosing) // its end is accounted for
	if c.CanAnswer() {
		_, _ = c.put(RejectCrowded.AppendResponse(nil))
	}
	c.Abort(errCrowded)
	return false
}

// Release is called for each socket that closes, with what claim has noted.
func (e *Engine) Release(remote *net.TCPAddr, counted bool) {
	if counted {
		e.Addresses.Remove(limit.KeyOf(AddrOf(remote)))
	}
}

// AddrOf is the address without port and zone, or the zero one for a client of a unix socket.
func AddrOf(remote *net.TCPAddr) netip.Addr {
	if remote == nil {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(remote.IP)
	return a.Unmap()
}

// AddressText is an address for people and programs: "unix" for a client of a unix socket whose address is not known.
func AddressText(a netip.AddrPort) string {
	if !a.IsValid() {
		return listen.UnixWord
	}
	return a.String()
}

// UnixClient is the address of a client of a unix socket, as net/http has it.
var UnixClient = &net.UnixAddr{Net: "unix", Name: "@"}

// ShownAddr is an address in the log, where it becomes a text only if the line is written.
type ShownAddr netip.AddrPort

// LogValue is AddressText.
func (a ShownAddr) LogValue() slog.Value { return slog.StringValue(AddressText(netip.AddrPort(a))) }

package server

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"carillon/codec"
	"carillon/internal/shrink"
)

// addresses is what the limits for each address need to know: how many connections an address has, and
// how many handshakes it may still make. All loops share it. It is touched when a connection's address
// becomes known, at a handshake for an endpoint and when the socket closes, and not at all for connections
// that were accepted without such limits.
//
// It holds an address as long as it has a connection or a debt of handshakes, and so no more of them than
// there are sockets, and were in the last second.
type addresses struct {
	begin time.Time // of the clock
	parts [64]addressPart
}

type addressPart struct {
	mu    sync.Mutex
	known shrink.Map[addressKey, address] // guarded by mu
	_     [40]byte                        // a part for each line of the processor's cache
}

type address struct {
	open uint32
	debt uint32 // of handshakes, at
	at   uint32 // milliseconds since begin
}

// addressKey stands for an IPv4 address or, since that is what one customer gets, a network of 64 bits of
// IPv6. The two do not meet: 0:1::/32 is nobody's.
type addressKey uint64

func keyOf(a netip.Addr) addressKey {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return 1<<32 | addressKey(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return addressKey(binary.BigEndian.Uint64(b[:]))
}

func newAddresses(begin time.Time) *addresses {
	return &addresses{begin: begin}
}

func (a *addresses) part(k addressKey) *addressPart {
	return &a.parts[uint64(k)*0x9E3779B97F4A7C15>>58]
}

func (a *addresses) now() uint32 { return uint32(time.Since(a.begin).Milliseconds()) }

// add counts a connection, and says how many there are too many of this address; most < 0 is no limit.
func (a *addresses) add(k addressKey, most int) (excess int) {
	p := a.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.known.Get(k)
	e.open++
	p.known.Set(k, e)
	if most < 0 {
		return 0
	}
	return max(0, int(e.open)-most)
}

func (a *addresses) remove(k addressKey) {
	p := a.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.known.Get(k)
	e.open--
	p.keep(k, e, a.now())
}

// handshake says whether an address may make one more.
func (a *addresses) handshake(k addressKey, shake pace) bool {
	p := a.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, now := p.known.Get(k), a.now() // read under the lock, so that it does not go back
	e.debt, e.at = relax(e.debt, now-e.at), now
	ok := shake.take(&e.debt, 1)
	p.known.Set(k, e)
	return ok
}

// keep forgets an address of which there is nothing to know.
func (p *addressPart) keep(k addressKey, e address, now uint32) {
	if e.open == 0 && relax(e.debt, now-e.at) == 0 {
		p.known.Delete(k)
		return
	}
	p.known.Set(k, e)
}

// sweep forgets those whose debt was all that kept them, in a quarter of the parts, and so many at a time that a
// handshake does not wait for it.
func (a *addresses) sweep(round int) {
	for i := round % 4; i < len(a.parts); i += 4 {
		p := &a.parts[i]
		p.mu.Lock()
		now, looked := a.now(), 0
		for k, e := range p.known.All() {
			if e.open == 0 && relax(e.debt, now-e.at) == 0 && p.known.Get(k) == e {
				p.known.Delete(k)
			}
			if looked++; looked%lookSlice == 0 {
				p.mu.Unlock()
				p.mu.Lock()
				now = a.now() // no entry is newer
			}
		}
		p.mu.Unlock()
	}
}

var errCrowded = errors.New("the address has more connections than limits.max_connections_per_address")

var rejectCrowded = &codec.Rejection{Status: 429, Reason: "this address has as many connections as it may have", Header: [][2]string{{"Retry-After", "5"}}}

// crowdSlots is how many connections of an address beyond its limit are still given time to send their
// request, so that they can be answered in order. See refuseSlots.
const crowdSlots = 8

// claim counts a socket under its address, unless that is a proxy's, which many clients share: those are
// counted when the request tells the client. A client of a unix socket has no address. excess is how many the address has too many.
func (s *Server) claim(remote *net.TCPAddr) (counted bool, excess int) {
	set := s.settings()
	most := set.Limits.MaxConnectionsPerAddress
	if remote == nil || most < 0 && !set.addressShake.limited() || set.proxies.contains(addrOf(remote)) {
		return false, 0
	}
	return true, s.addresses.add(keyOf(addrOf(remote)), most)
}

// claim counts a connection whose address has become known after it was accepted. It returns false when
// the connection is gone, because the address has far too many.
func (c *Conn) claim() bool {
	if c.is(markCounted) {
		return true
	}
	isCounted, excess := c.sh.srv.claim(c.remote)
	c.mark(markCounted, isCounted)
	c.mark(markCrowd, excess > 0)
	if excess <= crowdSlots {
		return true
	}
	c.sh.stats.Refusals[RefuseAddressFull].Add(1)
	c.state.Store(stateClosing) // its end is accounted for
	if c.canAnswer() {
		_, _ = c.put(rejectCrowded.AppendResponse(nil))
	}
	c.abort(errCrowded)
	return false
}

// release is called for each socket that closes, with what claim has noted.
func (s *Server) release(remote *net.TCPAddr, counted bool) {
	if counted {
		s.addresses.remove(keyOf(addrOf(remote)))
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
		return unixWord
	}
	return a.String()
}

// shownAddr is an address in the log, where it becomes a text only if the line is written.
type shownAddr netip.AddrPort

// LogValue is addressText.
func (a shownAddr) LogValue() slog.Value { return slog.StringValue(addressText(netip.AddrPort(a))) }

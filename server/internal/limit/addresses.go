package limit

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"carillon/internal/shrink"
)

// Addresses is what the limits for each address need to know: how many connections an address has, and
// how many handshakes it may still make. All loops share it. It is touched when a connection's address
// becomes known, at a handshake for an endpoint and when the socket closes, and not at all for connections
// that were accepted without such limits.
//
// It holds an address as long as it has a connection or a debt of handshakes, and so no more of them than
// there are sockets, and were in the last second.
type Addresses struct {
	begin time.Time // of the clock
	parts [64]addressPart
}

type addressPart struct {
	mu    sync.Mutex
	known shrink.Map[Key, address] // guarded by mu
	_     [40]byte                 // a part for each line of the processor's cache
}

type address struct {
	open uint32
	debt uint32 // of handshakes, at
	at   uint32 // milliseconds since begin
}

// Key stands for an IPv4 address or, since that is what one customer gets, a network of 64 bits of
// IPv6. The two do not meet: 0:1::/32 is not assigned.
type Key uint64

// KeyOf returns the key of an address.
func KeyOf(a netip.Addr) Key {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return 1<<32 | Key(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return Key(binary.BigEndian.Uint64(b[:]))
}

// NewAddresses returns an empty table, which reads the clock from begin on.
func NewAddresses(begin time.Time) *Addresses {
	return &Addresses{begin: begin}
}

func (a *Addresses) part(k Key) *addressPart {
	return &a.parts[uint64(k)*0x9E3779B97F4A7C15>>58]
}

func (a *Addresses) now() uint32 { return uint32(time.Since(a.begin).Milliseconds()) }

// Add counts a connection, and returns by how many the address exceeds most; most < 0 is no limit.
func (a *Addresses) Add(k Key, most int) (excess int) {
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

// Remove ends what Add has counted.
func (a *Addresses) Remove(k Key) {
	p := a.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.known.Get(k)
	e.open--
	p.keep(k, e, a.now())
}

// AllowHandshake reports whether an address may make one more handshake.
func (a *Addresses) AllowHandshake(k Key, shake TokenBucket) bool {
	p := a.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, now := p.known.Get(k), a.now() // read under the lock, so that it does not go back
	e.debt, e.at = Decay(e.debt, now-e.at), now
	ok := shake.Allow(&e.debt, 1)
	p.known.Set(k, e)
	return ok
}

// Len returns the number of addresses that are known.
func (a *Addresses) Len() (n int) {
	for i := range a.parts {
		a.parts[i].mu.Lock()
		n += a.parts[i].known.Len()
		a.parts[i].mu.Unlock()
	}
	return n
}

// keep forgets an address of which there is nothing to know.
func (p *addressPart) keep(k Key, e address, now uint32) {
	if e.open == 0 && Decay(e.debt, now-e.at) == 0 {
		p.known.Delete(k)
		return
	}
	p.known.Set(k, e)
}

// sweepSlice is how many addresses are looked at in one go.
const sweepSlice = 512

// Sweep forgets those whose debt was all that kept them, in a quarter of the parts, and so many at a time that a
// handshake does not wait for it.
func (a *Addresses) Sweep(round int) {
	for i := round % 4; i < len(a.parts); i += 4 {
		p := &a.parts[i]
		p.mu.Lock()
		now, looked := a.now(), 0
		for k, e := range p.known.All() {
			if e.open == 0 && Decay(e.debt, now-e.at) == 0 && p.known.Get(k) == e {
				p.known.Delete(k)
			}
			if looked++; looked%sweepSlice == 0 {
				p.mu.Unlock()
				p.mu.Lock()
				now = a.now() // no entry is newer
			}
		}
		p.mu.Unlock()
	}
}

package server

import (
	"net"
	"net/http"
	"net/netip"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// locate finds out who has sent a request for an endpoint, when it came through a proxy, and whether
// this client may make one more handshake.
func (c *Conn) locate(r *Request) (RefuseReason, error) {
	e := c.shard().Engine
	if proxies := &e.Settings().Trusted; proxies.Contains(reactor.AddrOf(c.core().Remote())) {
		e.Release(c.core().Remote(), c.core().Is(reactor.MarkCounted)) // it was no proxy's when it was accepted
		r.proxied = true
		via := &c.loopState().via
		via.Reset()
		r.AppendVia(via)
		client, scheme := via.Client(r.RemoteAddr, proxies.Contains)
		if scheme != "" {
			r.scheme, r.Secure = scheme, scheme == "https"
		}
		if client != r.RemoteAddr {
			r.RemoteAddr = client
			c.core().SetRemote(net.TCPAddrFromAddrPort(client))
		}
		isCounted, excess := e.Claim(c.core().Remote())
		c.core().Mark(reactor.MarkCounted, isCounted)
		if excess > 0 {
			return RefuseAddressFull, reactor.RejectCrowded
		}
	}
	return c.core().MayShake()
}

// clientOf is the address of the client that has sent a request for Options.HTTP, when it came through a
// proxy. One connection of a proxy carries the requests of many clients.
func (s *Server) clientOf(r *http.Request) (client string, ok bool) {
	proxies := &s.settings().loops.Trusted
	peer, ok := peerAddr(r.RemoteAddr)
	if !ok || !proxies.Contains(peer.Addr()) {
		return "", false
	}
	via := viaOf(r)
	address, _ := via.Client(peer, proxies.Contains)
	return address.String(), address.IsValid()
}

// originOf is the scheme and the host that a request for Options.HTTP, or for an http.Server of the application, was
// made for, as far as a proxy that is trusted says it.
func (s *Server) originOf(r *http.Request) (scheme, host string) {
	remote := r.RemoteAddr
	if c, ok := r.Context().Value(servedConnKey{}).(*servedConn); ok {
		remote = c.plain.RemoteAddr().String() // that of the request is the client's already
	}
	peer, ok := peerAddr(remote)
	if !ok {
		return "", ""
	}
	via := viaOf(r)
	return via.Origin(peer, s.settings().loops.Trusted.Contains)
}

// peerAddr reads an address as net/http has it: the zero one is a client of a unix socket.
func peerAddr(text string) (peer netip.AddrPort, ok bool) {
	if text == reactor.UnixClient.Name {
		return peer, true
	}
	peer, err := netip.ParseAddrPort(text)
	return peer, err == nil
}

func viaOf(r *http.Request) codec.Via {
	return codec.Via{
		Forwarded:       fieldLines(r.Header["Forwarded"]),
		XForwardedFor:   fieldLines(r.Header["X-Forwarded-For"]),
		XForwardedProto: fieldLines(r.Header["X-Forwarded-Proto"]),
		XForwardedHost:  fieldLines(r.Header["X-Forwarded-Host"]),
	}
}

func fieldLines(values []string) (all [][]byte) {
	for _, v := range values {
		all = append(all, []byte(v))
	}
	return all
}

package server

import (
	"net"
	"net/http"
	"net/netip"

	"carillon/codec"
)

// locate finds out who has sent a request for an endpoint, when it came through a proxy, and whether
// this client may make one more handshake.
func (c *Conn) locate(r *Request) (RefuseReason, error) {
	s := c.sh.srv
	if proxies := s.settings().proxies; proxies.contains(addrOf(c.remote)) {
		s.release(c.remote, c.is(markCounted)) // it was no proxy's when it was accepted
		via := &c.sh.via
		via.Reset()
		r.AppendVia(via)
		client, scheme := via.Client(r.RemoteAddr, proxies.contains)
		if scheme != "" {
			r.scheme, r.Secure = scheme, scheme == "https"
		}
		if client != r.RemoteAddr {
			r.RemoteAddr, c.remote = client, net.TCPAddrFromAddrPort(client)
		}
		isCounted, excess := s.claim(c.remote)
		c.mark(markCounted, isCounted)
		if excess > 0 {
			return RefuseAddressFull, rejectCrowded
		}
	}
	return c.mayShake()
}

// clientOf is the address of the client that has sent a request for Options.HTTP, when it came through a
// proxy. One connection of a proxy carries the requests of many clients.
func (s *Server) clientOf(r *http.Request) (client string, ok bool) {
	var peer netip.AddrPort
	var err error
	if r.RemoteAddr != nobody.Name {
		peer, err = netip.ParseAddrPort(r.RemoteAddr)
	}
	proxies := s.settings().proxies
	if err != nil || !proxies.contains(peer.Addr()) {
		return "", false
	}
	via := codec.Via{
		Forwarded:       fieldLines(r.Header["Forwarded"]),
		XForwardedFor:   fieldLines(r.Header["X-Forwarded-For"]),
		XForwardedProto: fieldLines(r.Header["X-Forwarded-Proto"]),
	}
	address, _ := via.Client(peer, proxies.contains)
	return address.String(), address.IsValid()
}

func fieldLines(values []string) (all [][]byte) {
	for _, v := range values {
		all = append(all, []byte(v))
	}
	return all
}

package server

import (
	"errors"
	"net"
	"time"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

// ProxyProtocol is about the PROXY header (HAProxy's proxy-protocol.txt, versions 1 and 2), with which a
// balancer that passes on TCP says who the client is. It comes once, before anything else.
type ProxyProtocol struct {
	// Mode reports whether there is such a header. Default [ProxyOff].
	Mode ProxyMode `yaml:"mode"`

	// From lists the networks, such as 10.0.0.0/8, of the balancers that may send it; the word unix means
	// every client of a unix socket. It must not be empty unless Mode is ProxyOff. A connection from there
	// whose header names no client is exempt from the limits per address.
	From []string `yaml:"from"`

	// Timeout is the time from accept to the last byte of the header. Bytes that dribble in do not extend
	// it. Default 5 s; it cannot be turned off.
	Timeout time.Duration `yaml:"timeout"`
}

// ProxyMode says what is done about PROXY headers.
type ProxyMode string

const (
	ProxyOff      ProxyMode = "off"      // there is none: it would be refused as malformed HTTP
	ProxyOptional ProxyMode = "optional" // a connection from these networks may begin with one; another may not
	ProxyRequired ProxyMode = "required" // each connection comes from these networks and begins with one
)

func (p *ProxyProtocol) resolve(c *checker, key string) {
	c.Duration(key+"timeout", &p.Timeout, 5*time.Second, false)
	c.networks(key+"from", p.From)
	switch p.Mode {
	case "":
		p.Mode = ProxyOff
	case ProxyOff:
	case ProxyOptional, ProxyRequired:
		if len(p.From) == 0 {
			c.Add(key+"from", "is missing: expected the networks of the balancers, such as [10.0.0.0/8]")
		}
	default:
		c.Add(key+"mode", "%q is unknown: expected %s, %s or %s", p.Mode, ProxyOff, ProxyOptional, ProxyRequired)
	}
}

// readProxy reads the PROXY header, if there is one, and returns how many bytes of b it has. It returns
// false when there is nothing to go on with: more must come, or the connection has been refused.
func (c *Conn) readProxy(b []byte) (size int, ok bool) {
	header, size, err := codec.ParseProxy(b)
	required := c.core().Entered().Now().MustProxy
	switch {
	case errors.Is(err, codec.ErrNoProxyHeader) && required:
		c.core().CutOff(RefuseProxyMissing, err)
		return 0, false
	case errors.Is(err, codec.ErrNoProxyHeader):
	case err != nil:
		c.core().CutOff(RefuseProxyMalformed, err)
		return 0, false
	case size == 0:
		return 0, false
	}
	c.core().Mark(reactor.MarkPreface, false)
	if !header.Source.IsValid() {
		return size, true // it stays the balancer's, which is exempt from the limits for each address
	}
	c.core().SetRemote(net.TCPAddrFromAddrPort(header.Source))
	return size, c.core().Claim()
}

// prefaceDue ends the wait for a PROXY header.
func (c *Conn) prefaceDue() {
	switch {
	case c.core().Entered().Now().MustProxy:
		c.core().CutOff(RefuseProxyMissing, errProxyTimeout)
	case c.core().Inbound() != nil: // it has begun
		c.core().CutOff(RefuseProxyMalformed, errProxyTimeout)
	default: // a client that has sent nothing so far may still send a request
		c.core().Mark(reactor.MarkPreface, false)
	}
}

var errProxyTimeout = errors.New("the PROXY header did not arrive within proxy_protocol.timeout")

package codec

import (
	"bytes"
	"net/netip"
)

// Via is what the proxies on a request's way have written about it: the values of each header, one for
// each line, in the order in which they came.
type Via struct {
	Forwarded       [][]byte // RFC 7239
	XForwardedFor   [][]byte
	XForwardedProto [][]byte
	XForwardedHost  [][]byte
}

// AppendVia adds the headers of a request to v. The values are views of the request.
func (r *Request) AppendVia(v *Via) {
	for name, value := range r.Headers() {
		switch len(name) {
		case len("forwarded"):
			if equalFold(name, "forwarded") {
				v.Forwarded = append(v.Forwarded, value)
			}
		case len("x-forwarded-for"):
			if equalFold(name, "x-forwarded-for") {
				v.XForwardedFor = append(v.XForwardedFor, value)
			}
		case len("x-forwarded-host"):
			if equalFold(name, "x-forwarded-host") {
				v.XForwardedHost = append(v.XForwardedHost, value)
			}
		case len("x-forwarded-proto"):
			if equalFold(name, "x-forwarded-proto") {
				v.XForwardedProto = append(v.XForwardedProto, value)
			}
		}
	}
}

// Reset makes v empty and keeps its memory.
func (v *Via) Reset() {
	v.Forwarded, v.XForwardedFor = v.Forwarded[:0], v.XForwardedFor[:0]
	v.XForwardedProto, v.XForwardedHost = v.XForwardedProto[:0], v.XForwardedHost[:0]
}

// maxHops bounds how many proxies a request may have come through.
const maxHops = 32

// Client returns the client of a request that came from peer, and the scheme that the client has used:
// "http", "https" or, if no trusted proxy tells it, "".
//
// Each proxy appends what it knows, so the list is read from its end: as long as an address is one of a
// proxy that is trusted, what it has written counts, and the first that is not is the client. What
// stands before that may be forged. An element that is malformed, unknown or hidden ends
// the walk too: the client is then the last address that is known. The port is 0 where none is told.
//
// X-Forwarded-For, which nearly all proxies write, goes before Forwarded: that is only read where there
// is none of the other. A proxy that writes Forwarded has to remove X-Forwarded-For, or the client could
// write it.
func (v *Via) Client(peer netip.AddrPort, trusted func(netip.Addr) bool) (client netip.AddrPort, scheme string) {
	at := v.walk(peer, trusted)
	return at.client, schemeOf(at.proto)
}

// Origin returns where the client of [Via.Client] has sent its request to: the scheme, as Client does, and the host,
// with its port if that was given, as X-Forwarded-Host or the host of Forwarded has it; "" if no trusted proxy tells
// it. The host is not checked in any way. A proxy that does not write X-Forwarded-Host has to remove it, or the
// client could write it.
func (v *Via) Origin(peer netip.AddrPort, trusted func(netip.Addr) bool) (scheme, host string) {
	at := v.walk(peer, trusted)
	return schemeOf(at.proto), string(at.host)
}

// hop is what a proxy says of the request that it got.
type hop struct {
	client      netip.AddrPort
	proto, host []byte
}

// walk goes back to the client.
func (v *Via) walk(peer netip.AddrPort, trusted func(netip.Addr) bool) (at hop) {
	at.client = peer
	if !trusted(peer.Addr()) {
		return at
	}
	if len(v.XForwardedFor) == 0 && len(v.Forwarded) > 0 {
		return v.walkForwarded(at.client, trusted)
	}
	protos, hosts := backwards{lines: v.XForwardedProto}, backwards{lines: v.XForwardedHost}
	at.proto, at.host = protos.nextOr(nil), hosts.nextOr(nil)
	addresses := backwards{lines: v.XForwardedFor}
	for i := range maxHops {
		element, ok := addresses.next()
		if !ok {
			break
		}
		from, ok := forwardedAddr(element, false)
		if !ok {
			break
		}
		at.client = from
		if i > 0 { // each proxy may have added these as well, or have left those that were there
			at.proto, at.host = protos.nextOr(at.proto), hosts.nextOr(at.host)
		}
		if !trusted(from.Addr()) {
			break
		}
	}
	return at
}

func (v *Via) walkForwarded(peer netip.AddrPort, trusted func(netip.Addr) bool) (at hop) {
	at.client = peer
	elements := backwards{lines: v.Forwarded, quotes: true}
	for range maxHops {
		element, ok := elements.next()
		if !ok {
			break
		}
		before, ok := forwardedElement(element)
		if !ok {
			break
		}
		at.proto, at.host = before.proto, before.host
		if !before.client.IsValid() {
			break
		}
		at.client = before.client
		if !trusted(at.client.Addr()) {
			break
		}
	}
	return at
}

// schemeOf returns "http" or "https" for what a client may have used, and else "".
func schemeOf(name []byte) string {
	switch {
	case equalFold(name, "https") || equalFold(name, "wss"):
		return "https"
	case equalFold(name, "http") || equalFold(name, "ws"):
		return "http"
	}
	return ""
}

// backwards reads comma-separated lists from the last element of the last line to the first of the
// first. From that end what a stranger has written cannot swallow what a proxy has appended to it, such
// as with a quote that never ends.
type backwards struct {
	lines  [][]byte
	quotes bool   // commas between quotes separate nothing
	line   []byte // what is left of the line behind lines
	more   bool   // which is another element, be it empty
}

func (l *backwards) next() (element []byte, ok bool) {
	if !l.more {
		last := len(l.lines) - 1
		if last < 0 {
			return nil, false
		}
		l.lines, l.line = l.lines[:last], l.lines[last]
	}
	i, quoted := len(l.line), false
	for i > 0 && (quoted || l.line[i-1] != ',') {
		quoted = quoted != (l.quotes && l.line[i-1] == '"')
		i--
	}
	element = trim(l.line[i:])
	if l.more = i > 0; l.more {
		l.line = l.line[:i-1]
	}
	return element, true
}

// nextOr returns the next element, or that of before when there is none.
func (l *backwards) nextOr(before []byte) []byte {
	if element, ok := l.next(); ok {
		return element
	}
	return before
}

// forwardedElement reads an element of Forwarded (RFC 7239, section 4), such as
// for="[2001:db8::17]:4711";proto=https;host=example.com. The client is not valid when the element hides it.
func forwardedElement(element []byte) (at hop, ok bool) {
	seenFor, seenProto, seenHost := false, false, false
	for len(element) > 0 {
		var name, value []byte
		name, value, element, ok = forwardedPair(element)
		if !ok {
			return hop{}, false
		}
		switch {
		case equalFold(name, "for"):
			if seenFor {
				return hop{}, false
			}
			seenFor = true
			if len(value) > 0 && value[0] == '_' || equalFold(value, "unknown") {
				continue
			}
			if at.client, ok = forwardedAddr(value, true); !ok {
				return hop{}, false
			}
		case equalFold(name, "proto"):
			if seenProto {
				return hop{}, false
			}
			seenProto, at.proto = true, value
		case equalFold(name, "host"):
			if seenHost {
				return hop{}, false
			}
			seenHost, at.host = true, value
		}
	}
	return at, seenFor || seenProto
}

// forwardedPair cuts one name=value off an element. A value is a token or stands between quotes; one
// with a backslash is not needed for any address and is taken for an attempt at something else.
func forwardedPair(element []byte) (name, value, rest []byte, ok bool) {
	name, rest, ok = bytes.Cut(element, equals)
	if !ok || !isToken(name) {
		return nil, nil, nil, false
	}
	if len(rest) > 0 && rest[0] == '"' {
		end := bytes.IndexByte(rest[1:], '"')
		if end < 0 || bytes.IndexByte(rest[1:1+end], '\\') >= 0 {
			return nil, nil, nil, false
		}
		value, rest = rest[1:1+end], trim(rest[end+2:])
	} else {
		end := bytes.IndexByte(rest, ';')
		if end < 0 {
			end = len(rest)
		}
		value, rest = trim(rest[:end]), rest[end:]
		if !isToken(value) {
			return nil, nil, nil, false
		}
	}
	if len(rest) > 0 {
		if rest[0] != ';' {
			return nil, nil, nil, false
		}
		rest = trim(rest[1:])
	}
	return name, value, rest, true
}

var equals = []byte("=")

// forwardedAddr reads an address with or without a port: 192.0.2.1, 192.0.2.1:80, [2001:db8::1] and
// [2001:db8::1]:80. Without brackets, an IPv6 address is taken where they are not strictly required.
func forwardedAddr(b []byte, strictly bool) (netip.AddrPort, bool) {
	const longest = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")
	if len(b) > longest {
		return netip.AddrPort{}, false
	}
	host, port := b, []byte(nil)
	switch colon := bytes.LastIndexByte(b, ':'); {
	case len(b) > 0 && b[0] == '[':
		end := bytes.IndexByte(b, ']')
		if end < 0 {
			return netip.AddrPort{}, false
		}
		host = b[1:end]
		if bytes.IndexByte(host, ':') < 0 {
			return netip.AddrPort{}, false
		}
		if rest := b[end+1:]; len(rest) > 0 {
			if rest[0] != ':' || len(rest) == 1 {
				return netip.AddrPort{}, false
			}
			port = rest[1:]
		}
	case colon >= 0 && bytes.IndexByte(b, ':') == colon:
		host, port = b[:colon], b[colon+1:]
		if len(port) == 0 {
			return netip.AddrPort{}, false
		}
	case colon >= 0 && strictly:
		return netip.AddrPort{}, false
	}
	addr, err := netip.ParseAddr(string(host))
	if err != nil || addr.Zone() != "" {
		return netip.AddrPort{}, false
	}
	var n uint16
	if hidden := strictly && len(port) > 1 && port[0] == '_'; len(port) > 0 && !hidden {
		var ok bool
		if n, ok = parsePort(port); !ok {
			return netip.AddrPort{}, false
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), n), true
}

package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
)

// MaxProxyHeader is the largest PROXY header that [ParseProxy] takes, in bytes. Version 2 could have
// 64 KiB; its authors advise senders to stay below this, and a stranger cannot make a server keep more.
const MaxProxyHeader = 16 + maxProxyBlock

const (
	maxProxyLine  = 107 // of version 1, CR LF included
	maxProxyBlock = 536 // of version 2, behind its first 16 bytes
)

// The rules of a PROXY header. A connection that breaks one has to be closed: what follows cannot be parsed.
var (
	ErrNoProxyHeader       = errors.New("the connection does not start with a PROXY header")
	ErrProxyLineTooLong    = errors.New("PROXY header, version 1: the line is longer than 107 bytes")
	ErrProxyLineEnd        = errors.New("PROXY header, version 1: the line does not end in CR LF")
	ErrProxyProtocol       = errors.New("PROXY header, version 1: the protocol must be TCP4, TCP6 or UNKNOWN")
	ErrProxyFields         = errors.New("PROXY header, version 1: expected two addresses and two ports, each preceded by one space")
	ErrProxyAddress        = errors.New("PROXY header, version 1: an address does not match the protocol")
	ErrProxyPort           = errors.New("PROXY header, version 1: a port is not a number from 0 to 65535 without leading zeros")
	ErrProxyVersion        = errors.New("PROXY header: the version is not 2")
	ErrProxyCommand        = errors.New("PROXY header, version 2: the command must be LOCAL or PROXY")
	ErrProxyFamily         = errors.New("PROXY header, version 2: unsupported address family or transport")
	ErrProxyBlockTooLong   = errors.New("PROXY header, version 2: longer than 536 bytes")
	ErrProxyAddressMissing = errors.New("PROXY header, version 2: too short for its addresses")
)

// ProxyHeader is what a balancer says about the connection that it passes on. Neither address is valid
// when it speaks for itself (LOCAL), does not know (UNKNOWN) or got it over a Unix socket: then the
// connection's own addresses are the ones that count.
type ProxyHeader struct {
	Source      netip.AddrPort // the client
	Destination netip.AddrPort // what the client has connected to
}

// Signatures with which the two versions begin.
const (
	proxySignature1 = "PROXY "
	proxySignature2 = "\r\n\r\n\x00\r\nQUIT\n"
)

// ParseProxy reads the PROXY header (version 1 or 2, as HAProxy's proxy-protocol.txt has them) at the
// start of b and returns its size. A size of 0 without an error means that more bytes are needed; what
// is wrong with those that are there is said at once. What extensions (TLVs) a header brings is skipped.
func ParseProxy(b []byte) (h ProxyHeader, size int, err error) {
	switch {
	case len(b) == 0:
		return h, 0, nil
	case begins(b, proxySignature1):
		return parseProxyLine(b)
	case begins(b, proxySignature2):
		return parseProxyBlock(b)
	}
	return h, 0, ErrNoProxyHeader
}

// begins reports whether b is, as far as it goes, the start of something with this signature.
func begins(b []byte, signature string) bool {
	n := min(len(b), len(signature))
	return string(b[:n]) == signature[:n]
}

// parseProxyLine reads version 1: "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443" and CR LF.
func parseProxyLine(b []byte) (h ProxyHeader, size int, err error) {
	lf := bytes.IndexByte(b[:min(len(b), maxProxyLine)], '\n')
	if lf < 0 {
		if len(b) >= maxProxyLine {
			return h, 0, ErrProxyLineTooLong
		}
		return h, 0, nil
	}
	line := b[:lf]
	if line[lf-1] != '\r' { // there is a byte before, since the signature has none of LF
		return h, 0, ErrProxyLineEnd
	}
	protocol, rest, more := strings.Cut(string(line[len(proxySignature1):lf-1]), " ")
	if protocol == "UNKNOWN" {
		return h, lf + 1, nil // with anything behind it
	}
	if protocol != "TCP4" && protocol != "TCP6" {
		return h, 0, ErrProxyProtocol
	}
	fields := strings.Split(rest, " ")
	if !more || len(fields) != 4 {
		return h, 0, ErrProxyFields
	}
	if h.Source, err = proxyAddrPort(fields[0], fields[2], protocol == "TCP4"); err == nil {
		h.Destination, err = proxyAddrPort(fields[1], fields[3], protocol == "TCP4")
	}
	if err != nil {
		return ProxyHeader{}, 0, err
	}
	return h, lf + 1, nil
}

func proxyAddrPort(host, port string, v4 bool) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Is4() != v4 || addr.Zone() != "" {
		return netip.AddrPort{}, ErrProxyAddress
	}
	n, ok := parsePort(port)
	if !ok {
		return netip.AddrPort{}, ErrProxyPort
	}
	return netip.AddrPortFrom(addr.Unmap(), n), nil
}

// parsePort reads a number from 0 to 65535 without sign and leading zeros.
func parsePort[S string | []byte](s S) (uint16, bool) {
	if len(s) == 0 || len(s) > 5 || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
		n = 10*n + int(s[i]-'0')
	}
	return uint16(n), n <= 65535
}

// The second half of the byte behind the signature, and the byte behind that.
const (
	proxyLocal  = 0x0
	proxyRemote = 0x1

	proxyUnspecified = 0x00
	proxyTCP4        = 0x11
	proxyTCP6        = 0x21
	proxyUnix        = 0x31
)

// proxyAddresses is the size of the addresses of each family.
var proxyAddresses = map[byte]int{proxyUnspecified: 0, proxyTCP4: 2 * (4 + 2), proxyTCP6: 2 * (16 + 2), proxyUnix: 2 * 108}

// parseProxyBlock reads version 2, whose first 16 bytes are the signature, version and command, family
// and transport, and how many bytes follow.
func parseProxyBlock(b []byte) (h ProxyHeader, size int, err error) {
	const fixed = len(proxySignature2) + 4
	rest := b[min(len(b), len(proxySignature2)):]
	if len(rest) == 0 {
		return h, 0, nil
	}
	command := rest[0] & 0x0F
	switch {
	case rest[0]>>4 != 2:
		return h, 0, ErrProxyVersion
	case command != proxyLocal && command != proxyRemote:
		return h, 0, ErrProxyCommand
	case len(rest) == 1:
		return h, 0, nil
	}
	family := rest[1]
	addresses, known := proxyAddresses[family]
	if command == proxyLocal {
		addresses = 0 // the rest means nothing
	} else if !known {
		return h, 0, ErrProxyFamily
	}
	if len(rest) < 4 {
		return h, 0, nil
	}
	length := int(binary.BigEndian.Uint16(rest[2:]))
	switch {
	case length > maxProxyBlock:
		return h, 0, ErrProxyBlockTooLong
	case length < addresses:
		return h, 0, ErrProxyAddressMissing
	case len(b) < fixed+length:
		return h, 0, nil
	}
	if command == proxyRemote {
		h = proxyAddressesOf(family, rest[4:])
	}
	return h, fixed + length, nil
}

func proxyAddressesOf(family byte, b []byte) (h ProxyHeader) {
	var source, destination netip.Addr
	switch family {
	case proxyTCP4:
		source, destination, b = netip.AddrFrom4([4]byte(b)), netip.AddrFrom4([4]byte(b[4:])), b[8:]
	case proxyTCP6:
		source, destination, b = netip.AddrFrom16([16]byte(b)).Unmap(), netip.AddrFrom16([16]byte(b[16:])).Unmap(), b[32:]
	default:
		return h
	}
	h.Source = netip.AddrPortFrom(source, binary.BigEndian.Uint16(b))
	h.Destination = netip.AddrPortFrom(destination, binary.BigEndian.Uint16(b[2:]))
	return h
}

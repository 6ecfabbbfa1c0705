package listen

import (
	"fmt"
	"net/netip"
	"strings"
)

const (
	// UnixPrefix begins the address of a unix socket.
	UnixPrefix = "unix:"

	// UnixWord, in a list of networks, means every client of a unix socket.
	UnixWord = "unix"
)

// UnixPath is the path of a unix socket's address, or its abstract name, which begins with @.
func UnixPath(address string) (path string, ok bool) { return strings.CutPrefix(address, UnixPrefix) }

// Networks is a list of networks, as options have it. The zero value contains nothing.
type Networks struct {
	prefixes []netip.Prefix
	unix     bool // all clients of unix sockets
}

// NewNetworks reads a list that [CheckNetwork] has found nothing wrong with.
func NewNetworks(list []string) (all Networks) {
	for _, text := range list {
		if text == UnixWord {
			all.unix = true
		} else if p, err := parseNetwork(text); err == nil {
			all.prefixes = append(all.prefixes, p)
		}
	}
	return all
}

// Contains reports whether an address is in one of the networks. The zero address is that of a client of a unix socket.
func (n *Networks) Contains(a netip.Addr) bool {
	if !a.IsValid() {
		return n.unix
	}
	a = a.Unmap().WithZone("")
	for _, p := range n.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// CheckNetwork reports what is wrong with an entry of such a list: it takes a network such as 10.0.0.0/8, an address,
// or [UnixWord].
func CheckNetwork(text string) error {
	if text == UnixWord {
		return nil
	}
	_, err := parseNetwork(text)
	return err
}

func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a network: expected one such as 10.0.0.0/8, an address, or unix", text)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is IPv4 written as IPv6: expected it as IPv4", text)
	case p != p.Masked():
		return p, fmt.Errorf("%q has bits set beyond its prefix: expected %v, or an address", text, p.Masked())
	}
	return p, nil
}

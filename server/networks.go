package server

import (
	"fmt"
	"net/netip"
)

// networks is a list of networks, as options have it.
type networks struct {
	prefixes []netip.Prefix
	unix     bool // whoever connects to a unix socket, whose address is the zero one
}

func (n networks) contains(a netip.Addr) bool {
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

// network reads 10.0.0.0/8, or a single address.
func network(text string) (netip.Prefix, error) {
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

// networksOf reads a list that has been checked.
func networksOf(list []string) (all networks) {
	for _, text := range list {
		if text == unixWord {
			all.unix = true
		} else if p, err := network(text); err == nil {
			all.prefixes = append(all.prefixes, p)
		}
	}
	return all
}

func (c *checker) networks(key string, list []string) {
	for i, text := range list {
		if _, err := network(text); err != nil && text != unixWord {
			c.Add(fmt.Sprintf("%s[%d]", key, i), "%v", err)
		}
	}
}

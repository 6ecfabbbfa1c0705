package server

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"carillon/server/internal/listen"
	"carillon/server/internal/option"
)

// Listener is a further address to serve on, besides Options.Listen, with settings of its own. All listeners
// serve the same endpoints and share the limits.
type Listener struct {
	// Listen is the address, as in [Options].Listen. It must not be empty.
	Listen string `yaml:"listen"`

	// Mode is for a unix socket, as [Options].ListenMode.
	Mode FileMode `yaml:"mode"`

	// TLS is for this address, as [Options].TLS is for Listen.
	TLS TLS `yaml:"tls"`

	ProxyProtocol ProxyProtocol `yaml:"proxy_protocol"`
}

// FileMode holds the permission bits of a unix socket's file, written as an octal number such as 0660.
type FileMode = option.FileMode

const (
	unixPrefix = "unix:"

	publicMode   = 0o660
	internalMode = 0o600

	// unixWord, in a list of networks, means every client of a unix socket.
	unixWord = "unix"
)

// unixPath is the path of a unix socket's address, or its abstract name, which begins with @.
func unixPath(address string) (path string, ok bool) { return strings.CutPrefix(address, unixPrefix) }

func (o *Options) resolveListeners(c *checker) {
	if o.Listen == "" {
		o.Listen = ":8080"
	}
	c.publicAddress("listen", o.Listen, &o.ListenMode, "listen_mode")
	o.ProxyProtocol.resolve(c, "proxy_protocol.")
	o.Listeners = slices.Clone(o.Listeners)
	for i := range o.Listeners {
		l, key := &o.Listeners[i], fmt.Sprintf("listeners[%d].", i)
		c.publicAddress(key+"listen", l.Listen, &l.Mode, key+"mode")
		l.TLS.resolve(c, key+"tls.")
		l.ProxyProtocol.resolve(c, key+"proxy_protocol.")
	}
	taken := o.publicAddresses()
	for i, address := range taken {
		c.distinct(address.key, address.text, taken[:i])
	}
}

// namedAddress is an address with the key that says it.
type namedAddress struct{ key, text string }

func (o *Options) publicAddresses() []namedAddress {
	all := []namedAddress{{"listen", o.Listen}}
	for i := range o.Listeners {
		all = append(all, namedAddress{fmt.Sprintf("listeners[%d].listen", i), o.Listeners[i].Listen})
	}
	return all
}

// distinct complains about an address that another key has already.
func (c *checker) distinct(key, address string, taken []namedAddress) {
	for _, other := range taken {
		if address != "" && sameAddress(address, other.text) {
			c.Add(key, "%s is already the address of %s: expected another one", address, other.key)
			return
		}
	}
}

// publicAddress checks an address that clients connect to, and fills in the mode of a unix socket.
func (c *checker) publicAddress(key, address string, mode *FileMode, modeKey string) {
	if _, ok := unixPath(address); ok {
		c.unixAddress(key, address)
	} else {
		c.Address(key, address, ":8080, 127.0.0.1:8080 or unix:/path")
	}
	c.FileMode(modeKey, mode, publicMode)
}

func (c *checker) unixAddress(key, address string) {
	switch path, _ := unixPath(address); {
	case strings.HasPrefix(path, "@"):
		if runtime.GOOS != "linux" || len(path) == 1 {
			c.Add(key, "%q is not a unix socket: expected unix:/path, or on Linux unix:@name", address)
		}
	case !filepath.IsAbs(path):
		c.Add(key, "%q is not a unix socket: expected unix:/path, with a path from the root", address)
	case path != filepath.Clean(path):
		c.Add(key, "%q is not a clean path: expected %s%s", address, unixPrefix, filepath.Clean(path))
	case len(path) > listen.MaxUnixPath:
		c.Add(key, "%q is too long: expected a path of at most %d bytes", address, listen.MaxUnixPath)
	}
}

// sameAddress reports whether two addresses cannot both be listened on.
func sameAddress(a, b string) bool {
	pathA, unixA := unixPath(a)
	pathB, unixB := unixPath(b)
	if unixA || unixB {
		return unixA && unixB && pathA == pathB
	}
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	return portA == portB && portA != "0" && (hostA == hostB || spans(hostA, hostB) || spans(hostB, hostA))
}

// spans reports whether a host stands for all addresses of the machine that the other can be: 0.0.0.0 for
// those of IPv4, and [::] or none for all.
func spans(host, other string) bool {
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "":
		return true
	case err != nil || !ip.IsUnspecified():
		return false
	case ip.Is4():
		its, err := netip.ParseAddr(other)
		return err != nil || its.Unmap().Is4()
	}
	return true
}

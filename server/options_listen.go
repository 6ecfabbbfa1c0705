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
	"carillon/server/internal/reactor"
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
	publicMode   = 0o660
	internalMode = 0o600
)

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

// publicListener is where clients connect.
type publicListener struct {
	namedAddress
	mode  FileMode
	proxy *ProxyProtocol
}

// publicListeners are that of Listen and those of Listeners.
func (o *Options) publicListeners() []publicListener {
	all := []publicListener{{namedAddress{"listen", o.Listen}, o.ListenMode, &o.ProxyProtocol}}
	for i := range o.Listeners {
		l := &o.Listeners[i]
		all = append(all, publicListener{namedAddress{fmt.Sprintf("listeners[%d].listen", i), l.Listen}, l.Mode, &l.ProxyProtocol})
	}
	return all
}

func (o *Options) publicAddresses() (all []namedAddress) {
	for _, l := range o.publicListeners() {
		all = append(all, l.namedAddress)
	}
	return all
}

// settings is what event loops need of it.
func (l *publicListener) settings() reactor.ListenerSettings {
	set := reactor.ListenerSettings{Key: l.key, Address: l.text, Mode: l.mode, PrefaceTimeout: l.proxy.Timeout}
	if l.proxy.Mode != ProxyOff {
		set.Balancers, set.MustProxy = listen.NewNetworks(l.proxy.From), l.proxy.Mode == ProxyRequired
	}
	return set
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
	if _, ok := listen.UnixPath(address); ok {
		c.unixAddress(key, address)
	} else {
		c.Address(key, address, ":8080, 127.0.0.1:8080 or unix:/path")
	}
	c.FileMode(modeKey, mode, publicMode)
}

func (c *checker) unixAddress(key, address string) {
	switch path, _ := listen.UnixPath(address); {
	case strings.HasPrefix(path, "@"):
		if runtime.GOOS != "linux" || len(path) == 1 {
			c.Add(key, "%q is not a unix socket: expected unix:/path, or on Linux unix:@name", address)
		}
	case !filepath.IsAbs(path):
		c.Add(key, "%q is not a unix socket: expected unix:/path, with a path from the root", address)
	case path != filepath.Clean(path):
		c.Add(key, "%q is not a clean path: expected %s%s", address, listen.UnixPrefix, filepath.Clean(path))
	case len(path) > listen.MaxUnixPath:
		c.Add(key, "%q is too long: expected a path of at most %d bytes", address, listen.MaxUnixPath)
	}
}

// sameAddress reports whether two addresses cannot both be listened on.
func sameAddress(a, b string) bool {
	pathA, unixA := listen.UnixPath(a)
	pathB, unixB := listen.UnixPath(b)
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

func (c *checker) networks(key string, list []string) {
	for i, text := range list {
		if err := listen.CheckNetwork(text); err != nil {
			c.Add(fmt.Sprintf("%s[%d]", key, i), "%v", err)
		}
	}
}

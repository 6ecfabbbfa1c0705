package codec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// The parts of a header of version 2.
const (
	v2      = "\r\n\r\n\x00\r\nQUIT\n"
	alice4  = "\xc0\x00\x02\x01" // 192.0.2.1
	server4 = "\xc6\x33\x64\x01" // 198.51.100.1
	alice6  = "\x20\x01\x0d\xb8" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	server6 = "\x20\x01\x0d\xb8" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"
	mapped4 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff" + alice4
	ports   = "\xdc\x04\x01\xbb" // 56324, 443
)

// proxyV2 draws a header of version 2:
//
//	signature                            | version, command | family, transport | length  | the rest
//	0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A  | 21               | 11                | 00 0C   | ...
func proxyV2(command, family byte, rest string) string {
	return v2 + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
}

var proxyHeaders = []struct {
	sentence string
	header   string
	source   string // "" for none
	err      error
}{
	{"version 1 has addresses of IPv4", "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", "192.0.2.1:56324", nil},
	{"version 1 has addresses of IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", "[2001:db8::1]:56324", nil},
	{"an IPv4 address may be written as IPv6", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 1 2\r\n", "192.0.2.1:1", nil},
	{"ports may be at their bounds", "PROXY TCP4 192.0.2.1 198.51.100.1 0 65535\r\n", "192.0.2.1:0", nil},
	{"a balancer may not know", "PROXY UNKNOWN\r\n", "", nil},
	{"what follows UNKNOWN means nothing", "PROXY UNKNOWN ffff::1 ffff::2 x y z\r\n", "", nil},
	{"the longest line is taken", "PROXY UNKNOWN" + strings.Repeat(" ", 107-15) + "\r\n", "", nil},
	{"one byte more is not", "PROXY UNKNOWN" + strings.Repeat(" ", 108-15) + "\r\n", "", ErrProxyLineTooLong},
	{"a line that never ends is not", "PROXY TCP4 " + strings.Repeat("1", 200), "", ErrProxyLineTooLong},
	{"a line ends in CR LF", "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n", "", ErrProxyLineEnd},
	{"the signature alone is no line", "PROXY \n", "", ErrProxyLineEnd},
	{"UDP is not passed on", "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n", "", ErrProxyProtocol},
	{"the protocol has a case", "PROXY tcp4 192.0.2.1 198.51.100.1 1 2\r\n", "", ErrProxyProtocol},
	{"the protocol must be there", "PROXY \r\n", "", ErrProxyProtocol},
	{"the addresses must be there", "PROXY TCP4\r\n", "", ErrProxyFields},
	{"a port must not be missing", "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n", "", ErrProxyFields},
	{"there are two ports, and not three", "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n", "", ErrProxyFields},
	{"one space stands before each field", "PROXY TCP4 192.0.2.1  198.51.100.1 1 2\r\n", "", ErrProxyFields},
	{"no space stands at the end", "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n", "", ErrProxyFields},
	{"TCP4 has no IPv6", "PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n", "", ErrProxyAddress},
	{"TCP6 has no IPv4", "PROXY TCP6 2001:db8::1 198.51.100.1 1 2\r\n", "", ErrProxyAddress},
	{"an address has no leading zeros", "PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n", "", ErrProxyAddress},
	{"an address has no zone", "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n", "", ErrProxyAddress},
	{"an address is no name", "PROXY TCP4 localhost 198.51.100.1 1 2\r\n", "", ErrProxyAddress},
	{"a port has no leading zeros", "PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n", "", ErrProxyPort},
	{"a port has no sign", "PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n", "", ErrProxyPort},
	{"a port has 16 bits", "PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n", "", ErrProxyPort},
	{"a port is not a CR", "PROXY TCP4 192.0.2.1 198.51.100.1 1 \r\r\n", "", ErrProxyPort},

	{"version 2 has addresses of IPv4", proxyV2(0x21, 0x11, alice4+server4+ports), "192.0.2.1:56324", nil},
	{"version 2 has addresses of IPv6", proxyV2(0x21, 0x21, alice6+server6+ports), "[2001:db8::1]:56324", nil},
	{"an IPv4 address may lie in one of IPv6", proxyV2(0x21, 0x21, mapped4+mapped4+ports), "192.0.2.1:56324", nil},
	{"a Unix socket has no address", proxyV2(0x21, 0x31, strings.Repeat("\x00", 216)), "", nil},
	{"a balancer may not know the family", proxyV2(0x21, 0x00, ""), "", nil},
	{"a balancer's own check is LOCAL", proxyV2(0x20, 0x00, ""), "", nil},
	{"the addresses of LOCAL mean nothing", proxyV2(0x20, 0x11, alice4+server4+ports), "", nil},
	{"neither does the family of LOCAL", proxyV2(0x20, 0xFF, "abc"), "", nil},
	{"extensions are skipped", proxyV2(0x21, 0x11, alice4+server4+ports+"\x02\x00\x05a.com\x04\x00\x00"), "192.0.2.1:56324", nil},
	{"the longest block is taken", proxyV2(0x21, 0x11, alice4+server4+ports+strings.Repeat("x", 524)), "192.0.2.1:56324", nil},
	{"one byte more is not", proxyV2(0x21, 0x11, alice4+server4+ports+strings.Repeat("x", 525)), "", ErrProxyBlockTooLong},
	{"a block of 64 KiB is refused at its length", v2 + "\x21\x11\xff\xff", "", ErrProxyBlockTooLong},
	{"version 1 has no signature of version 2", proxyV2(0x11, 0x11, alice4+server4+ports), "", ErrProxyVersion},
	{"version 3 is not known", proxyV2(0x31, 0x11, alice4+server4+ports), "", ErrProxyVersion},
	{"a third command is not known", proxyV2(0x22, 0x11, alice4+server4+ports), "", ErrProxyCommand},
	{"datagrams are not passed on", proxyV2(0x21, 0x12, alice4+server4+ports), "", ErrProxyFamily},
	{"a fourth family is not known", proxyV2(0x21, 0x41, alice4+server4+ports), "", ErrProxyFamily},
	{"the addresses must fit into the length", proxyV2(0x21, 0x11, alice4+server4+ports[:3]), "", ErrProxyAddressMissing},
	{"those of IPv6 too", proxyV2(0x21, 0x21, alice4+server4+ports), "", ErrProxyAddressMissing},

	{"a request is no header", "GET / HTTP/1.1\r\n", "", ErrNoProxyHeader},
	{"neither is one that begins alike", "PROPFIND / HTTP/1.1\r\n", "", ErrNoProxyHeader},
	{"neither is TLS", "\x16\x03\x01\x00\x05hello", "", ErrNoProxyHeader},
	{"neither are empty lines", "\r\n\r\nGET / HTTP/1.1\r\n", "", ErrNoProxyHeader},
}

func TestParseProxy(t *testing.T) {
	for _, test := range proxyHeaders {
		t.Run(test.sentence, func(t *testing.T) {
			h, size, err := ParseProxy([]byte(test.header + "GET / HTTP/1.1\r\n"))
			source := ""
			if h.Source.IsValid() {
				source = h.Source.String()
			}
			if err != test.err || source != test.source {
				t.Fatalf("got %q, %v; want %q, %v", source, err, test.source, test.err)
			}
			if err == nil && size != len(test.header) {
				t.Errorf("its size is %d, want %d", size, len(test.header))
			}
			if h.Source.IsValid() != h.Destination.IsValid() {
				t.Errorf("one of the addresses is missing: %+v", h)
			}
		})
	}
}

// Of a header that will be taken, any part needs more; one that will be refused may be at any byte, and
// then stays refused.
func TestParseProxyByteByByte(t *testing.T) {
	for _, test := range proxyHeaders {
		t.Run(test.sentence, func(t *testing.T) {
			var refused error
			for n := range len(test.header) {
				h, size, err := ParseProxy([]byte(test.header[:n]))
				if size != 0 || h != (ProxyHeader{}) {
					t.Fatalf("taken after %d of %d bytes", n, len(test.header))
				}
				if refused != nil && err != refused || err != nil && err != test.err {
					t.Fatalf("after %d bytes it is %v, before it was %v", n, err, refused)
				}
				refused = err
			}
		})
	}
}

func TestParseProxyTellsTheDestination(t *testing.T) {
	for _, header := range []string{"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", proxyV2(0x21, 0x11, alice4+server4+ports)} {
		if h, _, err := ParseProxy([]byte(header)); h.Destination != netip.MustParseAddrPort("198.51.100.1:443") {
			t.Errorf("%q is for %v, %v", header, h.Destination, err)
		}
	}
}

// FuzzProxy: whatever comes, a part of it never says something else than the whole, nothing is taken
// beyond the limit, and nothing waits beyond it.
func FuzzProxy(f *testing.F) {
	for _, test := range proxyHeaders {
		f.Add([]byte(test.header))
		f.Add([]byte(test.header + "GET / HTTP/1.1\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, size, err := ParseProxy(b)
		if size > min(len(b), MaxProxyHeader) || err != nil && (size != 0 || h != (ProxyHeader{})) {
			t.Fatalf("%+v of %d bytes and %v", h, size, err)
		}
		if size == 0 && err == nil && len(b) >= MaxProxyHeader {
			t.Fatalf("%d bytes are not enough", len(b))
		}
		for n := range len(b) {
			partly, part, wrong := ParseProxy(b[:n])
			switch {
			case wrong != nil && !errors.Is(err, wrong):
				t.Fatalf("after %d bytes %v, in the end %v", n, wrong, err)
			case part != 0 && (part != size || partly != h):
				t.Fatalf("after %d bytes %+v, in the end %+v", n, partly, h)
			case part == 0 && wrong == nil && size != 0 && n >= size:
				t.Fatalf("%d bytes are not enough for a header of %d", n, size)
			}
		}
	})
}

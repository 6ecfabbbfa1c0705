package limit

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"carillon/internal/testenv"
)

func TestKey(t *testing.T) {
	for _, test := range []struct {
		sentence, a, b string
		same           bool
	}{
		{"an address is itself", "192.0.2.1", "192.0.2.1", true},
		{"two are two", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 is the same written as IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"a network of 64 bits is one", "2001:db8::1", "2001:db8::ffff:1:2:3", true},
		{"two networks are two", "2001:db8::1", "2001:db8:0:1::1", false},
		{"no IPv4 is this machine's IPv6", "0.0.0.0", "::1", false},
		{"zones mean nothing", "fe80::1%eth0", "fe80::2%eth1", true},
	} {
		if same := KeyOf(netip.MustParseAddr(test.a)) == KeyOf(netip.MustParseAddr(test.b)); same != test.same {
			t.Errorf("%s: %s and %s", test.sentence, test.a, test.b)
		}
	}
}

// Whatever clients fill, and leave again, gives its memory back.
func TestAddressesGiveTheirMemoryBack(t *testing.T) {
	a := NewAddresses(time.Now())
	address := func(i int) Key {
		return KeyOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	testenv.GivesMemoryBack(t, 16, func(i int) { a.Add(address(i), -1) }, func(i int) { a.Remove(address(i)) })
	runtime.KeepAlive(a)
}

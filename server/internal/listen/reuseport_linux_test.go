package listen

import (
	"net/netip"
	"testing"
)

func TestParseTableAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000:0050":                         "0.0.0.0:80",
		"00000000000000000000000001000000:1F90": "[::1]:8080",
		"00000000000000000000000000000000:FFFF": "[::]:65535",
	} {
		got, err := parseTableAddress(text) // as a machine writes it whose bytes are in little-endian order
		if err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s is %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0100007F", "0100007F:", "0100:1F90", "0100007F:1F90F", "x100007F:1F90"} {
		if got, err := parseTableAddress(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

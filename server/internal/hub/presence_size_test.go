package hub

import (
	"strings"
	"testing"
)

// A reply about presence has a size that one loop can encode at once, whatever subjects tokens have.
func TestPresenceHasABound(t *testing.T) {
	for name, subject := range map[string]string{"none": "", "ASCII": strings.Repeat("x", 5000), "escaped": strings.Repeat("\u2028", 1800)} {
		p := Presence{Topic: "a", Count: 5000}
		for range p.Count {
			if !p.add(Presentee{ID: "18446744073709551615", Subject: subject}) {
				break
			}
		}
		n := len(p.AppendTo(nil))
		if n > maxPresentBytes+100 || len(p.Connections) > maxPresent || len(p.Connections) == 0 {
			t.Errorf("%s: %d bytes list %d connections", name, n, len(p.Connections))
		}
		if p.add(Presentee{ID: "1"}) {
			t.Errorf("%s: a list that was full takes another one", name)
		}
	}
}

package cluster

import (
	"fmt"
	"strconv"
	"strings"

	"carillon/internal/redact"
)

// leastVersion is the first nats-server that topics with history can be kept in. 2.9 can do all that is needed; but
// when three of its servers had been killed at once, a message was gone that had been acknowledged, and all later ones
// had other sequences.
const leastVersion = "2.10"

// checkVersion reports whether the NATS server that was found will do.
func (b *Broker) checkVersion() error {
	have := b.nc.ConnectedServerVersion()
	if len(b.byRule) == 0 || !isOlder(have, leastVersion) {
		return nil
	}
	return fmt.Errorf("nats-server %s at %s is too old for persistent topics, which need %s or later (transient topics and broadcasts do not)",
		have, redact.URL(b.nc.ConnectedUrl()), leastVersion)
}

// isOlder compares versions by their first two numbers. One that has none, such as a private build, is not older.
func isOlder(have, least string) bool {
	h, ok := twoNumbers(have)
	l, _ := twoNumbers(least)
	return ok && (h[0] < l[0] || h[0] == l[0] && h[1] < l[1])
}

func twoNumbers(version string) (n [2]int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return n, false
	}
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(parts[i]); err != nil {
			return n, false
		}
	}
	return n, true
}

package reactor

import (
	"time"

	"carillon/codec"
	"carillon/server/internal/limit"
	"carillon/server/stats"
)

// mistakes bounds how often a client may ask for what makes no sense, or what it may not have: each time costs the loop
// more than it costs the client. Owned by the loop.
type mistakes struct{ debt, at uint32 }

// What a client may do wrong: so many requests a second, and MistakeBurst of them at once, which is more than the
// subscriptions that it may have by default. More close the connection.
const (
	mistakesPerSecond = 10
	MistakeBurst      = 256
)

var mistakePace = limit.NewTokenBucket(mistakesPerSecond, MistakeBurst*time.Second/mistakesPerSecond)

// allow charges for a mistake at a time of the shard's clock, and reports whether there may be one more.
func (m *mistakes) allow(now uint32) bool {
	m.debt, m.at = limit.Decay(m.debt, now-m.at), now
	return mistakePace.Allow(&m.debt, 1)
}

// none reports whether all mistakes are forgotten.
func (m *mistakes) none(now uint32) bool { return limit.Decay(m.debt, now-m.at) == 0 }

// isMistake reports whether an error with this code is the client's own.
func isMistake(code string) bool {
	switch code {
	case "bad_request", "invalid_topic", "not_allowed", "invalid_token",
		"already_subscribed", "overlap", "not_subscribed", "too_many_subscriptions", "too_large":
		return true
	}
	return false
}

// MayErr charges the client for an error, and closes the connection if there have been too many.
func (c *Conn) MayErr(code string) bool {
	if !isMistake(code) || c.NeedWorkload().mistakes.allow(c.sh.Clock) {
		return true
	}
	if !c.asked.Swap(true) {
		c.sh.Stats.Cut(stats.CutMistakes)
		c.Mark(MarkPeerDone, true) // the rest is not read
		c.CloseInOrder(CloseFail, codec.ClosePolicyViolation, "too many refused requests")
	}
	return false
}

// Package drain says when each connection is closed while a server drains, and when its client shall come back.
package drain

import (
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"carillon/codec"
)

// Schedule says when each connection is closed while the server drains. It is immutable, one for all loops, and needs
// nothing of a connection but its id: the sweeps of the loops ask how far the schedule has come and close those whose
// turn that makes it.
type Schedule struct {
	Began     time.Time
	Pace      time.Duration // the time over which connections are closed; 0 is at once
	Random    bool          // the order; otherwise the oldest go first
	quantiles []uint64      // for the oldest first: ids at equal steps through all that were open, ascending
	Code      codec.CloseCode
	back      time.Duration // over which clients are asked to come back
}

// The number of marks between which the ids are taken to be evenly spread.
const maxQuantiles = 4096

// Clients come back at up to this rate: where they are closed faster than that, they are asked to wait.
const returnRate = 1000

const (
	ShortestReturn = time.Second // over which at least clients are asked to come back
	longestReturn  = time.Minute
)

// Plan fills in what follows from the number of connections, and from their ids, which it may look at.
func (p *Schedule) Plan(total int, ids iter.Seq[uint64]) {
	p.back = min(max(time.Duration(total)*time.Second/returnRate-p.Pace, ShortestReturn), longestReturn)
	if p.Pace > 0 && !p.Random {
		p.quantiles = thin(slices.Sorted(ids), maxQuantiles)
	}
}

// thin keeps a limited number of values at equal steps, the first and the last among them.
func thin(sorted []uint64, most int) []uint64 {
	if len(sorted) <= most {
		return sorted
	}
	kept := make([]uint64, most)
	for i := range kept {
		kept[i] = sorted[i*(len(sorted)-1)/(most-1)]
	}
	return kept
}

// Over reports whether it is everybody's turn.
func (p *Schedule) Over(now time.Time) bool { return now.Sub(p.Began) >= p.Pace }

// Ends is when the last connection is asked to go.
func (p *Schedule) Ends() time.Time { return p.Began.Add(p.Pace) }

// Progress is how far the schedule has come: it is the turn of all whose place is below that.
func (p *Schedule) Progress(now time.Time) uint64 {
	if p.Over(now) {
		return math.MaxUint64
	}
	part := float64(now.Sub(p.Began)) / float64(p.Pace)
	if p.Random {
		return uint64(part * (1 << 63) * 2)
	}
	if len(p.quantiles) == 0 {
		return 0
	}
	at := part * float64(len(p.quantiles)-1)
	i := min(int(at), len(p.quantiles)-2)
	if i < 0 { // there is one
		return p.quantiles[0]
	}
	low, high := p.quantiles[i], p.quantiles[i+1]
	return low + uint64((at-float64(i))*float64(high-low))
}

// Position is where a connection stands in the order.
func (p *Schedule) Position(id uint64) uint64 {
	if p.Random {
		return mix(id)
	}
	return id
}

// mix spreads ids, which are consecutive, over all numbers: the last step of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// Reason is why a connection is closed whose turn it is, with when its client shall connect again.
func (p *Schedule) Reason(id uint64) string {
	return WithRetry("server is shutting down", RetryAfter(id, p.back))
}

// RetryAfter is when the client of a connection that is closed shall connect again. It is drawn from other bits of the
// id than the order of the schedule, or those that are closed together would come back together.
func RetryAfter(id uint64, within time.Duration) time.Duration {
	return 100*time.Millisecond + time.Duration(float64(mix(^id)>>11)/(1<<53)*float64(within))
}

// retryMark begins what the server asks of the client at the end of a close reason: see docs/protocol.md.
const retryMark = "; retry="

// WithRetry appends to a close reason when the client shall connect again.
func WithRetry(reason string, after time.Duration) string {
	return reason + retryMark + strconv.FormatInt(after.Milliseconds(), 10)
}

// RetryOf is what WithRetry has put into a reason, as text, or "".
func RetryOf(reason string) string {
	_, retry, _ := strings.Cut(reason, retryMark)
	if strings.Trim(retry, "0123456789") != "" {
		return "" // the reason is the application's
	}
	return retry
}

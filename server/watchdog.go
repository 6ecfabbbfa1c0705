package server

import (
	"bytes"
	"context"
	"runtime"
	"strconv"
	"time"

	"carillon/server/internal/logs"
)

// A handler that blocks stops a whole loop, and the loop cannot say so. Somebody else looks, and writes
// down which loop it is, what it has called last and where it stands.

// hookKind is a function of the application that a loop calls.
type hookKind uint8

const (
	hookUpgrade hookKind = iota
	hookOpen
	hookMessage
	hookError
	hookClose
	hookDone
	hookDo
	hookAfter
	hookRefused
	numHooks
)

var hookNames = [numHooks]string{"Upgrade", "Open", "Message", "Error", "Close", "Done", "Do", "After", "Refused"}

// callSite is what a loop calls: one for each hook of an endpoint.
type callSite struct {
	path string
	hook string
}

func sitesOf(path string) (sites [numHooks]callSite) {
	for h, name := range hookNames {
		sites[h] = callSite{path, name}
	}
	return sites
}

// calls notes what is called next. It stays noted until something else is called, so that a loop which
// calls the same again and again writes nothing that another processor reads.
func (c *Conn) calls(h hookKind) {
	if sh := c.sh; c.ep != nil && sh.site != &c.ep.sites[h] {
		sh.site = &c.ep.sites[h]
		sh.called.Store(sh.site)
	}
}

const (
	// blockedAfter is what a handler should never take. Longer walks are sliced.
	blockedAfter = time.Second

	// blockedLook is how often it is looked at.
	blockedLook = 250 * time.Millisecond

	// maxTraced is with how many goroutines the stack is looked for: all of them stop meanwhile, 10 ms for
	// that many.
	maxTraced = 2000
	maxStacks = 4 << 20
	maxStack  = 4 << 10
)

// watchLoops tells of loops that are blocked, and of those that are not any more, until ctx ends.
func (e *engine) watchLoops(ctx context.Context) {
	since := map[*shard]time.Duration{}
	every(ctx, min(blockedLook, e.blockedAfter/4), func() {
		now := e.uptime()
		for i, sh := range e.allShards() {
			silent := sh.mail.waits(now)
			began, known := since[sh]
			switch {
			case !known && silent > e.blockedAfter:
				since[sh] = now - silent
				e.tellBlocked(i, sh, silent)
			case known && now-silent > began: // it has come round since
				delete(since, sh)
				e.log.Warn("event loop is running again", "loop", i, "after", (now - silent - began).Round(time.Millisecond))
			}
		}
	})
}

// longestSilence is that of the loop that is worst off.
func (e *engine) longestSilence() (longest time.Duration) {
	now := e.uptime()
	for _, sh := range e.allShards() {
		longest = max(longest, sh.mail.waits(now))
	}
	return longest
}

// tellBlocked logs what a loop does that does not come round.
func (e *engine) tellBlocked(i int, sh *shard, silent time.Duration) {
	sh.stats.Blocked.Add(1)
	args := []any{"loop", i, "for", silent.Round(time.Millisecond)}
	if site := sh.called.Load(); site != nil {
		args = append(args, "last_called", site.hook, "path", site.path)
	}
	if stack := stackOf(sh.goroutine); stack != "" {
		args = append(args, "stack", stack)
	}
	e.log.Warn("event loop is blocked; its connections are waiting", args...)
}

// stackOf is the stack of a goroutine, or "" if it costs too much or is not found.
func stackOf(g goroutine) string {
	if g == 0 || runtime.NumGoroutine() > maxTraced {
		return ""
	}
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= maxStacks {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 4*len(buf))
	}
	head := append(strconv.AppendUint([]byte("goroutine "), uint64(g), 10), " ["...)
	for part := range bytes.SplitSeq(buf, []byte("\n\n")) {
		if bytes.HasPrefix(part, head) {
			return logs.ShortenTo(string(part), maxStack)
		}
	}
	return ""
}

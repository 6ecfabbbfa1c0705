package reactor

import (
	"bytes"
	"context"
	"runtime"
	"strconv"
	"time"

	"carillon/server/internal/logs"
)

// A handler that blocks stops a whole loop, and the loop cannot say so. The watchdog looks, and writes
// down which loop it is, what it has called last and where it stands.

// HookKind is a function of the application that a loop calls.
type HookKind uint8

const (
	HookUpgrade HookKind = iota
	HookOpen
	HookMessage
	HookError
	HookClose
	hookDone
	hookDo
	hookAfter
	HookRefused
	numHooks
)

// HookNames are the names of hooks in logs and metrics.
var HookNames = [numHooks]string{"Upgrade", "Open", "Message", "Error", "Close", "Done", "Do", "After", "Refused"}

// callSite is what a loop calls: one for each hook of an endpoint.
type callSite struct {
	path string
	hook string
}

// SitesOf are the call sites of the endpoint at a path.
func SitesOf(path string) (sites [numHooks]callSite) {
	for h, name := range HookNames {
		sites[h] = callSite{path, name}
	}
	return sites
}

// Calls notes what is called next. It stays noted until something else is called, so that a loop which
// Calls the same again and again writes nothing that another processor reads.
func (c *Conn) Calls(h HookKind) {
	if sh := c.sh; c.ep != nil && sh.site != &c.ep.Sites[h] {
		sh.site = &c.ep.Sites[h]
		sh.called.Store(sh.site)
	}
}

const (
	// blockedAfter is what a handler should never take. Longer walks are sliced.
	blockedAfter = time.Second

	// BlockedLook is how often it is looked at.
	BlockedLook = 250 * time.Millisecond

	// maxTraced is with how many goroutines the stack is looked for: all of them stop meanwhile, 10 ms for
	// that many.
	maxTraced = 2000
	maxStacks = 4 << 20
	maxStack  = 4 << 10
)

// watchLoops tells of loops that are blocked, and of those that are not any more, until ctx ends.
func (e *Engine) watchLoops(ctx context.Context) {
	since := map[*Shard]time.Duration{}
	Every(ctx, min(BlockedLook, e.BlockedAfter/4), func() {
		now := e.Uptime()
		for i, sh := range e.AllShards() {
			silent := sh.Mail.Waits(now)
			began, known := since[sh]
			switch {
			case !known && silent > e.BlockedAfter:
				since[sh] = now - silent
				e.tellBlocked(i, sh, silent)
			case known && now-silent > began: // it has come round since
				delete(since, sh)
				e.Log.Warn("event loop is running again", "loop", i, "after", (now - silent - began).Round(time.Millisecond))
			}
		}
	})
}

// LongestSilence is that of the loop that is worst off.
func (e *Engine) LongestSilence() (longest time.Duration) {
	now := e.Uptime()
	for _, sh := range e.AllShards() {
		longest = max(longest, sh.Mail.Waits(now))
	}
	return longest
}

// tellBlocked logs what a loop does that does not come round.
func (e *Engine) tellBlocked(i int, sh *Shard, silent time.Duration) {
	sh.Stats.Blocked.Add(1)
	args := []any{"loop", i, "for", silent.Round(time.Millisecond)}
	if site := sh.called.Load(); site != nil {
		args = append(args, "last_called", site.hook, "path", site.path)
	}
	if stack := stackOf(sh.goroutine); stack != "" {
		args = append(args, "stack", stack)
	}
	e.Log.Warn("event loop is blocked; its connections are waiting", args...)
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

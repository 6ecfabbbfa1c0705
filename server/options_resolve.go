package server

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"carillon/codec"
	"carillon/internal/redact"
	"carillon/server/internal/option"
)

// OptionError is an option that cannot be used.
type OptionError = option.Error

// Resolve returns a copy in which every zero is replaced by its default, after checking each value
// and the rules between them. The error joins one [OptionError] for each problem.
//
// MaxConnections stays zero: only the running server can know the descriptor limit.
func (o Options) Resolve() (Options, error) {
	c := checker{}
	o.resolveListeners(&c)
	if o.PublicURL != "" {
		if _, problem := publicURL(o.PublicURL); problem != "" {
			c.add("public_url", "%q %s", redact.URL(o.PublicURL), problem)
		}
	}
	o.TLS.resolve(&c, "tls.")
	c.networks("trusted_proxies", o.TrustedProxies)
	if o.Loops < 0 || o.Loops > 255 {
		c.add("loops", "%d is out of range: expected 1 to 255, or 0 for one per processor", o.Loops)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Internal.resolve(&c, o.publicAddresses())
	o.Agent.resolve(&c, append(o.publicAddresses(), namedAddress{"internal.listen", o.Internal.Listen}))
	o.Limits.resolve(&c)
	o.Ping.resolve(&c)
	o.Connections.resolve(&c)
	o.Drain.resolve(&c)
	o.resolveTakeover(&c)

	endpoints := make([]Endpoint, len(o.Endpoints))
	paths := map[string]int{}
	for i, e := range o.Endpoints {
		key := fmt.Sprintf("endpoints[%d].", i)
		e.resolve(&c, key)
		if first, taken := paths[e.Path]; taken {
			c.add(key+"path", "%s is served by endpoints[%d] already", e.Path, first)
		} else {
			paths[e.Path] = i
		}
		endpoints[i] = e
	}
	o.Endpoints = endpoints
	c.healthPath(&o)
	o.Topics = slices.Clone(o.Topics)
	for i := range o.Topics {
		resolveRule(&o.Topics[i], &c, fmt.Sprintf("topics[%d].", i))
	}
	return o, errors.Join(c.problems...)
}

func isPath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsAny(path, "?# ")
}

func (l *Limits) resolve(c *checker) {
	if l.MaxConnections < 0 || l.MaxConnections > math.MaxInt32 {
		c.add("limits.max_connections", "%d is out of range: expected 1 or more, or 0 for what the descriptor limit allows", l.MaxConnections)
	}
	c.size("limits.max_head", &l.MaxHead, 8<<10, false)
	if l.MaxHead > 0 && (l.MaxHead < 256 || l.MaxHead > 1<<20) {
		c.add("limits.max_head", "%v is out of range: expected 256B to 1MiB", l.MaxHead)
	}
	c.duration("limits.handshake_timeout", &l.HandshakeTimeout, 10*time.Second, true)
	if l.MaxTLSHandshakes == 0 {
		l.MaxTLSHandshakes = 1024
	}
	l.MaxTLSHandshakes = max(l.MaxTLSHandshakes, -1)
	c.size("limits.max_message", &l.MaxMessage, 1<<20, true)
	if l.MaxFragments == 0 {
		l.MaxFragments = 1024
	}
	l.MaxFragments = max(l.MaxFragments, -1)
	c.duration("limits.idle_timeout", &l.IdleTimeout, -1, true)
	c.duration("limits.write_timeout", &l.WriteTimeout, 30*time.Second, true)
	c.duration("limits.body_timeout", &l.BodyTimeout, 30*time.Second, true)
	c.duration("limits.close_timeout", &l.CloseTimeout, 5*time.Second, false)
	c.size("limits.max_backlog", &l.MaxBacklog, 64<<20, true)
	if l.MaxTopics == 0 {
		l.MaxTopics = 1_000_000
	}
	l.MaxTopics = max(l.MaxTopics, -1)
	c.size("limits.max_key_memory", &l.MaxKeyMemory, 64<<20, true)
	l.resolveRates(c)
	l.MaxMemory = max(l.MaxMemory, -1) // 0 stays: see EffectiveMaxMemory
}

func (p *Ping) resolve(c *checker) {
	c.duration("ping.interval", &p.Interval, 25*time.Second, true)
	c.duration("ping.timeout", &p.Timeout, 10*time.Second, true)
	c.duration("ping.lb_idle_timeout", &p.LBIdleTimeout, -1, true)
	c.jitter("ping.jitter", &p.Jitter, "interval")
}

func (e *Endpoint) resolve(c *checker, key string) {
	if !isPath(e.Path) {
		c.add(key+"path", "%q is not a path: expected one that starts with / and has no query, fragment or space", e.Path)
	}
	switch {
	case e.Mode == "" && e.Handler.empty():
		c.add(key+"mode", "is missing: expected %s, %s or %s", ModeEcho, ModeBroadcast, ModeTopics)
	case e.Mode != "" && e.Mode != ModeEcho && e.Mode != ModeBroadcast && e.Mode != ModeTopics:
		c.add(key+"mode", "%q is unknown: expected %s, %s or %s", e.Mode, ModeEcho, ModeBroadcast, ModeTopics)
	case e.Mode != "" && e.Handler.Message != nil:
		c.add(key+"mode", "%s and a Message handler of your own exclude each other", e.Mode)
	}
	e.Auth.resolve(c, key+"auth.")
	e.Topics.resolve(c, key+"topics.")
	c.origins(key+"origins", e.Origins)
	if len(e.Subprotocols) > maxSubprotocols {
		c.add(key+"subprotocols", "has %d entries: expected at most %d", len(e.Subprotocols), maxSubprotocols)
	}
	seen := map[string]bool{}
	for i, p := range e.Subprotocols {
		switch {
		case !codec.IsToken(p):
			c.add(fmt.Sprintf("%ssubprotocols[%d]", key, i), "%q is not a token (RFC 9110, section 5.6.2)", p)
		case seen[p]:
			c.add(fmt.Sprintf("%ssubprotocols[%d]", key, i), "%q is listed twice", p)
		}
		seen[p] = true
	}
	c.size(key+"compression.threshold", &e.Compression.Threshold, 512, true)
	if e.Compression.Level == 0 {
		e.Compression.Level = 1
	}
	if e.Compression.Level < 1 || e.Compression.Level > 9 {
		c.add(key+"compression.level", "%d is out of range: expected 1 (fastest) to 9 (smallest)", e.Compression.Level)
	}
	if e.SlowConsumer.Policy == "" {
		e.SlowConsumer.Policy = PolicyClose
	}
	switch e.SlowConsumer.Policy {
	case PolicyClose, PolicyDropOldest, PolicyDropNewest, PolicyLatest:
	default:
		c.add(key+"slow_consumer.policy", "%q is unknown: expected %s, %s, %s or %s", e.SlowConsumer.Policy,
			PolicyClose, PolicyDropOldest, PolicyDropNewest, PolicyLatest)
	}
	c.size(key+"slow_consumer.max_queue", &e.SlowConsumer.MaxQueue, 1<<20, true)
	if e.SlowConsumer.CloseCode == 0 {
		e.SlowConsumer.CloseCode = int(codec.CloseTryAgainLater)
	}
	if n := codec.CloseCode(e.SlowConsumer.CloseCode); n != codec.CloseTryAgainLater && n != codec.ClosePolicyViolation {
		c.add(key+"slow_consumer.close_code", "%d is not allowed: expected 1013 (try again later) or 1008 (policy violation)", n)
	}
}

func (a *TopicAccess) resolve(c *checker, key string) {
	if len(a.Subscribe) == 0 {
		a.Subscribe = []string{">"}
	}
	for i, p := range a.Subscribe {
		c.pattern(fmt.Sprintf("%ssubscribe[%d]", key, i), p)
	}
	for i, p := range a.Publish {
		c.pattern(fmt.Sprintf("%spublish[%d]", key, i), p)
	}
	if a.MaxSubscriptions == 0 {
		a.MaxSubscriptions = 128
	}
	a.MaxSubscriptions = max(a.MaxSubscriptions, -1)
	if a.MaxPatterns == 0 {
		a.MaxPatterns = 16
	}
	a.MaxPatterns = max(a.MaxPatterns, -1)
}

// mostKept is the largest history that can be asked for.
const mostKept = 10_000_000

func resolveRule(r *TopicRule, c *checker, key string) {
	c.pattern(key+"match", r.Match)
	if r.History < 0 || r.History > mostKept {
		c.add(key+"history", "%d is out of range: expected 0 to %d messages", r.History, mostKept)
	}
	if r.Latest {
		r.History = max(r.History, 1)
	}
	c.duration(key+"max_age", &r.MaxAge, 5*time.Minute, true)
	c.size(key+"max_bytes", &r.MaxBytes, 1<<20, true)
}

func (c *checker) pattern(key, name string) {
	var topic *TopicError
	switch {
	case name == "":
		c.add(key, "is missing: expected a topic or pattern, such as prices.eu or prices.>")
	case errors.As(CheckPattern(name), &topic):
		c.add(key, "%q: %s", topic.Name, topic.Problem)
	}
}

// maxSubprotocols leaves 255 for "none" in the byte that a connection keeps.
const maxSubprotocols = 254

// checker collects the problems of a set of options and fills in defaults on the way.
type checker struct{ problems []error }

func (c *checker) add(key, format string, args ...any) {
	c.problems = append(c.problems, &OptionError{Key: key, Problem: fmt.Sprintf(format, args...)})
}

// address says whether an address can be listened on, as far as its text tells.
func (c *checker) address(key, address, such string) bool {
	if _, port, err := net.SplitHostPort(address); err != nil {
		c.add(key, "%q is not an address: expected host:port, such as %s", address, such)
		return false
	} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		c.add(key, "%q has no port from 0 to 65535", address)
		return false
	}
	return true
}

// longest is the upper bound of every time-out: the shards keep times as milliseconds in 32 bits.
const longest = 7 * 24 * time.Hour

func (c *checker) duration(key string, d *time.Duration, def time.Duration, canBeOff bool) {
	switch {
	case *d == 0:
		*d = def
	case *d < 0:
		*d = -1
		if !canBeOff {
			c.add(key, "cannot be turned off: expected a duration such as %v", def)
		}
	case *d < time.Millisecond || *d > longest:
		c.add(key, "%v is out of range: expected 1ms to %v", *d, longest)
	}
}

// jitter is a part of something, by which it varies.
func (c *checker) jitter(key string, part *float64, of string) {
	switch {
	case *part == 0:
		*part = 0.2
	case *part < 0:
		*part = -1
	case *part > 1 || math.IsNaN(*part):
		c.add(key, "%v is out of range: expected a part of the %s, 0 to 1", *part, of)
	}
}

func (c *checker) size(key string, s *Size, def Size, canBeOff bool) {
	switch {
	case *s == 0:
		*s = def
	case *s < 0:
		*s = -1
		if !canBeOff {
			c.add(key, "cannot be turned off: expected a size such as %v", def)
		}
	}
}

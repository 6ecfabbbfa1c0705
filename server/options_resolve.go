package server

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"carillon/codec"
	"carillon/internal/redact"
	"carillon/server/internal/auth"
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
			c.Add("public_url", "%q %s", redact.URL(o.PublicURL), problem)
		}
	}
	o.TLS.resolve(&c, "tls.")
	c.networks("trusted_proxies", o.TrustedProxies)
	if o.Loops < 0 || o.Loops > 255 {
		c.Add("loops", "%d is out of range: expected 1 to 255, or 0 for one per processor", o.Loops)
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
			c.Add(key+"path", "%s is already the path of endpoints[%d]", e.Path, first)
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
	return o, c.Err()
}

func isPath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsAny(path, "?# ")
}

func (l *Limits) resolve(c *checker) {
	if l.MaxConnections < 0 || l.MaxConnections > math.MaxInt32 {
		c.Add("limits.max_connections", "%d is out of range: expected 1 or more, or 0 for what the descriptor limit allows", l.MaxConnections)
	}
	c.Size("limits.max_head", &l.MaxHead, 8<<10, false)
	if l.MaxHead > 0 && (l.MaxHead < 256 || l.MaxHead > 1<<20) {
		c.Add("limits.max_head", "%v is out of range: expected 256B to 1MiB", l.MaxHead)
	}
	c.Duration("limits.handshake_timeout", &l.HandshakeTimeout, 10*time.Second, true)
	if l.MaxTLSHandshakes == 0 {
		l.MaxTLSHandshakes = 1024
	}
	l.MaxTLSHandshakes = max(l.MaxTLSHandshakes, -1)
	c.Size("limits.max_message", &l.MaxMessage, 1<<20, true)
	if l.MaxFragments == 0 {
		l.MaxFragments = 1024
	}
	l.MaxFragments = max(l.MaxFragments, -1)
	c.Duration("limits.idle_timeout", &l.IdleTimeout, -1, true)
	c.Duration("limits.write_timeout", &l.WriteTimeout, 30*time.Second, true)
	c.Duration("limits.body_timeout", &l.BodyTimeout, 30*time.Second, true)
	c.Duration("limits.close_timeout", &l.CloseTimeout, 5*time.Second, false)
	c.Size("limits.max_backlog", &l.MaxBacklog, 64<<20, true)
	if l.MaxTopics == 0 {
		l.MaxTopics = 1_000_000
	}
	l.MaxTopics = max(l.MaxTopics, -1)
	c.Size("limits.max_key_memory", &l.MaxKeyMemory, 64<<20, true)
	l.resolveRates(c)
	l.MaxMemory = max(l.MaxMemory, -1) // 0 stays: see EffectiveMaxMemory
}

func (p *Ping) resolve(c *checker) {
	c.Duration("ping.interval", &p.Interval, 25*time.Second, true)
	c.Duration("ping.timeout", &p.Timeout, 10*time.Second, true)
	c.Duration("ping.lb_idle_timeout", &p.LBIdleTimeout, -1, true)
	c.Jitter("ping.jitter", &p.Jitter, "interval")
}

func (e *Endpoint) resolve(c *checker, key string) {
	if !isPath(e.Path) {
		c.Add(key+"path", "%q is not a path: expected one that starts with / and has no query, fragment or space", e.Path)
	}
	switch {
	case e.Mode == "" && e.Handler.empty():
		c.Add(key+"mode", "is missing: expected %s, %s or %s", ModeEcho, ModeBroadcast, ModeTopics)
	case e.Mode != "" && e.Mode != ModeEcho && e.Mode != ModeBroadcast && e.Mode != ModeTopics:
		c.Add(key+"mode", "%q is unknown: expected %s, %s or %s", e.Mode, ModeEcho, ModeBroadcast, ModeTopics)
	case e.Mode != "" && e.Handler.Message != nil:
		c.Add(key+"mode", "%s and a custom Message handler are mutually exclusive", e.Mode)
	}
	auth.Resolve((*auth.JWT)(&e.Auth.JWT), (*auth.Hook)(&e.Auth.Hook), &c.Checker, key+"auth.")
	e.Topics.resolve(c, key+"topics.")
	auth.CheckOrigins(&c.Checker, key+"origins", e.Origins)
	if len(e.Subprotocols) > maxSubprotocols {
		c.Add(key+"subprotocols", "has %d entries: expected at most %d", len(e.Subprotocols), maxSubprotocols)
	}
	seen := map[string]bool{}
	for i, p := range e.Subprotocols {
		switch {
		case !codec.IsToken(p):
			c.Add(fmt.Sprintf("%ssubprotocols[%d]", key, i), "%q is not a token (RFC 9110, section 5.6.2)", p)
		case seen[p]:
			c.Add(fmt.Sprintf("%ssubprotocols[%d]", key, i), "%q is listed twice", p)
		}
		seen[p] = true
	}
	c.Size(key+"compression.threshold", &e.Compression.Threshold, 512, true)
	if e.Compression.Level == 0 {
		e.Compression.Level = 1
	}
	if e.Compression.Level < 1 || e.Compression.Level > 9 {
		c.Add(key+"compression.level", "%d is out of range: expected 1 (fastest) to 9 (smallest)", e.Compression.Level)
	}
	if e.SlowConsumer.Policy == "" {
		e.SlowConsumer.Policy = PolicyClose
	}
	switch e.SlowConsumer.Policy {
	case PolicyClose, PolicyDropOldest, PolicyDropNewest, PolicyLatest:
	default:
		c.Add(key+"slow_consumer.policy", "%q is unknown: expected %s, %s, %s or %s", e.SlowConsumer.Policy,
			PolicyClose, PolicyDropOldest, PolicyDropNewest, PolicyLatest)
	}
	c.Size(key+"slow_consumer.max_queue", &e.SlowConsumer.MaxQueue, 1<<20, true)
	if e.SlowConsumer.CloseCode == 0 {
		e.SlowConsumer.CloseCode = int(codec.CloseTryAgainLater)
	}
	if n := codec.CloseCode(e.SlowConsumer.CloseCode); n != codec.CloseTryAgainLater && n != codec.ClosePolicyViolation {
		c.Add(key+"slow_consumer.close_code", "%d is not allowed: expected 1013 (try again later) or 1008 (policy violation)", n)
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

// maxHistoryLimit is the largest history that can be asked for.
const maxHistoryLimit = 10_000_000

func resolveRule(r *TopicRule, c *checker, key string) {
	c.pattern(key+"match", r.Match)
	if r.History < 0 || r.History > maxHistoryLimit {
		c.Add(key+"history", "%d is out of range: expected 0 to %d messages", r.History, maxHistoryLimit)
	}
	if r.Latest {
		r.History = max(r.History, 1)
	}
	c.Duration(key+"max_age", &r.MaxAge, 5*time.Minute, true)
	c.Size(key+"max_bytes", &r.MaxBytes, 1<<20, true)
}

func (c *checker) pattern(key, name string) {
	var topic *TopicError
	switch {
	case name == "":
		c.Add(key, "is missing: expected a topic or pattern, such as prices.eu or prices.>")
	case errors.As(CheckPattern(name), &topic):
		c.Add(key, "%q: %s", topic.Name, topic.Problem)
	}
}

// maxSubprotocols leaves 255 for "none" in the byte that a connection keeps.
const maxSubprotocols = 254

// checker checks the options of a server.
type checker struct{ option.Checker }

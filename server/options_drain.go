package server

import (
	"runtime"
	"time"

	"carillon/codec"
	"carillon/server/internal/option"
)

// Drain is how the server ends: see [Server.Run] and [Server.StartDrain]. First it goes on serving for
// Delay, so that balancers notice; then it gives up the listening socket; then it closes the connections,
// spread over Duration; and at Deadline it cuts what is left.
type Drain struct {
	// Delay is how long new connections are still taken after the drain has begun, while
	// [Server.State] says already that they should go elsewhere. Default off: none.
	Delay time.Duration `yaml:"delay"`

	// Duration is the time over which connections are closed, evenly. Fewer than 100 a second are not
	// worth spreading, so a server with few connections needs less. Default 10 s; negative closes all at
	// once.
	Duration time.Duration `yaml:"duration"`

	// Deadline is how long all of this may take, counted from the beginning of the drain, Delay included;
	// then the rest is cut. It must be longer than Delay and Duration together. Default: 15 s longer.
	Deadline time.Duration `yaml:"deadline"`

	// Order is the order in which connections are closed. Default [OrderOldest].
	Order DrainOrder `yaml:"order"`

	// CloseCode is what clients are told: 1001 (going away), the default, or 1012 (service restart).
	CloseCode int `yaml:"close_code"`
}

// DrainOrder is the order in which connections are closed.
type DrainOrder string

const (
	OrderOldest DrainOrder = "oldest" // those that have been open for the longest time first
	OrderRandom DrainOrder = "random" // in no order, the same for each connection however often it is asked
)

// Connections is what holds for all connections as long as they live.
type Connections struct {
	// MaxAge closes a connection with 1001 when it has been open for so long, so that connections spread
	// anew over servers that have been added. Whole seconds. Default off.
	MaxAge time.Duration `yaml:"max_age"`

	// MaxAgeJitter is the part of MaxAge, 0 to 1, by which a connection's own age may be shorter, so that
	// those that came all at once do not leave all at once. Default 0.2; negative is none.
	MaxAgeJitter float64 `yaml:"max_age_jitter"`
}

// drainSlack is how long queues and closing handshakes may take after the last connection was asked to go.
const drainSlack = 15 * time.Second

func (d *Drain) resolve(c *checker) {
	before := c.Len()
	c.Duration("drain.delay", &d.Delay, -1, true)
	c.Duration("drain.duration", &d.Duration, 10*time.Second, true)
	least := max(d.Delay, 0) + max(d.Duration, 0)
	c.Duration("drain.deadline", &d.Deadline, min(least+drainSlack, option.Longest), false)
	if c.Len() == before && d.Deadline <= least {
		c.Add("drain.deadline", "%v is too short: expected more than drain.delay and drain.duration together, which are %v", d.Deadline, least)
	}
	if d.Order == "" {
		d.Order = OrderOldest
	}
	if d.Order != OrderOldest && d.Order != OrderRandom {
		c.Add("drain.order", "%q is unknown: expected %s or %s", d.Order, OrderOldest, OrderRandom)
	}
	if d.CloseCode == 0 {
		d.CloseCode = int(codec.CloseGoingAway)
	}
	if n := codec.CloseCode(d.CloseCode); n != codec.CloseGoingAway && n != codec.CloseServiceRestart {
		c.Add("drain.close_code", "%d is not allowed: expected 1001 (going away) or 1012 (service restart)", n)
	}
}

func (o *Connections) resolve(c *checker) {
	c.Duration("connections.max_age", &o.MaxAge, -1, true)
	if o.MaxAge > 0 && o.MaxAge < time.Second {
		c.Add("connections.max_age", "%v is out of range: expected 1s to %v", o.MaxAge, option.Longest)
	}
	c.Jitter("connections.max_age_jitter", &o.MaxAgeJitter, "age")
}

func (o *Options) resolveTakeover(c *checker) {
	if o.Takeover && runtime.GOOS != "linux" {
		c.Add("takeover", "is supported on Linux only, where the kernel spreads connections over all listeners")
	}
}

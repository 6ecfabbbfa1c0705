package server

import (
	"fmt"
	"time"
)

// Warnings says what is allowed in resolved options (see [Options.Resolve]) and hardly meant. The server logs
// it at its start and after a reload.
func (o Options) Warnings() []*OptionError {
	var list []*OptionError
	add := func(key, format string, args ...any) {
		list = append(list, &OptionError{Key: key, Problem: fmt.Sprintf(format, args...)})
	}
	p := &o.Ping
	switch {
	case p.LBIdleTimeout <= 0:
	case p.Interval < 0:
		add("ping.interval", "is off, so the balancer will cut quiet connections after %v, which is ping.lb_idle_timeout: "+
			"expected less than that", p.LBIdleTimeout)
	case p.Interval+pingDelay(p.Interval) >= p.LBIdleTimeout:
		add("ping.interval", "%v is not well below ping.lb_idle_timeout, which is %v, so the balancer will cut quiet connections "+
			"before a ping is sent: expected %v or less", p.Interval, p.LBIdleTimeout, (p.LBIdleTimeout / 2).Round(time.Millisecond))
	}
	return list
}

// pingDelay is by how much a ping may be late: the clock's tick, at the longest.
func pingDelay(interval time.Duration) time.Duration { return min(interval/8, time.Second) }

func (s *Server) warn(o *Options) {
	for _, w := range o.Warnings() {
		s.log.Warn("an option is hardly meant so", "key", w.Key, "problem", w.Problem)
	}
}

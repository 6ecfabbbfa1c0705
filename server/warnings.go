package server

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
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
		add("ping.interval", "is off, so the balancer will cut idle connections after %v (ping.lb_idle_timeout): "+
			"expected less than that", p.LBIdleTimeout)
	case p.Interval+pingDelay(p.Interval) >= p.LBIdleTimeout:
		add("ping.interval", "%v is not well below ping.lb_idle_timeout, %v, so the balancer will cut idle connections "+
			"before a ping is sent: expected %v or less", p.Interval, p.LBIdleTimeout, (p.LBIdleTimeout / 2).Round(time.Millisecond))
	}
	if host, _, err := net.SplitHostPort(o.Agent.Listen); err == nil && isAnyHost(host) {
		add("agent.listen", "%s listens on every address of this machine and tells its load to anyone who can reach one: "+
			"expected the address that HAProxy queries, such as 10.0.0.1:8082", o.Agent.Listen)
	}
	return list
}

// isAnyHost reports whether a host to listen on is every address of the machine.
func isAnyHost(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "" || err == nil && ip.Unmap().IsUnspecified()
}

// pingDelay is by how much a ping may be late: the clock's tick, at the longest.
func pingDelay(interval time.Duration) time.Duration { return min(interval/8, time.Second) }

func (s *Server) warn(o *Options) {
	for _, w := range o.Warnings() {
		s.log.Warn("suspicious option", "key", w.Key, "problem", w.Problem)
	}
}

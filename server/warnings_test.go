package server

import (
	"strings"
	"testing"
	"time"
)

// Pings have to come before the balancer's patience ends, with the clock's tick to spare.
func TestWarnsOfPingsThatComeTooLate(t *testing.T) {
	for _, row := range []struct {
		name string
		ping Ping
		want string // a part of the warning; none if empty
	}{
		{"nothing is known of a balancer", Ping{}, ""},
		{"the default before a balancer's usual minute", Ping{LBIdleTimeout: time.Minute}, ""},
		{"a balancer as patient as the interval", Ping{Interval: time.Minute, LBIdleTimeout: time.Minute}, "1m0s is not well below ping.lb_idle_timeout, 1m0s"},
		{"less than a tick between them", Ping{Interval: 59 * time.Second, LBIdleTimeout: time.Minute}, "expected 30s or less"},
		{"more than a tick between them", Ping{Interval: 58 * time.Second, LBIdleTimeout: time.Minute}, ""},
		{"short ones have a short tick", Ping{Interval: 80 * time.Millisecond, LBIdleTimeout: 91 * time.Millisecond}, ""},
		{"jitter only makes an interval shorter, and not for everybody", Ping{Interval: time.Minute, Jitter: 1, LBIdleTimeout: time.Minute}, "not well below"},
		{"no pings at all", Ping{Interval: -1, LBIdleTimeout: time.Minute}, "is off, so the balancer will cut idle connections after 1m0s (ping.lb_idle_timeout)"},
		{"no pings, and nothing known", Ping{Interval: -1}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			o, err := Options{Ping: row.ping}.Resolve()
			if err != nil {
				t.Fatal(err)
			}
			list := o.Warnings()
			if row.want == "" {
				if len(list) > 0 {
					t.Errorf("warns: %v", list[0])
				}
				return
			}
			if len(list) != 1 || list[0].Key != "ping.interval" || !strings.Contains(list[0].Problem, row.want) {
				t.Errorf("warns %v, want %q", list, row.want)
			}
			_, log := startLogged(t, Options{Ping: row.ping, Endpoints: echoAndBroadcast()})
			if !strings.Contains(log.String(), `level=WARN msg="suspicious option" key=ping.interval`) {
				t.Errorf("the log does not say so:\n%s", log)
			}
		})
	}
}

// A port for agents at every address is likely one too many.
func TestWarningOfTheAgentsPort(t *testing.T) {
	for address, warns := range map[string]bool{":8082": true, "0.0.0.0:8082": true, "[::]:8082": true, "10.0.0.1:8082": false, "127.0.0.1:0": false, "off": false} {
		o, err := Options{Endpoints: echoAndBroadcast(), Agent: Agent{Listen: address}}.Resolve()
		if err != nil {
			t.Fatal(err)
		}
		list := o.Warnings()
		if warns != (len(list) == 1 && list[0].Key == "agent.listen" && strings.Contains(list[0].Problem, address+" listens on every address")) || len(list) > 1 {
			t.Errorf("%s: %v", address, list)
		}
	}
}

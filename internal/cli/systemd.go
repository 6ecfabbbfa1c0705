package cli

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// What the program tells systemd by its notification socket (sd_notify(3)). The protocol is one datagram of lines,
// which is why no library is needed for it.

// notify tells systemd the lines, if it has asked for them. Nothing depends on whether it hears.
func notify(lines ...string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// tellStarted tells the terminal, the log and systemd that the server listens.
func (p *service) tellStarted() {
	p.started = true
	announce(p.out, p.config, p.srv)
	limit, source := p.srv.MaxMemory()
	p.log.Info("memory limit", "max_memory", limit, "source", source)
	p.ready("")
}

// ready tells systemd that the server serves, and what else there is to know.
func (p *service) ready(also string) {
	warn(p.log, notify("READY=1", fmt.Sprintf("STATUS=listening on %s%s", addressList(p.srv.Addrs()), also)))
}

// tellEnding tells systemd that the server ends and for how long that may take.
func (p *service) tellEnding() {
	p.told = true
	warn(p.log, notify("STOPPING=1", fmt.Sprintf("STATUS=draining, %d connections", p.srv.Count()),
		extend(p.srv.Options().Drain.Deadline+stopSlack)))
}

// extend is how long systemd shall still wait for the end.
func extend(d time.Duration) string {
	return "EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10)
}

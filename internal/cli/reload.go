package cli

import (
	"errors"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"carillon/server"

	"golang.org/x/sys/unix"
)

// ownRestartKeys are the keys of the program, besides those of the server, that are read at the start only.
var ownRestartKeys = []string{"pid_file", "demo", "log.format", "cluster"}

// needsRestart reports whether a key is read at the start only. All others are read again on SIGHUP.
func needsRestart(key string) bool {
	section, _, _ := strings.Cut(key, ".")
	return slices.Contains(ownRestartKeys, key) || slices.Contains(ownRestartKeys, section) || server.NeedsRestart(key)
}

// reload reads the configuration again, puts in force what of it can change while the server runs, and
// says in one line of the log what that was, or why it was nothing.
func (p *service) reload() {
	tells := p.started && !p.told
	if tells {
		warn(p.log, notify("RELOADING=1", monotonic()))
	}
	also := ""
	changes, err := p.changeOptions()
	switch {
	case errors.Is(err, server.ErrDraining):
		p.log.Warn("SIGHUP ignored: " + err.Error())
	case err != nil:
		p.log.Error("configuration not reloaded", "problems", strings.ReplaceAll(err.Error(), "\n", "; "))
		also = "; configuration not reloaded, see the log"
	case len(changes.Restart) > 0:
		p.log.Warn("configuration reloaded", "changed", list(changes.Applied), "needs_restart", list(changes.Restart))
	default:
		p.log.Info("configuration reloaded", "changed", list(changes.Applied))
	}
	if tells {
		p.ready(also)
	}
}

func list(keys []string) string {
	if len(keys) == 0 {
		return "nothing"
	}
	return strings.Join(keys, " ")
}

func (p *service) changeOptions() (server.Changes, error) {
	var c config
	changes, err := p.srv.Reload(func() (o server.Options, err error) {
		if c, err = loadConfig(p.file, os.Environ()); err != nil {
			return o, err
		}
		return p.pages.addTo(c.Options), nil
	})
	if err == nil {
		p.changeOwn(c, &changes)
	}
	return changes, err
}

// changeOwn is for the keys that are the program's own.
func (p *service) changeOwn(c config, changes *server.Changes) {
	if was := p.config.Log.Level; c.Log.Level != was {
		// Only then: PUT /v1/log is not to be undone by a change of something else.
		p.config.Log.Level = c.Log.Level
		p.config.LogLevel.Set(logLevels[c.Log.Level])
		changes.Applied = append(changes.Applied, "log.level")
	}
	was := p.config.Cluster
	was.Logger, c.Cluster.Logger = nil, nil
	for i, changed := range []bool{c.PIDFile != p.config.PIDFile, c.Demo != p.config.Demo, c.Log.Format != p.config.Log.Format, !reflect.DeepEqual(c.Cluster, was)} {
		if changed {
			changes.Restart = append(changes.Restart, ownRestartKeys[i])
		}
	}
}

// notifyHangups returns a channel that receives each SIGHUP, unless the program was started with SIGHUP ignored, as by
// nohup.
func notifyHangups() chan os.Signal {
	hangups := make(chan os.Signal, 1) // of several that come at once, one is enough
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(hangups, syscall.SIGHUP)
	}
	return hangups
}

// hasTerminal reports whether the program belongs to a terminal. When the terminal is closed, the kernel sends SIGHUP
// and the program has no terminal any more.
func hasTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// monotonic is the time by which systemd tells this reload from others.
func monotonic() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return "MONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/int64(time.Microsecond), 10)
}

package cluster

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"carillon/server/internal/option"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startEmbedded runs a NATS server in this process. Only this node can reach it, by a pipe, the other
// embedded servers by its routes, and clients of NATS if Listen allows them.
func (b *Broker) startEmbedded(ctx context.Context) error {
	options, err := b.embeddedOptions()
	if err != nil {
		return err
	}
	if b.tune != nil {
		b.tune(options)
	}
	b.jetStream = options
	s, err := natsserver.NewServer(options)
	if err != nil {
		return fmt.Errorf("start the embedded NATS server: %w", err)
	}
	s.SetLoggerV2(&natsLog{b.log.With("from", "nats-server"), b.outOfSpace}, true, false, false)
	b.embedded = s
	go s.Start()
	for !s.ReadyForConnections(100 * time.Millisecond) {
		if ctx.Err() != nil || !s.Running() && time.Since(b.started) > b.o.Timeout {
			return fmt.Errorf("start the embedded NATS server: it does not become ready: %w", cmpErr(context.Cause(ctx), errNotReady))
		}
	}
	if addr := s.ClusterAddr(); addr != nil {
		b.log.Info("the embedded NATS server accepts routes", "address", addr.String())
	}
	return nil
}

var errNotReady = errors.New("see the log")

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func (b *Broker) embeddedOptions() (*natsserver.Options, error) {
	n := &b.o.NATS
	o := &natsserver.Options{
		ServerName: b.o.Node,
		NoSigs:     true,
		DontListen: n.Listen == off,
		Username:   n.User,
		Password:   string(n.Password),
		MaxPayload: 64 << 20,
		MaxPending: 256 << 20,
	}
	if limit := b.node.MaxMessage(); limit >= 0 {
		o.MaxPayload = int32(min(max(limit+4096, natsserver.MAX_PAYLOAD_SIZE), math.MaxInt32))
	}
	config, err := n.serverTLS()
	if err != nil {
		return nil, err
	}
	if n.Listen != off {
		o.Host, o.Port, _ = hostPort(n.Listen)
		o.Port = freePort(o.Port)
		o.TLSConfig, o.TLSTimeout = config, 5
	}
	if n.RoutesListen != off {
		if n.Listen == off {
			// The NATS server begins with routes only when it listens for clients, too. This password is kept secret.
			o.DontListen, o.Host, o.Port = false, "127.0.0.1", natsserver.RANDOM_PORT
			o.Username, o.Password = "carillon", rand.Text()
		}
		o.Cluster = natsserver.ClusterOpts{Name: b.o.Name, Username: n.User, Password: string(n.Password), TLSConfig: config, TLSTimeout: 5}
		o.Cluster.Host, o.Cluster.Port, _ = hostPort(n.RoutesListen)
		o.Cluster.Port = freePort(o.Cluster.Port)
		// A connection that is cut silently has to be given up, or what was sent meanwhile holds up the rest: TCP tries
		// again after a minute only when it has failed for as long.
		o.Cluster.PingInterval, o.Cluster.MaxPingsOut = pingInterval, pingsOut
		o.ReconnectErrorReports = 30 // of the tries to come back, of which there are some each second, every so many are told
		if o.Cluster.Host == "" {
			o.Cluster.Host = "0.0.0.0"
		}
		for _, r := range n.others() {
			u := &url.URL{Scheme: "nats-route", Host: r}
			if n.User != "" {
				u.User = url.UserPassword(n.User, string(n.Password))
			}
			o.Routes = append(o.Routes, u)
		}
	}
	b.login = nats.UserInfo(o.Username, o.Password)
	if len(b.byRule) == 0 && n.StoreDir == "" {
		return o, nil
	}
	if n.StoreDir == "" {
		return nil, &option.Error{Key: "cluster.nats.store_dir", Problem: "is missing: persistent topics need a directory for JetStream"}
	}
	if err := os.MkdirAll(n.StoreDir, 0o700); err != nil {
		return nil, &option.Error{Key: "cluster.nats.store_dir", Problem: err.Error()}
	}
	o.JetStream, o.StoreDir = true, n.StoreDir
	o.DisableJetStreamBanner = true
	return o, nil
}

// others are the routes but this node's own, so that all nodes can have the same list.
func (n *NATS) others() []string {
	_, own, _ := hostPort(n.RoutesListen)
	return slices.DeleteFunc(slices.Clone(n.Routes), func(r string) bool {
		host, port, _ := hostPort(r)
		return port == own && isLocal(host)
	})
}

// isLocal reports whether a host is this one.
func isLocal(host string) bool {
	ips, _ := net.LookupIP(host)
	addrs, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(ips, func(ip net.IP) bool {
		return ip.IsLoopback() || slices.ContainsFunc(addrs, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.Equal(ip)
		})
	})
}

// freePort turns 0 into what lets the NATS server choose: to it, 0 is its default.
func freePort(port int) int {
	if port == 0 {
		return natsserver.RANDOM_PORT
	}
	return port
}

// serverTLS is for connections between servers: each shows a certificate that the other checks.
func (n *NATS) serverTLS() (*tls.Config, error) {
	if n.TLS.Cert == "" {
		return nil, nil
	}
	c, err := n.TLS.config()
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = c.RootCAs, tls.RequireAndVerifyClientCert
	return c, nil
}

// stopEmbedded waits for the NATS server's end as long as ctx allows.
func (b *Broker) stopEmbedded(ctx context.Context) {
	if !within(ctx, func() {
		b.embedded.Shutdown()
		b.embedded.WaitForShutdown()
	}) {
		b.log.Warn("the embedded NATS server is taking too long to stop")
	}
}

// natsLog writes the NATS server's log to ours: its notices are of interest for finding out, and no more.
type natsLog struct {
	log   *slog.Logger
	error func(text string) // gets errors, too
}

func (l *natsLog) say(level slog.Level, format string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, fmt.Sprintf(format, v...))
	}
}

func (l *natsLog) Noticef(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *natsLog) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "Plaintext passwords") {
		return // it is in this process's memory only
	}
	l.say(slog.LevelWarn, format, v)
}
func (l *natsLog) Errorf(format string, v ...any) {
	l.say(slog.LevelWarn, format, v)
	l.error(fmt.Sprintf(format, v...))
}
func (l *natsLog) Fatalf(format string, v ...any) { l.say(slog.LevelError, format, v) }
func (l *natsLog) Debugf(format string, v ...any) { l.say(slog.LevelDebug, format, v) }
func (l *natsLog) Tracef(string, ...any)          {}

package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"carillon/internal/redact"
	"carillon/server/internal/option"

	"github.com/nats-io/nats.go"
)

// A connection on which nothing comes back for about pingInterval times pingsOut is given up: that to NATS, and those
// between embedded servers.
const (
	pingInterval = 3 * time.Second
	pingsOut     = 2

	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 500 * time.Millisecond
)

// connect waits for NATS as long as ctx allows.
func (b *Broker) connect(ctx context.Context) error {
	options, err := b.connectOptions()
	if err != nil {
		return err
	}
	told := time.Now()
	for {
		b.nc, err = nats.Connect(strings.Join(b.o.NATS.urls(), ","), options...)
		if err == nil {
			b.connectedTo()
			return nil
		}
		err = b.o.NATS.redact(err)
		if isHopeless(err) {
			return fmt.Errorf("connect to NATS: %w", err)
		}
		if time.Since(told) > progress {
			told = time.Now()
			b.log.Warn("waiting for NATS", "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to NATS: %w (%v)", err, context.Cause(ctx))
		case <-time.After(jitter(reconnectWait * 2)):
		}
	}
}

// redact returns an error of the NATS client without the secrets that its text may have.
func (n *NATS) redact(err error) error {
	return redact.Error(err, append(n.urls(), string(n.Password), string(n.Token))...)
}

// progress is how often a start that takes long says so.
const progress = 5 * time.Second

// isHopeless reports whether an error at the start is one that only another configuration mends.
func isHopeless(err error) bool {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrSecureConnRequired) ||
		errors.Is(err, nats.ErrSecureConnWanted) || errors.As(err, &unknown) || errors.As(err, &name)
}

func (b *Broker) connectOptions() ([]nats.Option, error) {
	n := &b.o.NATS
	options := []nats.Option{
		nats.Name("carillon " + b.o.Node),
		nats.NoEcho(),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.ReconnectBufSize(-1), // what cannot be sent is refused, and not kept for later
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		nats.Timeout(5 * time.Second),
		nats.FlusherTimeout(b.o.Timeout), // of each write to the socket
		nats.ReconnectOnFlusherError(),   // otherwise what could not be written is left out silently
		nats.DisconnectErrHandler(b.disconnected),
		nats.ReconnectHandler(b.reconnected),
		nats.ErrorHandler(b.failed),
		nats.LameDuckModeHandler(func(*nats.Conn) { b.log.Info("the NATS server is about to stop") }),
	}
	switch {
	case b.embedded != nil:
		return append(options, nats.InProcessServer(b.embedded), b.login), nil
	case n.Credentials != "":
		options = append(options, nats.UserCredentials(n.Credentials))
	case n.NKey != "":
		login, err := nats.NkeyOptionFromSeed(n.NKey)
		if err != nil {
			return nil, &option.Error{Key: "cluster.nats.nkey", Problem: err.Error()}
		}
		options = append(options, login)
	case n.User != "":
		options = append(options, nats.UserInfo(n.User, string(n.Password)))
	case n.Token != "":
		options = append(options, nats.Token(string(n.Token)))
	}
	if n.TLS != (TLS{}) {
		config, err := n.TLS.config()
		if err != nil {
			return nil, err
		}
		options = append(options, nats.Secure(config))
	}
	return options, nil
}

// config reads the files.
func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		text, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, &option.Error{Key: "cluster.nats.tls.ca", Problem: err.Error()}
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, &option.Error{Key: "cluster.nats.tls.ca", Problem: t.CA + " has no PEM certificates"}
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, &option.Error{Key: "cluster.nats.tls.cert", Problem: err.Error()}
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (b *Broker) connectedTo() {
	id := b.nc.ConnectedServerId()
	b.serverID.Store(&id)
}

func (b *Broker) disconnected(_ *nats.Conn, err error) {
	select {
	case <-b.quit:
		return
	default:
	}
	if err == nil {
		err = errors.New("the server closed the connection")
	}
	err = b.o.NATS.redact(err)
	b.returning.Store(true)
	b.doubtAll()
	b.away.CompareAndSwap(nil, &outage{time.Now(), err})
	for _, st := range b.byRule {
		b.out.fail(st)
	}
	b.stats.disconnects.Add(1)
	b.log.Error("connection to NATS lost; reconnecting", "error", err)
	b.calls.failAll(fmt.Errorf("%w: the connection was lost", errUnknown))
}

func (b *Broker) reconnected(nc *nats.Conn) {
	same := *b.serverID.Load() == nc.ConnectedServerId() // and it has not been started anew
	b.connectedTo()
	back := time.Now()
	away := b.away.Swap(nil)
	if away == nil {
		away = &outage{since: time.Now()}
	}
	took := time.Since(away.since).Round(time.Millisecond)
	b.log.Info("reconnected to NATS", "after", took, "nats", redact.URL(nc.ConnectedUrl()))
	if err := b.checkVersion(); err != nil {
		b.log.Error("persistent topics may be unavailable", "error", err)
	}
	go func() {
		for b.arrive() != nil { // the client has told NATS the subscriptions
			if !b.nc.IsConnected() || !b.sleep(reconnectWait) {
				return // it was lost again, and there will be another call
			}
		}
		b.beat(false)
		if !same {
			b.awaitPeers(back)
		}
		b.returning.Store(false)
		for _, st := range b.byRule {
			b.refresh(st)
		}
		b.resync(fmt.Sprintf("the connection to NATS was lost for %v", took))
	}()
}

// failed handles errors that belong to no call.
func (b *Broker) failed(_ *nats.Conn, sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		lost := 0
		if sub != nil {
			lost, _ = sub.Dropped()
		}
		b.slow(max(lost, 1))
		return
	}
	b.log.Warn("NATS reports an error", "error", b.o.NATS.redact(err))
}

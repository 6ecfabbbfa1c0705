package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// Passwords and tokens stand wherever they can, and each connection fails in its own way. Neither the log, down to its
// debug level, nor the error that ends a start has one.
func TestSecretsOfTheClusterAreNotShown(t *testing.T) {
	t.Parallel()
	const sesame = "sesame-of-the-nodes"
	begin := func(t *testing.T, o Options) (*Broker, *testLog, error) {
		t.Helper()
		logger, log := newLog(t)
		t.Cleanup(func() {
			if log.has(sesame) {
				t.Error("the log has the secret")
			}
		})
		o.Logger, o.StartTimeout = logger, 6*time.Second
		b, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		so, _ := server.Options{}.Resolve()
		if err = b.Start(context.Background(), &fakeNode{options: so}); err == nil {
			t.Cleanup(func() { b.Stop(context.Background()) })
		} else if strings.Contains(err.Error(), sesame) {
			t.Errorf("the error has the secret: %v", err)
		}
		return b, log, err
	}
	guarded := func(t *testing.T, o natsserver.Options) (s *natsserver.Server, address string) {
		t.Helper()
		o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", -1, true, true
		s, err := natsserver.NewServer(&o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		t.Cleanup(s.Shutdown)
		if !s.ReadyForConnections(patience) {
			t.Fatal("no server")
		}
		return s, s.Addr().String()
	}
	t.Run("nothing is there", func(t *testing.T) {
		t.Parallel()
		address := testenv.Address(t)
		_, log, err := begin(t, Options{NATS: NATS{URL: "nats://me:" + sesame + "@" + address + "?token=" + sesame + ",nats://" + sesame + "@" + address}})
		if err == nil || !strings.Contains(err.Error(), "connect to NATS") || !log.has("waiting for NATS") {
			t.Error(err)
		}
	})
	t.Run("the password is wrong", func(t *testing.T) {
		t.Parallel()
		_, address := guarded(t, natsserver.Options{Username: "me", Password: "x"})
		for _, n := range []NATS{{URL: "nats://me:" + sesame + "@" + address}, {URL: "nats://" + address, User: "me", Password: sesame}, {URL: "nats://" + address, Token: sesame}} {
			if _, _, err := begin(t, Options{NATS: n}); err == nil || !strings.Contains(err.Error(), "Authorization") {
				t.Error(err)
			}
		}
	})
	t.Run("the connection is lost", func(t *testing.T) {
		t.Parallel()
		s, address := guarded(t, natsserver.Options{Authorization: sesame})
		b, log, err := begin(t, Options{NATS: NATS{URL: "nats://" + sesame + "@" + address}})
		if err != nil {
			t.Fatal(err)
		}
		if !log.has("nats=nats://(set)@" + address) {
			t.Error("the log does not say where it is connected")
		}
		s.Shutdown()
		eventually(t, "it is lost", func() bool { return log.has("connection to NATS lost") && b.Err() != nil })
		if err := b.Err(); strings.Contains(err.Error(), sesame) {
			t.Error(err)
		}
	})
	t.Run("other nodes have another password", func(t *testing.T) {
		t.Parallel()
		first, _, err := begin(t, Options{Node: "a", NATS: NATS{Embedded: true, RoutesListen: "127.0.0.1:0", User: "me", Password: sesame}})
		if err != nil {
			t.Fatal(err)
		}
		_, log, err := begin(t, Options{Node: "b", NATS: NATS{Embedded: true, RoutesListen: "127.0.0.1:0", User: "me", Password: "another-" + sesame,
			Routes: []string{first.embedded.ClusterAddr().String(), "127.0.0.1:1"}}})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the routes fail", func() bool { return log.has("uthorization") || log.has("authentication") })
	})
}

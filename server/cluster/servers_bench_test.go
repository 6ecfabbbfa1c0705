package cluster

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"carillon/server"
	"carillon/server/topic"

	"github.com/coder/websocket"
	natsserver "github.com/nats-io/nats-server/v2/server"
)

// BenchmarkClients is the way of a message from Publish to a WebSocket client, one message at a time: at a server
// without a cluster, at the server in a cluster that published it, and at another server. What the last takes
// longer than the first is what NATS adds.
func BenchmarkClients(b *testing.B) {
	nats, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	go nats.Start()
	b.Cleanup(nats.Shutdown)
	if !nats.ReadyForConnections(patience) {
		b.Fatal("no NATS server")
	}
	o := Options{NATS: NATS{URL: urlOf(nats)}, Logger: slog.New(slog.DiscardHandler)}
	alone, from, to := benchServer(b, nil), benchServer(b, &o), benchServer(b, &o)
	for _, topic := range []string{"passing", "kept"} {
		for _, way := range []struct {
			name     string
			from, to *server.Server
		}{{"alone", alone, alone}, {"same-server", from, from}, {"other-server", from, to}} {
			b.Run(topic+"/"+way.name, func(b *testing.B) { benchWay(b, way.from, way.to, topic) })
		}
	}
}

func benchServer(b *testing.B, o *Options) *server.Server {
	opts := server.Options{Listen: "127.0.0.1:0", Endpoints: []server.Endpoint{{Path: "/ws", Mode: server.ModeTopics}},
		Topics: []topic.Rule{{Match: "kept", History: 100}}, Logger: slog.New(slog.DiscardHandler)}
	if o != nil {
		broker, err := New(*o)
		if err != nil {
			b.Fatal(err)
		}
		opts.Broker = broker
	}
	s, err := server.New(opts)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	<-s.Started()
	return s
}

func benchWay(b *testing.B, from, to *server.Server, name string) {
	ctx := b.Context()
	client, _, err := websocket.Dial(ctx, to.URL("/ws?topic="+name), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.CloseNow() }()
	for {
		if info, ok := to.Topic(name); ok && info.Subscribers > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	payload := make([]byte, 128)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		from.PublishFunc(topic.Publication{Topic: name, Format: topic.FormatBinary, Payload: payload}, func(_ topic.Receipt, err error) {
			if err != nil {
				b.Error(err)
			}
		})
		if _, _, err := client.Read(ctx); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	report(b, took, "arrived")
}

package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"

	"carillon/server"
)

// A chat with rooms. Each room is a topic; the application subscribes each guest to one, and publishes what
// they say.
func Example_chat() {
	type guest struct{ name, room string }
	tell := func(c *server.Conn, text string) {
		g := c.Value().(guest)
		_, _ = c.Server().Publish(server.Publication{Topic: g.room, Payload: []byte(g.name + " " + text)})
	}
	s, stop := run(server.Endpoint{
		Path: "/chat",
		Handler: server.Handler{
			Upgrade: func(r *server.Request) error {
				query := r.QueryValues()
				g := guest{name: query.Get("name"), room: "rooms." + query.Get("room")}
				r.Value = g
				return server.CheckTopic(g.room) // if it is no topic, the answer is 403
			},
			Open: func(c *server.Conn) {
				arrived := func(server.Subscribed, error) { tell(c, "has come") }
				_ = c.Subscribe(c.Value().(guest).room, server.SubscribeOptions{Done: arrived})
			},
			Message: func(c *server.Conn, _ server.Opcode, text []byte) { tell(c, "says: "+string(text)) },
			Close:   func(c *server.Conn, _ error) { tell(c, "has left") },
		},
	})
	defer stop()

	alice := connect(s, "/chat?room=blue&name=alice")
	defer alice.Close()
	fmt.Println("alice hears:", hear(alice))
	bob := connect(s, "/chat?room=blue&name=bob")
	cathy := connect(s, "/chat?room=green&name=cathy")
	defer cathy.Close()
	fmt.Println("alice hears:", hear(alice))
	fmt.Println("cathy hears:", hear(cathy))
	say(bob, "hello")
	fmt.Println("alice hears:", hear(alice))
	leave(bob)
	fmt.Println("alice hears:", hear(alice))

	// Output:
	// alice hears: alice has come
	// alice hears: bob has come
	// cathy hears: cathy has come
	// alice hears: bob says: hello
	// alice hears: bob has left
}

// A subscription tells where it began, so that nothing is missed between what is read from elsewhere and
// what comes live.
func ExampleConn_Subscribe() {
	s, stop := runWith(server.Options{
		Topics: []server.TopicRule{{Match: "prices.>", History: 100}},
		Endpoints: []server.Endpoint{{
			Path: "/prices",
			Handler: server.Handler{
				Open: func(c *server.Conn) {
					err := c.Subscribe("prices.tea", server.SubscribeOptions{
						Start: server.Start{Last: 1},
						Done: func(began server.Subscribed, err error) {
							fmt.Println("subscribed to", began.Topic, "at", began.Offset, err)
						},
					})
					if err != nil {
						fmt.Println(err) // the name is no topic
					}
				},
				Message: func(c *server.Conn, _ server.Opcode, _ []byte) {
					fmt.Println("was subscribed to", c.Subscriptions())
					c.Unsubscribe("prices.tea", func(err error) {
						fmt.Println("and is no more", err)
						_ = c.Send(server.Text, []byte("done"))
					})
				},
			},
		}},
	})
	defer stop()
	set := func(price string) {
		if _, err := s.Publish(server.Publication{Topic: "prices.tea", Format: server.FormatJSON, Payload: []byte(price)}); err != nil {
			log.Fatal(err)
		}
	}

	set("3.10")
	set("3.20")
	client := connect(s, "/prices")
	defer client.Close()
	fmt.Println("kept:", hear(client))
	set("3.30")
	fmt.Println("live:", hear(client))
	say(client, "enough")
	fmt.Println(hear(client))

	// Output:
	// subscribed to prices.tea at 2 <nil>
	// kept: 3.20
	// live: 3.30
	// was subscribed to [prices.tea]
	// and is no more <nil>
	// done
}

// A program publishes without any connection, and reads what a topic keeps.
func ExampleServer_History() {
	s, stop := runWith(server.Options{Topics: []server.TopicRule{{Match: "log", History: 3}}})
	defer stop()
	var second server.Receipt
	for n := range 4 {
		receipt, err := s.Publish(server.Publication{Topic: "log", Payload: fmt.Append(nil, "entry ", n+1)})
		if err != nil {
			log.Fatal(err)
		}
		if n == 1 {
			second = receipt
		}
	}

	since := server.Position{Offset: second.Offset, Epoch: second.Epoch}
	past, err := s.History("log", server.Start{Since: &since}, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range past.Messages {
		fmt.Printf("%d: %s\n", m.Offset, m.Payload)
	}
	fmt.Println("nothing is missing:", past.Recovered)

	// Output:
	// 3: entry 3
	// 4: entry 4
	// nothing is missing: true
}

// Clients subscribe by themselves; the program publishes.
func ExampleServer_Publish() {
	s, stop := run(server.Endpoint{
		Path:   "/ws",
		Mode:   server.ModeTopics,
		Topics: server.TopicAccess{Subscribe: []string{"public.>"}},
	})
	defer stop()

	// A page would say new WebSocket("wss://.../ws?topic=public.scores", "carillon.v1.json").
	client := connect(s, "/ws?topic=public.scores", "Sec-WebSocket-Protocol", "carillon.v1.json")
	defer client.Close()
	hear(client) // the position where the subscription began
	receipt, err := s.Publish(server.Publication{
		Topic:   "public.scores",
		Format:  server.FormatJSON,
		Payload: []byte(`{"home":2,"guests":1}`),
		Key:     "game-7-goal-3", // should we have to repeat it
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("message", receipt.Offset, "was for", receipt.Subscribers)
	var message struct {
		Topic string
		Data  struct{ Home, Guests int }
	}
	if err := json.Unmarshal([]byte(hear(client)), &message); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%+v\n", message)

	// Output:
	// message 1 was for 1
	// {Topic:public.scores Data:{Home:2 Guests:1}}
}

// runWith starts a server with any options on a free port.
func runWith(options server.Options) (s *server.Server, stop func()) {
	options.Listen = "127.0.0.1:0"
	options.Logger = slog.New(slog.DiscardHandler)
	s, err := server.New(options)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()
	return s, func() {
		cancel()
		if err := <-ended; err != nil {
			log.Fatal(err)
		}
	}
}

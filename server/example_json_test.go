package server_test

import (
	"fmt"
	"log"

	"github.com/gorilla/websocket"

	"carillon/server"
)

// Messages that are values of a type, in both directions. What is anything else ends the connection.
func ExampleJSON() {
	type question struct{ A, B int }
	type answer struct {
		Sum int `json:"sum"`
	}
	s, stop := run(server.Endpoint{
		Path: "/add",
		Handler: server.Handler{
			Message: server.JSON(func(c *server.Conn, q question) { _ = c.SendJSON(answer{q.A + q.B}) }),
			Error:   func(_ *server.Conn, err error) { fmt.Println("error:", err) },
		},
	})
	defer stop()

	client := connect(s, "/add")
	defer client.Close()
	say(client, `{"a":1,"b":2}`)
	fmt.Println(hear(client))
	say(client, `{"a":1,"c":2}`)
	_, _, err := client.ReadMessage()
	fmt.Println(err)

	// Output:
	// {"sum":3}
	// error: decode message: json: unknown field "c"
	// websocket: close 1007 (invalid payload data): the message is not the expected JSON
}

// Looser rules: what the type does not have is ignored, and a mistake is answered instead of punished.
func ExampleJSONWith() {
	rules := server.JSONRules{IgnoreUnknown: true, KeepOpen: true}
	s, stop := run(server.Endpoint{
		Path: "/add",
		Handler: server.Handler{
			Message: server.JSONWith(rules, func(c *server.Conn, q struct{ A, B int }) { _ = c.SendJSON(q.A + q.B) }),
			Error:   func(c *server.Conn, _ error) { _ = c.SendJSON("pardon?") },
		},
	})
	defer stop()

	client := connect(s, "/add")
	defer client.Close()
	for _, text := range []string{`{"a":1,"c":2}`, `{"a":"one"}`, `{"a":1,"b":2}`} {
		say(client, text)
		fmt.Println(hear(client))
	}

	// Output:
	// 1
	// "pardon?"
	// 3
}

// A value that goes to many is encoded once.
func ExampleNewJSONFrame() {
	s, stop := run(server.Endpoint{Path: "/scores", Mode: server.ModeBroadcast})
	defer stop()
	alice, bob := connect(s, "/scores"), connect(s, "/scores")
	defer alice.Close()
	defer bob.Close()

	frame, err := server.NewJSONFrame(map[string]int{"home": 2, "guests": 1})
	if err != nil {
		log.Fatal(err)
	}
	if err := s.BroadcastFrame("/scores", frame); err != nil {
		log.Fatal(err)
	}
	for _, client := range []*websocket.Conn{alice, bob} {
		fmt.Println(hear(client))
	}

	// Output:
	// {"guests":1,"home":2}
	// {"guests":1,"home":2}
}

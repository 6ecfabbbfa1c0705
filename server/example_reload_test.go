package server_test

import (
	"fmt"
	"log"

	"carillon/server"
)

// A server is told to take shorter messages, without a restart. What cannot change while it runs is named.
func ExampleServer_Reload() {
	s, err := server.New(server.Options{Listen: "127.0.0.1:0", Endpoints: []server.Endpoint{{Path: "/echo", Mode: server.ModeEcho}}})
	if err != nil {
		log.Fatal(err)
	}
	// Run may have been called long ago.
	changes, err := s.Reload(func() (server.Options, error) {
		o := s.Options() // or what a file says now
		o.Limits.MaxMessage = 4096
		o.Listen = ":443"
		return o, nil
	})
	if err != nil {
		log.Fatal(err) // nothing has changed
	}
	fmt.Println("changed:", changes.Applied)
	fmt.Println("needs a restart:", changes.Restart)

	_, err = s.Reload(func() (server.Options, error) { return server.Options{Listen: "nowhere"}, nil })
	fmt.Println(err)

	// Output:
	// changed: [limits.max_message]
	// needs a restart: [listen]
	// listen: "nowhere" is not an address: expected host:port, such as :8080, 127.0.0.1:8080 or unix:/path
}

package server_test

import (
	"bytes"
	"fmt"
	"time"

	"carillon/codec"
	"carillon/server"
)

// An echo that takes its time. The payload is gone by then, so the function has a copy.
func ExampleConn_After() {
	delay := 10 * time.Millisecond
	s, stop := run(server.Endpoint{
		Path: "/slow",
		Handler: server.Handler{
			Message: func(c *server.Conn, op server.Opcode, payload []byte) {
				kept := bytes.Clone(payload)
				_, _ = c.After(delay, func() { _ = c.Send(op, kept) })
			},
		},
	})
	defer stop()

	alice := connect(s, "/slow")
	defer alice.Close()
	say(alice, "one")
	say(alice, "two")
	fmt.Println(hear(alice), hear(alice))

	// Output:
	// one two
}

// A client that has not said who it is after a while is closed; one that has, stops the timer.
func ExampleTimer_Stop() {
	s, stop := run(server.Endpoint{
		Path: "/",
		Handler: server.Handler{
			Open: func(c *server.Conn) {
				late, _ := c.After(50*time.Millisecond, func() { _ = c.Close(codec.ClosePolicyViolation, "log in first") })
				c.SetValue(late)
			},
			Message: func(c *server.Conn, _ server.Opcode, name []byte) {
				fmt.Println(string(name), "in time:", c.Value().(*server.Timer).Stop())
			},
		},
	})
	defer stop()

	alice, bob := connect(s, "/"), connect(s, "/")
	defer alice.Close()
	defer bob.Close()
	say(alice, "alice")
	_, _, err := bob.ReadMessage()
	fmt.Println("bob:", err)

	// Output:
	// alice in time: true
	// bob: websocket: close 1008 (policy violation): log in first
}

// A goroutine works for a connection and comes back to the loop with what it has found, so that the connection's state
// needs no lock.
func ExampleConn_Do() {
	type account struct{ balance int }
	s, stop := run(server.Endpoint{
		Path: "/",
		Handler: server.Handler{
			Open: func(c *server.Conn) { c.SetValue(&account{balance: 40}) },
			Message: func(c *server.Conn, _ server.Opcode, _ []byte) {
				go func() {
					found := 2 // from a database
					_ = c.Do(func() {
						a := c.Value().(*account)
						a.balance += found
						_ = c.Send(server.Text, fmt.Append(nil, a.balance))
					})
				}()
			},
		},
	})
	defer stop()

	alice := connect(s, "/")
	defer alice.Close()
	say(alice, "look")
	fmt.Println(hear(alice))

	// Output:
	// 42
}

package server_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"carillon/codec"
	"carillon/server"
)

// A server that answers each message with the same message.
func Example() {
	s, err := server.New(server.Options{
		Listen: "127.0.0.1:0",
		Endpoints: []server.Endpoint{{
			Path: "/echo",
			Handler: server.Handler{
				Message: func(c *server.Conn, op codec.Opcode, payload []byte) { _ = c.Send(op, payload) },
			},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()

	client := connect(s, "/echo")
	say(client, "hello")
	fmt.Println(hear(client))
	client.Close()

	stop()
	fmt.Println("stopped with", <-ended)

	// Output:
	// hello
	// stopped with <nil>
}

// A message from outside, say from another part of the program, goes to every connection of an endpoint.
func ExampleServer_Broadcast() {
	opened := make(chan struct{}, 2) // a handler must not block
	s, stop := run(server.Endpoint{
		Path:    "/news",
		Handler: server.Handler{Open: func(*server.Conn) { opened <- struct{}{} }},
	})
	defer stop()

	alice, bob := connect(s, "/news"), connect(s, "/news")
	defer alice.Close()
	defer bob.Close()
	<-opened
	<-opened
	if err := s.Broadcast("/news", server.Text, []byte("the bells are ringing")); err != nil {
		log.Fatal(err)
	}
	fmt.Println("alice:", hear(alice))
	fmt.Println("bob:", hear(bob))

	// Output:
	// alice: the bells are ringing
	// bob: the bells are ringing
}

// Upgrade looks at the handshake before there is a connection. It may refuse it with an HTTP answer, or
// attach what it has learned to the connection.
func ExampleHandler_login() {
	users := map[string]string{"Bearer s3cret": "alice"}
	s, stop := run(server.Endpoint{
		Path: "/account",
		Handler: server.Handler{
			Upgrade: func(r *server.Request) error {
				user, known := users[string(r.Header("Authorization"))]
				if !known {
					return &codec.Rejection{Status: 401, Reason: "log in first", Header: [][2]string{{"WWW-Authenticate", "Bearer"}}}
				}
				r.Value = user
				return nil
			},
			Open: func(c *server.Conn) { _ = c.Send(server.Text, fmt.Append(nil, "welcome, ", c.Value())) },
		},
	})
	defer stop()

	_, resp, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/account", nil)
	fmt.Println(err, resp.Status)
	alice := connect(s, "/account", "Authorization", "Bearer s3cret")
	defer alice.Close()
	fmt.Println(hear(alice))

	// Output:
	// websocket: bad handshake 401 Unauthorized
	// welcome, alice
}

// A database, which takes a while, knows who a client is. The decision is deferred, so that the loop goes on with the
// other connections.
func ExampleRequest_Defer() {
	lookUp := func(ctx context.Context, session string) (user string, err error) { // in a database
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done(): // the client has gone
			return "", ctx.Err()
		}
		if session != "session=k3f9" {
			return "", &codec.Rejection{Status: 401, Reason: "log in first"}
		}
		return "alice", nil
	}
	s, stop := run(server.Endpoint{
		Path: "/account",
		Handler: server.Handler{
			Upgrade: func(r *server.Request) error {
				r.Defer(func(ctx context.Context, r *server.Request) error {
					user, err := lookUp(ctx, string(r.Header("Cookie")))
					if err != nil {
						return err
					}
					return r.Identify(server.Identity{Subject: user})
				})
				return nil
			},
			Open: func(c *server.Conn) { _ = c.Send(server.Text, []byte("welcome, "+c.Subject())) },
		},
	})
	defer stop()

	_, resp, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/account", nil)
	fmt.Println(err, resp.Status)
	alice := connect(s, "/account", "Cookie", "session=k3f9")
	defer alice.Close()
	fmt.Println(hear(alice))

	// Output:
	// websocket: bad handshake 401 Unauthorized
	// welcome, alice
}

// Pages, an API and WebSockets share one port. The API's route tells every WebSocket what was posted.
func ExampleOptions_pages() {
	var s *server.Server
	site := http.NewServeMux()
	site.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "<h1>The news</h1>")
	})
	site.HandleFunc("POST /api/news", func(w http.ResponseWriter, r *http.Request) {
		news, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
		if err == nil {
			err = s.Broadcast("/news", server.Text, news)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	opened := make(chan struct{}, 1)
	s, err := server.New(server.Options{
		Listen: "127.0.0.1:0",
		Endpoints: []server.Endpoint{{
			Path:    "/news",
			Handler: server.Handler{Open: func(*server.Conn) { opened <- struct{}{} }},
		}},
		HTTP:   site,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Started()

	resp, err := http.Get("http://" + s.Addr().String() + "/")
	if err != nil {
		log.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	fmt.Println("the page:", string(page))

	alice := connect(s, "/news")
	<-opened
	resp, err = http.Post("http://"+s.Addr().String()+"/api/news", "text/plain", strings.NewReader("the bells are ringing"))
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	fmt.Println("the API:", resp.Status)
	fmt.Println("alice:", hear(alice))
	alice.Close()

	stop()
	fmt.Println("stopped with", <-ended)

	// Output:
	// the page: <h1>The news</h1>
	// the API: 202 Accepted
	// alice: the bells are ringing
	// stopped with <nil>
}

// run starts a server with one endpoint on a free port.
func run(endpoint server.Endpoint) (s *server.Server, stop func()) {
	return runWith(server.Options{Endpoints: []server.Endpoint{endpoint}})
}

// connect opens a connection with a client of another library; headers are names and values.
func connect(s *server.Server, path string, headers ...string) *websocket.Conn {
	header := map[string][]string{}
	for i := 0; i+1 < len(headers); i += 2 {
		header[headers[i]] = []string{headers[i+1]}
	}
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+path, header)
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

func say(conn *websocket.Conn, text string) {
	if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		log.Fatal(err)
	}
}

func hear(conn *websocket.Conn) string {
	_, payload, err := conn.ReadMessage()
	if err != nil {
		log.Fatal(err)
	}
	return string(payload)
}

package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"carillon/codec"
	"carillon/server"
)

// A server until Ctrl-C or SIGTERM, or, because this is an example, for a moment.
func ExampleListenAndServe() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	time.AfterFunc(50*time.Millisecond, stop)

	err := server.ListenAndServe(ctx, "127.0.0.1:0", server.Endpoint{Path: "/echo", Mode: server.ModeEcho})
	fmt.Println("stopped with", err)

	// Output:
	// stopped with <nil>
}

// All hooks in the life of a connection.
func ExampleHandler() {
	ended := make(chan struct{})
	s, stop := run(server.Endpoint{
		Path: "/divide",
		Handler: server.Handler{
			Open: func(c *server.Conn) { fmt.Println("open", c.Path()) },
			Message: func(c *server.Conn, _ server.Opcode, payload []byte) {
				var a, b int
				if _, err := fmt.Sscanf(string(payload), "%d/%d", &a, &b); err != nil {
					_ = c.Close(codec.CloseUnsupported, "expected a/b")
					return
				}
				_ = c.Send(server.Text, fmt.Append(nil, a/b))
			},
			Error: func(c *server.Conn, err error) {
				fmt.Println("error:", err)
				var p *server.PanicError
				if errors.As(err, &p) {
					_ = len(p.Stack) // for the bug tracker
				}
			},
			Close: func(c *server.Conn, err error) {
				fmt.Println(err)
				close(ended)
			},
		},
	})
	defer stop()

	client := connect(s, "/divide")
	defer client.Close()
	say(client, "6/2")
	fmt.Println("6/2 =", hear(client))
	say(client, "6/0")
	<-ended

	// Output:
	// open /divide
	// 6/2 = 3
	// error: panic in Message: runtime error: integer divide by zero
	// closed by the server: 1011 (internal error): internal server error
}

// A login check during the handshake. A browser cannot add headers to a WebSocket, but it sends the cookies
// of the site.
func ExampleRequest_Cookie() {
	sessions := map[string]string{"s3cret": "alice"}
	s, stop := run(server.Endpoint{
		Path: "/room",
		Handler: server.Handler{
			Upgrade: func(r *server.Request) error {
				user, known := sessions[r.Cookie("session")]
				if !known {
					return &codec.Rejection{Status: 401, Reason: "log in first"}
				}
				r.Value = user + " in " + r.QueryValues().Get("room")
				return nil
			},
			Open: func(c *server.Conn) { _ = c.Send(server.Text, fmt.Append(nil, c.Value())) },
		},
	})
	defer stop()

	_, resp, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/room?room=blue", nil)
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%v, %s: %s", err, resp.Status, body)
	alice := connect(s, "/room?room=blue", "Cookie", "theme=dark; session=s3cret")
	defer alice.Close()
	fmt.Println(hear(alice))

	// Output:
	// websocket: bad handshake, 401 Unauthorized: log in first
	// alice in blue
}

// A conversation in two parts: the first message is the name, and from then on another handler has the
// connection.
func ExampleConn_SetHandler() {
	chatting := &server.Handler{
		Message: func(c *server.Conn, _ server.Opcode, payload []byte) {
			_ = c.Server().Broadcast("/chat", server.Text, fmt.Append(nil, c.Value(), ": ", string(payload)))
		},
	}
	s, stop := run(server.Endpoint{
		Path: "/chat",
		Handler: server.Handler{
			Message: func(c *server.Conn, _ server.Opcode, name []byte) {
				c.SetValue(string(name)) // a copy: the payload is only valid until we return
				_ = c.SetHandler(chatting)
			},
		},
	})
	defer stop()

	client := connect(s, "/chat")
	defer client.Close()
	say(client, "alice")
	say(client, "hello")
	fmt.Println(hear(client))

	// Output:
	// alice: hello
}

// Slow work, or work that goes on, is for a goroutine. The context ends it with the connection.
func ExampleConn_Context() {
	ended := make(chan error)
	s, stop := run(server.Endpoint{
		Path: "/clock",
		Handler: server.Handler{Open: func(c *server.Conn) {
			go func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for n := 1; ; n++ {
					select {
					case <-tick.C:
						_ = c.Send(server.Text, fmt.Append(nil, "tick ", n))
					case <-c.Context().Done():
						ended <- context.Cause(c.Context())
						return
					}
				}
			}()
		}},
	})
	defer stop()

	client := connect(s, "/clock")
	fmt.Println(hear(client))
	fmt.Println(hear(client))
	leave(client)
	fmt.Println(<-ended)

	// Output:
	// tick 1
	// tick 2
	// closed by the peer: 1000 (normal closure)
}

// The clients that are there, by the names that the application gave them.
func ExampleServer_Conns() {
	s, stop := run(server.Endpoint{
		Path: "/lobby",
		Handler: server.Handler{Upgrade: func(r *server.Request) error {
			r.Value = r.QueryValues().Get("name")
			return nil
		}},
	})
	defer stop()
	for _, name := range []string{"bob", "alice"} {
		defer connect(s, "/lobby?name="+name).Close()
	}

	var names []string
	for c := range s.Conns() {
		names = append(names, c.Value().(string))
	}
	slices.Sort(names)
	fmt.Println(s.Count(), names)

	// Output:
	// 2 [alice bob]
}

// A route of an ordinary HTTP server, on a port of its own, sends to everyone.
func ExampleServer_Broadcast_http() {
	s, stop := run(server.Endpoint{Path: "/news", Mode: server.ModeBroadcast})
	defer stop()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		news, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
		if err == nil {
			err = s.Broadcast("/news", server.Text, news)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "sent to %d", s.Count())
	}))
	defer api.Close()

	alice, bob := connect(s, "/news"), connect(s, "/news")
	defer alice.Close()
	defer bob.Close()
	resp, err := http.Post(api.URL, "text/plain", strings.NewReader("the bells are ringing"))
	if err != nil {
		log.Fatal(err)
	}
	answer, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	fmt.Println(string(answer))
	fmt.Println("alice:", hear(alice))
	fmt.Println("bob:", hear(bob))

	// Output:
	// sent to 2
	// alice: the bells are ringing
	// bob: the bells are ringing
}

// leave ends a connection in order, and waits for the server's answer.
func leave(conn *websocket.Conn) {
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if err := conn.WriteMessage(websocket.CloseMessage, bye); err != nil {
		log.Fatal(err)
	}
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			_ = conn.Close()
			return
		}
	}
}

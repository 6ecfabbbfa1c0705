package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
)

const connectHelp = `Opens a WebSocket. Each line you type is sent as a text message, and each
incoming message is printed with its time. Ctrl-D or Ctrl-C closes the
connection; a second Ctrl-C exits at once.

A URL without a scheme is taken as ws://, and http:// is treated as ws://.

In a pipe it is a filter: each line of the input becomes a message, and each
incoming message is one line of output; binary messages are written unchanged.
At the end of the input it closes the connection once nothing has arrived for
--wait. Diagnostics go to standard error. Lines may end with CR LF. A line that
is not UTF-8 is reported by number and not sent.

Exit status: 0 after a clean close, by either side, with 1000 or 1001; 1 if the
connection failed or a line could not be sent; 2 on a usage error; 3 if the
connection was lost or closed with another code.`

const connectExamples = `  carillon connect localhost:8080/echo
  echo hello | carillon connect localhost:8080/echo
  carillon connect wss://example.org/ws --topic prices.eu --wait off </dev/null >prices
  carillon connect localhost:8080/ws --json --header 'Authorization: Bearer me'`

type connectOptions struct {
	handshake
	json   bool
	binary bool
	pings  bool
	noTime bool
	wait   time.Duration // negative: for ever
}

func connectCommand(std streams) *cobra.Command {
	o := connectOptions{handshake: handshake{header: http.Header{}}, wait: time.Second}
	var topics []string
	cmd := &cobra.Command{
		Use: "connect URL", Short: "Connect to a WebSocket interactively or in a pipe", Long: connectHelp, Example: connectExamples,
		Args: cobra.ExactArgs(1),
		PreRunE: func(_ *cobra.Command, args []string) (err error) {
			if o.timeout <= 0 {
				return errors.New("--timeout must be greater than 0")
			}
			if o.tls, err = o.trust.config(); err != nil {
				return err
			}
			o.url, err = webSocketURL(args[0], topics)
			return err
		},
		RunE: understood(func(*cobra.Command, []string) error {
			ctx, stop := interruptible()
			defer stop()
			return connect(ctx, o, std)
		}),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVarP(&topics, "topic", "t", nil, "subscribe to a topic or pattern, `NAME`: adds topic=NAME to the URL; repeatable")
	headerFlag(cmd, o.header)
	o.trust.flags(cmd)
	f.StringArrayVar(&o.subprotocols, "subprotocol", nil, "offer the subprotocol `NAME`; repeatable")
	f.BoolVar(&o.json, "json", false, "speak "+jsonSubprotocol+"; incoming JSON is indented on a terminal and compact in a pipe")
	f.BoolVar(&o.binary, "binary", false, "send binary messages")
	f.BoolVar(&o.compression, "compression", false, "offer permessage-deflate")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "limit the handshake to `TIME`")
	f.Func("wait", "at the end of the input, close once nothing has arrived for `TIME`; off waits for the server to close (default 1s)", func(text string) (err error) {
		if text == "off" {
			o.wait = -1
			return nil
		}
		if o.wait, err = time.ParseDuration(text); err != nil || o.wait < 0 {
			return errors.New("expected a duration such as 500ms, or off")
		}
		return nil
	})
	f.BoolVar(&o.pings, "pings", false, "show incoming pings and pongs")
	f.BoolVar(&o.noTime, "no-time", false, "do not show times")
	noCompletion(cmd)
	noCompletion(cmd, "topic", "subprotocol", "timeout", "wait")
	cmd.MarkFlagsMutuallyExclusive("json", "binary")
	cmd.MarkFlagsMutuallyExclusive("json", "subprotocol")
	return cmd
}

// interruptible is a context that Ctrl-C ends. A second one ends the program at once.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// conversation is one connection with its two directions, a goroutine each.
type conversation struct {
	conn   *websocket.Conn
	screen *screen
	kind   websocket.MessageType // of what is sent

	heard chan struct{} // a message came; has room for one
	ended chan error    // nothing more can come
	said  chan error    // all input is sent, or cannot be
}

// connect is the command. It returns nil after a clean end.
func connect(ctx context.Context, o connectOptions, std streams) error {
	screen := newScreen(std, o)
	if o.json {
		o.subprotocols = []string{jsonSubprotocol}
	}
	if o.pings {
		o.ping = func(payload []byte) { screen.control("ping", payload) }
		o.pong = func(payload []byte) { screen.control("pong", payload) }
	}
	conn, err := o.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	if o.json && conn.Subprotocol() != jsonSubprotocol {
		conn.Close(websocket.StatusNormalClosure, "")
		return fmt.Errorf("connect to %s: the server does not speak %s", shownURL(o.url.String()), jsonSubprotocol)
	}
	screen.opened(shownURL(o.url.String()), conn.Subprotocol())

	c := &conversation{
		conn: conn, screen: screen, kind: websocket.MessageText,
		heard: make(chan struct{}, 1), ended: make(chan error, 1), said: make(chan error, 1),
	}
	if o.binary {
		c.kind = websocket.MessageBinary
	}
	go func() { c.ended <- c.receive() }()
	go func() { c.said <- c.send(std.in) }()
	wait := o.wait
	if std.inTerminal {
		wait = 0 // the user has seen the answers
	}
	return c.until(ctx, wait)
}

// until waits for the first reason to end.
func (c *conversation) until(ctx context.Context, wait time.Duration) error {
	quiet := time.NewTimer(wait)
	quiet.Stop()
	said, finished := c.said, false
	var failed error // some lines were not sent
	for {
		select {
		case err := <-c.ended:
			return cmp.Or(c.outcome(err), failed)
		case err := <-said:
			said = nil
			if err == errUnsent {
				continue
			}
			if err != nil && err != errReported {
				c.close()
				return err
			}
			finished, failed = true, err
			if wait >= 0 {
				quiet.Reset(wait)
			}
		case <-c.heard:
			if finished && wait >= 0 {
				quiet.Reset(wait)
			}
		case <-quiet.C:
			return cmp.Or(c.close(), failed)
		case <-ctx.Done():
			return c.close()
		}
	}
}

// close ends the connection from our side. What the server still sends until it agrees is shown.
func (c *conversation) close() error {
	c.conn.Close(websocket.StatusNormalClosure, "")
	if e, ok := errors.AsType[*outputError](<-c.ended); ok {
		return e
	}
	return nil
}

// outcome turns the error that ended the reading into that of the command.
func (c *conversation) outcome(err error) error {
	if _, ok := errors.AsType[*outputError](err); ok {
		c.conn.Close(websocket.StatusNormalClosure, "")
		return err
	}
	frame, ok := errors.AsType[websocket.CloseError](err)
	switch {
	case !ok:
		return &failure{lost(err), statusLost}
	case frame.Code == websocket.StatusNormalClosure, frame.Code == websocket.StatusGoingAway:
		c.screen.note(closing(frame))
		return nil
	default:
		return &failure{errors.New(closing(frame)), statusLost}
	}
}

func (c *conversation) receive() error {
	for {
		kind, payload, err := c.conn.Read(context.Background())
		if err != nil {
			return err
		}
		if err := c.screen.received(kind, payload); err != nil {
			return &outputError{err}
		}
		select {
		case c.heard <- struct{}{}:
		default:
		}
	}
}

// errUnsent means that the connection has ended. Why it did is for receive to tell.
var errUnsent = errors.New("not sent")

// send sends each line. One that cannot be a message is reported, and the others are sent.
func (c *conversation) send(in io.Reader) error {
	isText, skipped := c.kind == websocket.MessageText, false
	err := lines(in, isText, func(number int, line []byte) error {
		if isText && !utf8.Valid(line) {
			c.screen.note(fmt.Sprintf("line %d: not sent: not valid UTF-8; use --binary to send any bytes", number))
			skipped = true
			return nil
		}
		if err := c.screen.sending(line); err != nil { // first, since the answer may be quick
			return &outputError{err}
		}
		if c.conn.Write(context.Background(), c.kind, line) != nil {
			return errUnsent
		}
		return nil
	})
	if err == nil && skipped {
		return errReported
	}
	return err
}

// outputError is a message that could not be printed.
type outputError struct{ error }

func (e *outputError) Error() string { return "print a message: " + e.error.Error() }
func (e *outputError) Unwrap() error { return e.error }

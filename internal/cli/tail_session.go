package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// tail follows topics over one connection after the other.
type tail struct {
	tailOptions
	print func(m *topicMessage, raw []byte) error
	err   io.Writer

	subscriptions []*subscription
	backoff       backoff
	connected     bool // there has been a connection with all its subscriptions
	printed       int
}

func newTail(o tailOptions, std streams) *tail {
	if o.output == "" {
		o.output = "json"
		if std.outTerminal {
			o.output = "text"
		}
	}
	t := &tail{tailOptions: o, print: printer(std.out, o.output), err: std.err}
	for _, topic := range o.topics {
		t.subscriptions = append(t.subscriptions, &subscription{topic: topic, last: o.last, position: o.since})
	}
	return t
}

// cut is the end of a connection after which it makes sense to come back.
type cut struct{ error }

func (c *cut) Unwrap() error { return c.error }

// errFinished ends a connection because all is done.
var errFinished = errors.New("finished")

func (t *tail) run(ctx context.Context) error {
	for {
		began := time.Now()
		err := t.connection(ctx)
		if ctx.Err() != nil && t.connected || err == errFinished {
			return nil
		}
		c, ok := errors.AsType[*cut](err)
		if !ok {
			return err
		}
		if !t.reconnect {
			return t.givenUp(c)
		}
		t.backoff.survived(time.Since(began))
		isFirst := t.backoff.failures == 0
		wait := comeBack(c, t.backoff.next(), isFirst)
		t.note("%v; retrying in %s", c, wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// comeBack is when to connect again: at the moment that the server drew for this client, or else after the client's own
// wait, on top of what a refusal asks of all clients alike. A server that closes one connection after the other is not
// asked more often than by the client's own wait.
func comeBack(c *cut, own time.Duration, isFirst bool) time.Duration {
	if frame, ok := errors.AsType[websocket.CloseError](c); ok {
		if asked := retryMark.FindStringSubmatch(frame.Reason); asked != nil {
			ms, _ := strconv.Atoi(asked[1]) // it has at most seven digits
			wait := time.Duration(ms) * time.Millisecond
			if !isFirst {
				wait = max(wait, own)
			}
			return wait
		}
	}
	if r, ok := errors.AsType[*refused](c); ok {
		return r.retryAfter + own
	}
	return own
}

// retryMark is what a server asks of one client: see docs/protocol.md, When to come back.
var retryMark = regexp.MustCompile(`; retry=([0-9]{1,7})$`)

// givenUp is the outcome when the connection must not come back.
func (t *tail) givenUp(c *cut) error {
	if websocket.CloseStatus(c) == websocket.StatusGoingAway {
		t.note("%v", c)
		return nil
	}
	return &failure{c, statusLost}
}

func (t *tail) note(format string, args ...any) {
	fmt.Fprintf(t.err, "carillon: "+format+"\n", args...)
}

// connection is the life of one connection. It returns errFinished, a [cut], or what is wrong for good.
func (t *tail) connection(ctx context.Context) error {
	conn, err := t.dial(ctx)
	if err != nil {
		if !t.connected || rejectsForGood(err) {
			return err
		}
		return &cut{err}
	}
	defer conn.CloseNow()
	if conn.Subprotocol() != jsonSubprotocol {
		conn.Close(websocket.StatusNormalClosure, "")
		return fmt.Errorf("connect to %s: the server does not speak %s", shownURL(t.url.String()), jsonSubprotocol)
	}
	bye := func() { conn.Close(websocket.StatusNormalClosure, "") }
	defer context.AfterFunc(ctx, bye)()

	requests, err := t.requests()
	if err != nil {
		return err
	}
	go func() {
		for _, request := range requests {
			if conn.Write(context.Background(), websocket.MessageText, request) != nil {
				return // the read below returns why
			}
		}
	}()
	for waiting := len(t.subscriptions); ; {
		_, text, err := conn.Read(context.Background())
		if err != nil {
			return t.ended(ctx, err)
		}
		replied, err := t.receive(text)
		if err != nil {
			bye()
			return err
		}
		if replied {
			waiting--
		}
		if waiting == 0 && !t.connected {
			t.connected = true
		}
	}
}

// requests are those that subscribe to everything, each from where it was left, and then those for histories. The ids
// of the first are 1 and more, in the order of the subscriptions, and those of the others begin after them.
func (t *tail) requests() ([][]byte, error) {
	var list, histories [][]byte
	for i, s := range t.subscriptions {
		request, err := s.request(i + 1)
		if err != nil {
			return nil, fmt.Errorf("subscribe to %s: %w", harmlessLine(s.topic), err)
		}
		list = append(list, request)
		if request, err = s.historyRequest(len(t.subscriptions) + i + 1); err != nil {
			return nil, fmt.Errorf("request the history of %s: %w", harmlessLine(s.topic), err)
		}
		if request != nil {
			histories = append(histories, request)
		}
	}
	return append(list, histories...), nil
}

// ended sorts the ways in which the reading of a connection ends.
func (t *tail) ended(ctx context.Context, err error) error {
	frame, closed := errors.AsType[websocket.CloseError](err)
	switch {
	case ctx.Err() != nil:
		return errFinished
	case errors.Is(err, websocket.ErrMessageTooBig):
		return &failure{fmt.Errorf("read a message: %w", err), statusLost} // it would come again
	case !closed:
		return &cut{lost(err)}
	case frame.Code == websocket.StatusNormalClosure:
		t.note("%s", closing(frame))
		return errFinished
	case slices.Contains(forGood, frame.Code):
		return &failure{errors.New(closing(frame)), statusLost}
	}
	return &cut{&closedError{frame}}
}

// forGood are the close codes for something that we would do again.
var forGood = []websocket.StatusCode{
	websocket.StatusProtocolError, websocket.StatusUnsupportedData, websocket.StatusInvalidFramePayloadData,
	websocket.StatusPolicyViolation, websocket.StatusMessageTooBig, websocket.StatusMandatoryExtension,
}

// closedError is a close frame in the words for people.
type closedError struct{ frame websocket.CloseError }

func (e *closedError) Error() string { return closing(e.frame) }
func (e *closedError) Unwrap() error { return e.frame }

// serverMessage is anything that the server says: a topic's message or a reply.
type serverMessage struct {
	topicMessage
	ID         int `json:"id"`
	Subscribed *struct {
		Topic string `json:"topic"`
		subscriptionReply
	} `json:"subscribed"`
	History *struct {
		Topic    string            `json:"topic"`
		Messages []json.RawMessage `json:"messages"`
	} `json:"history"`
	Error *struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// receive takes one message of the server. It reports whether that was the reply to a subscription.
func (t *tail) receive(text []byte) (replied bool, err error) {
	var m serverMessage
	if err := json.Unmarshal(text, &m); err != nil {
		return false, fmt.Errorf("unexpected message from the server: %w", err)
	}
	switch ours := m.ID >= 1 && m.ID <= len(t.subscriptions); {
	case m.ID > len(t.subscriptions):
		if m.History != nil && len(m.History.Messages) == 0 {
			t.note("%s: no history: nothing was published yet, or no rule under topics in the configuration gives it a history; waiting for new messages",
				harmlessLine(m.History.Topic))
		}
	case m.Error != nil && !ours:
		t.note("error from the server: %s", harmlessLine(m.Error.Message))
	case m.Error != nil:
		err := fmt.Errorf("subscribe to %s: %s", harmlessLine(t.subscriptions[m.ID-1].topic), harmlessLine(m.Error.Message))
		if (m.Error.Code == "overloaded" || m.Error.Code == "unavailable") && t.connected {
			return false, &cut{err}
		}
		return false, err
	case m.Subscribed != nil && ours:
		if note := t.subscriptions[m.ID-1].confirmed(&m.Subscribed.subscriptionReply, t.connected); note != "" {
			t.note("%s", note)
		}
		return true, nil
	case m.Subscribed != nil && m.ID == 0: // the server has missed something itself
		t.missed(m.Subscribed.Topic, &m.Subscribed.subscriptionReply)
	case m.Topic != "":
		return false, t.message(&m.topicMessage, text)
	}
	return false, nil // of a newer version of the protocol
}

// missed notes that a server, which is one of a cluster, has missed messages of a topic.
func (t *tail) missed(topic string, r *subscriptionReply) {
	for _, s := range t.subscriptions {
		if s.topic == topic {
			t.note("%s", s.confirmed(r, true))
		}
	}
}

func (t *tail) message(m *topicMessage, text []byte) error {
	if err := t.print(m, text); err != nil {
		return &outputError{err}
	}
	if i := slices.Index(t.topics, m.Topic); i >= 0 {
		t.subscriptions[i].seen(m.Offset)
	}
	if t.printed++; t.printed == t.count {
		return errFinished
	}
	return nil
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"
)

// topicServer speaks just enough of docs/protocol.md. Each connection goes through the next script, and is
// cut at its end; the last script serves all that come later.
func topicServer(t *testing.T, scripts ...func(*topicConn)) (url string) {
	t.Helper()
	var connections atomic.Int32
	return fake(t, jsonSubprotocol, func(conn *websocket.Conn, r *http.Request) {
		n := int(connections.Add(1))
		scripts[min(n, len(scripts))-1](&topicConn{t, conn, r})
	})
}

type topicConn struct {
	t *testing.T
	*websocket.Conn
	request *http.Request
}

// asked reads the next request, which has to be the one that the test expects.
func (c *topicConn) asked(want string) {
	_, text, err := c.ReadMessage()
	if got := strings.ReplaceAll(string(text), `\u003e`, ">"); err != nil || got != want {
		c.t.Errorf("asked %s, %v, want %s", got, err, want)
	}
}

func (c *topicConn) say(objects ...string) {
	for _, object := range objects {
		if err := c.WriteMessage(websocket.TextMessage, []byte(object)); err != nil {
			c.t.Error(err)
		}
	}
}

// message is one of a topic. Its time is noon of a winter's day.
func message(topic string, offset int, data string) string {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 345e6, time.Local).UnixMilli()
	return fmt.Sprintf(`{"topic":%q,"offset":%d,"time":%d,"data":%s}`, topic, offset, noon, data)
}

func TestTailPrintsMessages(t *testing.T) {
	messages := []string{
		message("prices.eu", 46, `{ "AAPL": 187.2 }`),
		message("prices.eu", 47, `"two\nlines \u001b[2J"`),
		strings.Replace(message("prices.eu", 48, `"AP8="`), "}", `,"encoding":"base64"}`, 1),
	}
	url := topicServer(t, func(c *topicConn) {
		if got := c.request.Header.Get("Authorization"); got != "Bearer me" {
			t.Errorf("Authorization: %s", got)
		}
		c.asked(`{"id":1,"subscribe":{"topic":"prices.eu"}}`)
		c.say(`{"id":1,"subscribed":{"topic":"prices.eu","offset":45,"epoch":"k3f9"}}`)
		c.say(messages...)
		if code := drain(c.Conn); code != 1000 {
			t.Errorf("closed with %d", code)
		}
	})
	t.Setenv("CARILLON_TOKEN", "of the internal interface")
	args := []string{"tail", "prices.eu", "--url", url, "--token", "me", "--count", "3"}

	text := "12:00:00.345 prices.eu 46 {\"AAPL\":187.2}\n" +
		"12:00:00.345 prices.eu 47 two\\nlines \\u001b[2J\n" +
		"12:00:00.345 prices.eu 48 binary, 2 bytes: 00 ff\n"
	compact := strings.ReplaceAll(strings.Join(messages, "\n"), `{ "AAPL": 187.2 }`, `{"AAPL":187.2}`) + "\n"
	seat{}.begin(t, args...).end(0, compact, "")
	seat{terminal: true}.begin(t, args...).end(0, text, "")
	seat{}.begin(t, append(args, "--output", "text")...).end(0, text, "")
	seat{terminal: true}.begin(t, append(args, "--output", "json")...).end(0, compact, "")
}

func TestTailAsksForWhatTheFlagsSay(t *testing.T) {
	t.Run("the last messages of each topic", func(t *testing.T) {
		url := topicServer(t, func(c *topicConn) {
			c.asked(`{"id":1,"subscribe":{"topic":"a","last":5}}`)
			c.asked(`{"id":2,"subscribe":{"topic":"b","last":5}}`)
			c.asked(`{"id":3,"history":{"topic":"a","limit":1}}`)
			c.asked(`{"id":4,"history":{"topic":"b","limit":1}}`)
			c.say(`{"id":1,"subscribed":{"topic":"a","offset":1,"epoch":"e"}}`, message("a", 1, "1"), `{"id":2,"subscribed":{"topic":"b","offset":0,"epoch":"e"}}`,
				`{"id":3,"history":{"topic":"a","offset":1,"epoch":"e","recovered":true,"messages":[`+message("a", 1, "1")+`]}}`,
				`{"id":4,"history":{"topic":"b","offset":0,"epoch":"e","recovered":true,"messages":[]}}`, message("a", 2, "2"))
			hangUp(c.Conn)
		}, func(c *topicConn) { // what is missed from here on is a gap, and the reply tells it
			c.asked(`{"id":1,"subscribe":{"topic":"a","since":{"offset":2,"epoch":"e"}}}`)
			c.asked(`{"id":2,"subscribe":{"topic":"b","since":{"offset":0,"epoch":"e"}}}`)
			c.say(`{"id":4,"error":{"code":"rate_limited","message":"x"}}`, message("a", 3, "3"))
			drain(c.Conn)
		})
		j := seat{}.begin(t, "tail", "a", "b", "--last", "5", "--url", url, "-n", "3")
		j.end(0, message("a", 1, "1")+"\n"+message("a", 2, "2")+"\n"+message("a", 3, "3")+"\n",
			"carillon: b: no history: nothing was published yet, or no rule under topics in the configuration gives it a history; waiting for new messages\n...")
		if n := strings.Count(j.err.String(), "\n"); n != 2 {
			t.Errorf("said\n%s", j.err)
		}
	})
	t.Run("a position, and all is there", func(t *testing.T) {
		url := topicServer(t, func(c *topicConn) {
			c.asked(`{"id":1,"subscribe":{"topic":"a","since":{"offset":0,"epoch":"k3f9"}}}`)
			c.say(`{"id":1,"subscribed":{"topic":"a","offset":1,"epoch":"k3f9","recovered":true}}`, message("a", 1, "1"))
			drain(c.Conn)
		})
		seat{}.begin(t, "tail", "a", "--since", "0", "--epoch", "k3f9", "--url", url, "-n", "1").end(0, message("a", 1, "1")+"\n", "")
	})
	t.Run("a position, and there is a gap", func(t *testing.T) {
		url := topicServer(t, func(c *topicConn) {
			c.asked(`{"id":1,"subscribe":{"topic":"a","since":{"offset":41,"epoch":"old"}}}`)
			c.say(`{"id":1,"subscribed":{"topic":"a","offset":1,"epoch":"new","recovered":false}}`, message("a", 1, "1"))
			drain(c.Conn)
		})
		seat{}.begin(t, "tail", "a", "--since", "41", "--epoch", "old", "--url", url, "-n", "1").end(0, message("a", 1, "1")+"\n",
			"carillon: a: gap: messages after offset 41 of epoch old may be missing; the epoch is now new\n")
	})
}

// A server of a cluster may miss something itself, while it is subscribed to.
func TestAGapInTheMidst(t *testing.T) {
	url := topicServer(t, func(c *topicConn) {
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":41,"epoch":"e"}}`, message("a", 42, "1"),
			`{"subscribed":{"topic":"a","offset":90,"epoch":"e","recovered":false}}`, message("a", 90, "2"))
		drain(c.Conn)
	})
	seat{}.begin(t, "tail", "a", "--url", url, "-n", "2").end(0, message("a", 42, "1")+"\n"+message("a", 90, "2")+"\n",
		"carillon: a: gap: messages after offset 42 may be missing\n")
}

func TestAGapInTheSameEpoch(t *testing.T) {
	no := false
	s := subscription{topic: "a", position: &position{41, "e"}}
	if got := s.confirmed(&subscriptionReply{Offset: 90, Epoch: "e", Recovered: &no}, true); got != "a: gap: messages after offset 41 may be missing" {
		t.Errorf("says %q", got)
	}
}

// Two topics and a pattern; the connection is cut, then the server shuts down, and each time the tail
// goes on where it was.
func TestTailGoesOnAfterTheLastMessage(t *testing.T) {
	url := topicServer(t, func(c *topicConn) {
		c.asked(`{"id":1,"subscribe":{"topic":"a"}}`)
		c.asked(`{"id":2,"subscribe":{"topic":"b"}}`)
		c.asked(`{"id":3,"subscribe":{"topic":"c.>"}}`)
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":5,"epoch":"e"}}`,
			`{"id":2,"subscribed":{"topic":"b","offset":7,"epoch":"f","after":7}}`,
			`{"id":3,"subscribed":{"topic":"c.>"}}`,
			message("a", 6, "6"), message("c.d", 1, "1"))
	}, func(c *topicConn) {
		c.asked(`{"id":1,"subscribe":{"topic":"a","since":{"offset":6,"epoch":"e"}}}`)
		c.asked(`{"id":2,"subscribe":{"topic":"b","since":{"offset":7,"epoch":"f"}}}`)
		c.asked(`{"id":3,"subscribe":{"topic":"c.>"}}`)
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":7,"epoch":"e","recovered":true}}`,
			message("a", 7, "7"),
			`{"id":2,"subscribed":{"topic":"b","offset":5,"epoch":"g","after":2,"recovered":false}}`,
			`{"id":3,"subscribed":{"topic":"c.>"}}`)
		goodbye(c.Conn, 1001, "shutting down")
	}, func(c *topicConn) {
		c.asked(`{"id":1,"subscribe":{"topic":"a","since":{"offset":7,"epoch":"e"}}}`)
		c.asked(`{"id":2,"subscribe":{"topic":"b","since":{"offset":2,"epoch":"g"}}}`)
		c.asked(`{"id":3,"subscribe":{"topic":"c.>"}}`)
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":7,"epoch":"e","recovered":true}}`,
			`{"id":2,"subscribed":{"topic":"b","offset":5,"epoch":"g","after":2,"recovered":true}}`,
			message("b", 3, "1"))
		drain(c.Conn)
	})
	j := seat{}.begin(t, "tail", "a", "b", "c.>", "--url", url, "-n", "4")
	j.end(0, strings.Join([]string{message("a", 6, "6"), message("c.d", 1, "1"), message("a", 7, "7"), message("b", 3, "1")}, "\n")+"\n", "...")
	told := j.err.String()
	for _, words := range []string{
		"carillon: connection lost: no close frame; retrying in ",
		"\ncarillon: a: reconnected, resuming after offset 6\n",
		"carillon: b: gap: messages after offset 7 of epoch f may be missing; the epoch is now g\n",
		"carillon: c.>: reconnected; a pattern has no position to resume from, so messages may be missing\n",
		"carillon: closed by the server: 1001 (going away): shutting down; retrying in ",
		"\ncarillon: a: reconnected, resuming after offset 7\n",
	} {
		i := strings.Index(told, words)
		if i < 0 {
			t.Fatalf("did not say %q, or not in order, but\n%s", words, j.err)
		}
		told = told[i:]
	}
}

func TestPosition(t *testing.T) {
	yes, no := true, false
	after := uint64(43)
	at := func(offset uint64, epoch string) *position { return &position{offset, epoch} }
	for _, test := range []struct {
		sentence string
		sub      subscription
		reply    subscriptionReply
		seen     []uint64
		want     position
	}{
		{"a new subscription begins at the end", subscription{topic: "a"}, subscriptionReply{45, "e", nil, nil}, nil, position{45, "e"}},
		{"each message moves it", subscription{topic: "a"}, subscriptionReply{45, "e", nil, nil}, []uint64{46, 47}, position{47, "e"}},
		{"the current value does not move it back", subscription{topic: "a"}, subscriptionReply{45, "e", nil, nil}, []uint64{44}, position{45, "e"}},
		{"the last messages are wanted until they came", subscription{topic: "a", last: 5}, subscriptionReply{45, "e", nil, nil}, nil, position{40, "e"}},
		{"there may be fewer of them", subscription{topic: "a", last: 5}, subscriptionReply{3, "e", nil, nil}, nil, position{0, "e"}},
		{"missed messages are wanted until they came", subscription{topic: "a", position: at(41, "e")}, subscriptionReply{45, "e", nil, &yes}, nil, position{41, "e"}},
		{"after a gap all that is kept is wanted", subscription{topic: "a", position: at(41, "e")}, subscriptionReply{5, "f", nil, &no}, nil, position{0, "f"}},
		{"the server says what it begins with", subscription{topic: "a", last: 5}, subscriptionReply{45, "e", &after, nil}, nil, position{43, "e"}},
		{"also behind a gap", subscription{topic: "a", position: at(41, "e")}, subscriptionReply{45, "f", &after, &no}, nil, position{43, "f"}},
		{"until it came", subscription{topic: "a", position: at(41, "e")}, subscriptionReply{5, "f", nil, &no}, []uint64{4, 5}, position{5, "f"}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			test.sub.confirmed(&test.reply, false)
			for _, offset := range test.seen {
				test.sub.seen(offset)
			}
			if *test.sub.position != test.want {
				t.Errorf("is at %v, want %v", *test.sub.position, test.want)
			}
			again, err := test.sub.request(1)
			since, _ := json.Marshal(test.want)
			if want := `{"id":1,"subscribe":{"topic":"a","since":` + string(since) + `}}`; err != nil || string(again) != want {
				t.Errorf("asks %s, %v, want %s", again, err, want)
			}
		})
	}
}

func TestARefusedSubscriptionEndsTheTail(t *testing.T) {
	url := topicServer(t, func(c *topicConn) {
		c.asked(`{"id":1,"subscribe":{"topic":"a..b"}}`)
		c.say(`{"id":1,"error":{"code":"invalid_topic","message":"topic \"a..b\": level 2 is empty"}}`)
		drain(c.Conn)
	})
	seat{}.begin(t, "tail", "a..b", "--url", url).end(1, "", "carillon: subscribe to a..b: topic \"a..b\": level 2 is empty\n")
}

func TestAnOverloadedServerIsAskedAgain(t *testing.T) {
	overloaded := func(c *topicConn) {
		c.say(`{"id":1,"error":{"code":"overloaded","message":"too much to do"}}`)
		drain(c.Conn)
	}
	subscribed := func(c *topicConn) {
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":5,"epoch":"e","recovered":true}}`)
	}
	done := func(c *topicConn) {
		subscribed(c)
		c.say(message("a", 6, "6"))
		drain(c.Conn)
	}
	j := seat{}.begin(t, "tail", "a", "--url", topicServer(t, subscribed, overloaded, done), "-n", "1")
	j.end(0, message("a", 6, "6")+"\n", "...")
	if words := "carillon: subscribe to a: too much to do; retrying in "; !strings.Contains(j.err.String(), words) {
		t.Errorf("did not say %q, but\n%s", words, j.err)
	}
	seat{}.begin(t, "tail", "a", "--url", topicServer(t, overloaded)).end(1, "", "carillon: subscribe to a: too much to do\n")
}

func TestTheEndOfATail(t *testing.T) {
	closes := func(code int, reason string) func(*topicConn) {
		return func(c *topicConn) { goodbye(c.Conn, code, reason) }
	}
	for _, test := range []struct {
		sentence string
		serve    func(*topicConn)
		flags    string
		status   int
		err      string
	}{
		{"the server is done", closes(1000, ""), "", 0, "carillon: closed by the server: 1000 (normal closure)\n"},
		{"we did wrong, and would again", closes(1008, "too many requests"), "", 3, "carillon: closed by the server: 1008 (policy violation): too many requests\n"},
		{"the server shuts down, and that is it", closes(1001, ""), "--no-reconnect", 0, "carillon: closed by the server: 1001 (going away)\n"},
		{"we are too slow, and that is it", closes(1013, "too slow"), "--no-reconnect", 3, "carillon: closed by the server: 1013 (try again later): too slow\n"},
		{"the connection is cut, and that is it", func(*topicConn) {}, "--no-reconnect", 3, "carillon: connection lost: no close frame\n"},
		{"the server talks nonsense", func(c *topicConn) { c.say("nonsense"); drain(c.Conn) }, "", 1, "carillon: unexpected message from the server: invalid character..."},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			args := append([]string{"tail", "a", "--url", topicServer(t, test.serve)}, strings.Fields(test.flags)...)
			seat{}.begin(t, args...).end(test.status, "", test.err)
		})
	}
	t.Run("the server speaks another protocol", func(t *testing.T) {
		url := fake(t, "", func(c *websocket.Conn, _ *http.Request) { drain(c) })
		seat{}.begin(t, "tail", "a", "--url", url).end(1, "", "carillon: connect to "+url+": the server does not speak carillon.v1.json\n")
	})
}

func TestWhatIsNewInTheProtocolIsIgnored(t *testing.T) {
	url := topicServer(t, func(c *topicConn) {
		c.say(`{"novelty":{"a":1}}`, `{"error":{"code":"bad_request","message":"who?"}}`,
			`{"id":1,"subscribed":{"topic":"a","offset":5,"epoch":"e","mood":"good"}}`, message("a", 6, "6"))
		drain(c.Conn)
	})
	seat{}.begin(t, "tail", "a", "--url", url, "-n", "1").end(0, message("a", 6, "6")+"\n", "carillon: error from the server: who?\n")
}

// The server goes away and comes back as one that refuses us for a while, and then for good.
func TestRefusalsOnTheWayBack(t *testing.T) {
	var attempts atomic.Int32
	var handlers sync.WaitGroup
	upgrader := websocket.Upgrader{Subprotocols: []string{jsonSubprotocol}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		switch attempts.Add(1) {
		case 1:
			conn, err := upgrader.Upgrade(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			(&topicConn{t, conn, r}).say(`{"id":1,"subscribed":{"topic":"a","offset":5,"epoch":"e"}}`)
			hangUp(conn)
		case 2:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		default:
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}
	}))
	t.Cleanup(func() { handlers.Wait(); s.Close() })
	url := strings.Replace(s.URL, "http", "ws", 1)
	j := seat{}.begin(t, "tail", "a", "--url", url)
	j.end(1, "", "carillon: connection lost: ...")
	for _, words := range []string{
		"carillon: connect to " + url + ": HTTP 503 Service Unavailable: starting; retrying in ",
		"carillon: connect to " + url + ": HTTP 401 Unauthorized: who are you?\n",
	} {
		if !strings.Contains(j.err.String(), words) {
			t.Errorf("did not say %q, but\n%s", words, j.err)
		}
	}
}

// The server closes with a moment to come back at, which is longer than the client's own wait would be.
func TestTailComesBackWhenTheServerAsks(t *testing.T) {
	var closed time.Time
	url := topicServer(t, func(c *topicConn) {
		c.say(`{"id":1,"subscribed":{"topic":"a","offset":5,"epoch":"e"}}`)
		closed = time.Now()
		goodbye(c.Conn, 1001, "server is shutting down; retry=700")
	}, func(c *topicConn) {
		if waited := time.Since(closed); waited < 700*time.Millisecond {
			t.Errorf("came back after %v", waited)
		}
		c.say(message("a", 6, "6"))
		drain(c.Conn)
	})
	seat{}.begin(t, "tail", "a", "--url", url, "-n", "1").end(0, message("a", 6, "6")+"\n",
		"carillon: closed by the server: 1001 (going away): server is shutting down; retry=700; retrying in 700ms\n")
}

func TestWhenToComeBack(t *testing.T) {
	closed := func(reason string) error { return &closedError{coder.CloseError{Code: 1001, Reason: reason}} }
	refusedWith := func(value string) error {
		return fmt.Errorf("connect: %w", refusal(&http.Response{StatusCode: 503, Header: http.Header{"Retry-After": {value}}, Body: http.NoBody}))
	}
	const own = 17 * time.Millisecond
	for _, test := range []struct {
		sentence string
		err      error
		want     time.Duration
	}{
		{"the server draws a moment", closed("bye; retry=3200"), 3200 * time.Millisecond},
		{"which may be now", closed("; retry=0"), 0},
		{"only at the end of the reason", closed("; retry=3200 or so"), own},
		{"not for days", closed("bye; retry=99999999"), own},
		{"not before", closed("bye; retry=-1"), own},
		{"nothing is asked", closed("bye"), own},
		{"the connection was lost", errors.New("connection lost"), own},
		{"a refusal asks all alike, so they spread", refusedWith("5"), 5*time.Second + own},
		{"up to a bound", refusedWith("99999"), longestRetry + own},
		{"a date has passed", refusedWith("Mon, 02 Jan 2006 15:04:05 GMT"), own},
		{"a refusal says nothing", refusedWith("soon"), own},
	} {
		if got := comeBack(&cut{test.err}, own, true); got != test.want {
			t.Errorf("%s: %v, want %v", test.sentence, got, test.want)
		}
	}
	if got := comeBack(&cut{closed("; retry=0")}, own, false); got != own {
		t.Errorf("of a server that closes again and again: %v", got)
	}
	if got := comeBack(&cut{refusedWith(time.Now().Add(time.Minute).UTC().Format(http.TimeFormat))}, 0, true); got < 50*time.Second || got > time.Minute {
		t.Errorf("at a date: %v", got)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i, bound := range []time.Duration{250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000} {
		if got := b.bound(); got != bound*time.Millisecond {
			t.Errorf("bound %d is %v", i, got)
		}
		if wait := b.next(); wait < 0 || wait > bound*time.Millisecond {
			t.Errorf("wait %d is %v", i, wait)
		}
	}
	b.failures = 1000
	if got := b.bound(); got != 30*time.Second {
		t.Errorf("after 1000 failures the bound is %v", got)
	}
	b.survived(10 * time.Second)
	if b.failures != 1000 {
		t.Error("a short connection makes the next wait short")
	}
	b.survived(time.Minute)
	if got := b.bound(); got != 250*time.Millisecond {
		t.Errorf("after a long connection the bound is %v", got)
	}
	// The waits are spread over the whole range, not around its end.
	low := 0
	for range 1000 {
		if b := (backoff{failures: 3}); b.next() < time.Second {
			low++
		}
	}
	if low < 400 || low > 600 {
		t.Errorf("%d of 1000 waits are in the lower half", low)
	}
}

// After a new connection it would be the first message again.
func TestAMessageThatIsTooLargeIsNotAskedForAgain(t *testing.T) {
	err := new(tail).ended(t.Context(), fmt.Errorf("read: %w", coder.ErrMessageTooBig))
	if f, ok := errors.AsType[*failure](err); !ok || f.status != statusLost {
		t.Errorf("ends with %v", err)
	}
}

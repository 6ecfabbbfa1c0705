package server

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"

	"carillon/codec"
	"carillon/server/internal/reactor"
)

var (
	epochs = regexp.MustCompile(`"epoch":"[0-9a-z]+"`)
	clocks = regexp.MustCompile(`"time":1[0-9]{12}`)
)

// plain is a message without what is different each time.
func (s said) plain() string {
	return clocks.ReplaceAllString(epochs.ReplaceAllString(s.text, `"epoch":"E"`), `"time":T`)
}

// One conversation in which everything is asked for that there is. Where a reply is "", none comes.
func TestJSONConversation(t *testing.T) {
	opts := topics(TopicRule{Match: "kept.>", History: 3})
	opts.Endpoints[0].Topics.Subscribe = []string{"kept.>", "free.>", "room"}
	opts.Endpoints[0].Topics.Publish = []string{"kept.>", "free.>", "room"}
	opts.Endpoints[0].Topics.MaxSubscriptions = 3
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	if id := onlyConn(t, s, "/ws").ID(); id != 1 {
		t.Fatal(id)
	}
	for _, row := range []struct{ sentence, request, reply string }{
		{"a ping gets a pong", `{"id":1,"ping":{}}`, `{"id":1,"pong":{}}`},
		{"an id may be a string", `{"id":"a-b","ping":{}}`, `{"id":"a-b","pong":{}}`},
		{"an empty id is an id", `{"id":"","ping":{}}`, `{"id":"","pong":{}}`},
		{"an id comes back as it was written", `{"id":"\u00fc\"\\","ping":{}}`, `{"id":"\u00fc\"\\","pong":{}}`},
		{"an id may be negative", `{"id":-7,"ping":{}}`, `{"id":-7,"pong":{}}`},
		{"an id may be larger than 64 bits", `{"id":123456789012345678901234567890,"ping":{}}`, `{"id":123456789012345678901234567890,"pong":{}}`},
		{"an id may have 64 bytes", `{"id":"` + strings.Repeat("i", 64) + `","ping":{}}`, `{"id":"` + strings.Repeat("i", 64) + `","pong":{}}`},
		{"its escapes do not count", `{"id":"` + strings.Repeat(`\u0069`, 64) + `","ping":{}}`, `{"id":"` + strings.Repeat(`\u0069`, 64) + `","pong":{}}`},
		{"space does not matter", " {\n\t\"id\" : 1 ,\r\n \"ping\" : { } } ", `{"id":1,"pong":{}}`},
		{"a ping without an id gets nothing", `{"ping":{}}`, ""},
		{"unknown fields are ignored", `{"id":1,"ping":{"x":[1]},"color":"red","trace":{"a":{}}}`, `{"id":1,"pong":{}}`},
		{"the last of two equal fields counts", `{"id":1,"id":2,"ping":{}}`, `{"id":2,"pong":{}}`},
		{"null is as if it were not there", `{"id":1,"ping":{},"subscribe":null}`, `{"id":1,"pong":{}}`},

		{"a subscription says where it begins", `{"id":2,"subscribe":{"topic":"kept.a"}}`, `{"id":2,"subscribed":{"topic":"kept.a","offset":0,"epoch":"E","after":0}}`},
		{"the same again is refused", `{"id":3,"subscribe":{"topic":"kept.a"}}`, `already_subscribed`},
		{"a pattern over it is refused", `{"id":3,"subscribe":{"topic":"kept.*"}}`, `overlap`},
		{"a subscription without an id gets no reply", `{"subscribe":{"topic":"free.b"}}`, ""},
		{"it has been made all the same", `{"id":3,"subscribe":{"topic":"free.b"}}`, `already_subscribed`},
		{"a pattern has no position", `{"id":4,"subscribe":{"topic":"free.c.>"}}`, `{"id":4,"subscribed":{"topic":"free.c.>"}}`},
		{"there may be three", `{"id":5,"subscribe":{"topic":"room"}}`, `too_many_subscriptions`},
		{"an end makes room", `{"id":6,"unsubscribe":{"topic":"free.b"}}`, `{"id":6,"unsubscribed":{"topic":"free.b"}}`},
		{"twice is once too often", `{"id":7,"unsubscribe":{"topic":"free.b"}}`, `not_subscribed`},
		{"an end without an id gets no reply", `{"unsubscribe":{"topic":"free.c.>"}}`, ""},
		{"but if it fails it does", `{"unsubscribe":{"topic":"free.c.>"}}`, `-not_subscribed`},
		{"a topic is not its pattern", `{"id":8,"unsubscribe":{"topic":"kept.*"}}`, `not_subscribed`},

		{"any JSON value can be published", `{"id":9,"publish":{"topic":"free.x","data":{"a":[1,null]}}}`, `{"id":9,"published":{"topic":"free.x","offset":1,"epoch":"E","subscribers":0}}`},
		{"also null", `{"id":9,"publish":{"topic":"free.x","data":null}}`, `{"id":9,"published":{"topic":"free.x","offset":2,"epoch":"E","subscribers":0}}`},
		{"text", `{"id":9,"publish":{"topic":"free.x","data":"hello","encoding":"text"}}`, `{"id":9,"published":{"topic":"free.x","offset":3,"epoch":"E","subscribers":0}}`},
		{"bytes", `{"id":9,"publish":{"topic":"free.x","data":"AP8=","encoding":"base64"}}`, `{"id":9,"published":{"topic":"free.x","offset":4,"epoch":"E","subscribers":0}}`},
		{"a publish without an id gets no reply", `{"publish":{"topic":"kept.b","data":1}}`, ""},
		{"it has been made all the same", `{"id":10,"history":{"topic":"kept.b"}}`,
			`{"id":10,"history":{"topic":"kept.b","offset":1,"epoch":"E","recovered":true,"messages":[{"topic":"kept.b","offset":1,"time":T,"data":1}]}}`},
		{"a key is used once", `{"id":11,"publish":{"topic":"free.k","data":1,"key":"k"}}`, `{"id":11,"published":{"topic":"free.k","offset":1,"epoch":"E","subscribers":0}}`},
		{"and the second time is answered as the first", `{"id":12,"publish":{"topic":"free.k","data":2,"key":"k"}}`, `{"id":12,"published":{"topic":"free.k","offset":1,"epoch":"E","subscribers":0}}`},
		{"on another topic it is another key", `{"id":13,"publish":{"topic":"free.l","data":2,"key":"k"}}`, `{"id":13,"published":{"topic":"free.l","offset":1,"epoch":"E","subscribers":0}}`},
		{"a key may have 128 bytes", `{"id":14,"publish":{"topic":"free.k","data":1,"key":"` + strings.Repeat("k", 128) + `"}}`, `{"id":14,"published":{"topic":"free.k","offset":2,"epoch":"E","subscribers":0}}`},
		{"but not 129", `{"id":14,"publish":{"topic":"free.k","data":1,"key":"` + strings.Repeat("k", 129) + `"}}`, `bad_request`},

		{"a topic without history has none", `{"id":15,"history":{"topic":"free.x","limit":5}}`, `{"id":15,"history":{"topic":"free.x","offset":4,"epoch":"E","recovered":true,"messages":[]}}`},
		{"a topic that does not exist has none either", `{"id":15,"history":{"topic":"free.nobody"}}`, `{"id":15,"history":{"topic":"free.nobody","offset":0,"epoch":"","recovered":true,"messages":[]}}`},
		{"a history has a limit", `{"id":16,"history":{"topic":"kept.a","limit":0}}`, `bad_request`},
		{"which has a limit", `{"id":16,"history":{"topic":"kept.a","limit":1001}}`, `bad_request`},
		{"and is a whole number", `{"id":16,"history":{"topic":"kept.a","limit":1.5}}`, `bad_request`},
		{"a pattern has no history", `{"id":16,"history":{"topic":"kept.*"}}`, `invalid_topic`},

		{"who is there can be asked", `{"id":17,"presence":{"topic":"kept.a"}}`, `{"id":17,"present":{"topic":"kept.a","count":1,"connections":[{"id":"1"}]}}`},
		{"also where there is no subscriber", `{"id":17,"presence":{"topic":"free.nobody"}}`, `{"id":17,"present":{"topic":"free.nobody","count":0,"connections":[]}}`},
		{"but not of a pattern", `{"id":17,"presence":{"topic":"free.*"}}`, `invalid_topic`},

		{"it is no JSON", `{"id":1,"ping":{}`, `-bad_request`},
		{"it is empty", ``, `-bad_request`},
		{"it is an array", `[1]`, `-bad_request`},
		{"it is a string", `"ping"`, `-bad_request`},
		{"it is null", `null`, `-bad_request`},
		{"it asks for nothing", `{"id":1}`, `bad_request`},
		{"it asks for something unknown", `{"id":1,"fly":{}}`, `bad_request`},
		{"it asks for two things", `{"id":1,"ping":{},"presence":{"topic":"kept.a"}}`, `bad_request`},
		{"it asks with a string", `{"id":1,"subscribe":"kept.a"}`, `bad_request`},
		{"a ping is an object", `{"id":1,"ping":1}`, `bad_request`},
		{"an id is no fraction", `{"id":1.5,"ping":{}}`, `-bad_request`},
		{"nor has an exponent", `{"id":1e3,"ping":{}}`, `-bad_request`},
		{"an id is no object", `{"id":{},"ping":{}}`, `-bad_request`},
		{"also not where something else is wrong", `{"id":{},"ping":1}`, `-bad_request`},
		{"an id is not null", `{"id":null,"ping":{}}`, `-bad_request`},
		{"an id is not true", `{"id":true,"ping":{}}`, `-bad_request`},
		{"an id has not 65 bytes", `{"id":"` + strings.Repeat("i", 65) + `","ping":{}}`, `-bad_request`},
		{"nor 65 digits", `{"id":` + strings.Repeat("1", 65) + `,"ping":{}}`, `-bad_request`},
		{"nor a million", `{"id":"` + strings.Repeat("i", 1_000_000) + `","ping":1}`, `-bad_request`},
		{"a topic is a string", `{"id":1,"subscribe":{"topic":5}}`, `bad_request`},
		{"a topic is needed", `{"id":1,"subscribe":{}}`, `invalid_topic`},
		{"a topic is well-formed", `{"id":1,"subscribe":{"topic":"a..b"}}`, `invalid_topic`},
		{"since is a position", `{"id":1,"subscribe":{"topic":"kept.c","since":5}}`, `bad_request`},
		{"an offset is not negative", `{"id":1,"subscribe":{"topic":"kept.c","since":{"offset":-1,"epoch":"x"}}}`, `bad_request`},
		{"since and last are mutually exclusive", `{"id":1,"subscribe":{"topic":"kept.c","since":{"offset":1,"epoch":"x"},"last":1}}`, `bad_request`},
		{"last is not negative", `{"id":1,"subscribe":{"topic":"kept.c","last":-1}}`, `bad_request`},
		{"last is at most 10000", `{"id":1,"subscribe":{"topic":"kept.c","last":10001}}`, `bad_request`},
		{"a pattern has no last", `{"id":1,"subscribe":{"topic":"free.*","last":1}}`, `bad_request`},
		{"a pattern has no since", `{"id":1,"subscribe":{"topic":"free.*","since":{"offset":1,"epoch":"x"}}}`, `bad_request`},
		{"this topic is not for clients", `{"id":1,"subscribe":{"topic":"secret"}}`, `not_allowed`},
		{"nor is a pattern that has more than they may have", `{"id":1,"subscribe":{"topic":">"}}`, `not_allowed`},
		{"nor its history", `{"id":1,"history":{"topic":"secret"}}`, `not_allowed`},
		{"nor who is there", `{"id":1,"presence":{"topic":"secret"}}`, `not_allowed`},
		{"nor may they publish to it", `{"id":1,"publish":{"topic":"secret","data":1}}`, `not_allowed`},
		{"a publish goes to a topic", `{"id":1,"publish":{"topic":"free.*","data":1}}`, `invalid_topic`},
		{"a publish has data", `{"id":1,"publish":{"topic":"free.x"}}`, `bad_request`},
		{"an encoding is known", `{"id":1,"publish":{"topic":"free.x","data":"","encoding":"hex"}}`, `bad_request`},
		{"text is a string", `{"id":1,"publish":{"topic":"free.x","data":1,"encoding":"text"}}`, `bad_request`},
		{"base64 is base64", `{"id":1,"publish":{"topic":"free.x","data":"A","encoding":"base64"}}`, `bad_request`},
		{"deep JSON ends somewhere", `{"id":1,"ping":` + strings.Repeat("[", 100_000), `-bad_request`},
		{"a number may be long and is not repeated", `{"id":1,"subscribe":{"topic":"kept.c","last":` + strings.Repeat("9", 500_000) + `}}`, `bad_request`},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			c.t = t
			c.send(row.request)
			if row.reply == "" {
				c.send(`{"id":"next","ping":{}}`)
				row.reply = `{"id":"next","pong":{}}`
			}
			got := c.said()
			if strings.HasPrefix(row.reply, "{") {
				if got.plain() != row.reply {
					t.Fatalf("got  %s\nwant %s", got.plain(), row.reply)
				}
				return
			}
			code, noID := strings.CutPrefix(row.reply, "-")
			if got.Error == nil || got.Error.Code != code || got.Error.Message == "" || (got.ID == nil) != noID {
				t.Fatalf("got %.300s, want %s", got.text, row.reply)
			}
			if id := regexp.MustCompile(`"id":[^,}]*`).FindString(row.request); !noID && `"id":`+string(got.ID) != id {
				t.Errorf("the id is %s, want %s", got.ID, id)
			}
			if len(got.text) > 500 {
				t.Errorf("the reply has %d bytes", len(got.text))
			}
		})
	}
	c.t = t
	c.send(`{"id":1,"ping":{}}`)
	if got := c.said(); got.Pong == nil {
		t.Error(got.text)
	}
}

// The endpoint allows neither patterns nor questions about presence, and nothing can be published.
func TestJSONWhatIsNotAllowed(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Topics = TopicAccess{}
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	for request, key := range map[string]string{
		`"subscribe":{"topic":"a.*"}`: "topics.patterns", `"presence":{"topic":"a"}`: "topics.presence", `"publish":{"topic":"a","data":1}`: "topics.publish",
	} {
		if got := c.ask(`{"id":1,%s}`, request); got.Error == nil || got.Error.Code != "not_allowed" || !strings.Contains(got.Error.Message, key+" ") {
			t.Errorf("%s: %s", request, got.text)
		}
	}
}

// What is not allowed is told with the key of the endpoint, or the member of the client's rights, that would allow it.
func TestWhatIsNotAllowedNamesTheKey(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Topics = TopicAccess{Subscribe: []string{"a", "b"}, Publish: []string{"a", "b"}, Presence: true}
	opts.Endpoints[0].Handler = Handler{Upgrade: func(r *Request) error {
		return r.Identify(Identity{Subject: "alice", Subscribe: []string{"a"}, Publish: []string{"a"}})
	}}
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	c.subscribed("a")
	for request, want := range map[string]string{
		`"subscribe":{"topic":"c"}`:        "not in topics.subscribe of the endpoint",
		`"history":{"topic":"c"}`:          "not in topics.subscribe of the endpoint",
		`"presence":{"topic":"c"}`:         "not in topics.subscribe of the endpoint",
		`"publish":{"topic":"c","data":1}`: "not in topics.publish of the endpoint",
		`"subscribe":{"topic":"b"}`:        "not in subscribe of its token",
		`"history":{"topic":"b"}`:          "not in subscribe of its token",
		`"presence":{"topic":"b"}`:         "not in subscribe of its token",
		`"publish":{"topic":"b","data":1}`: "not in publish of its token",
		`"subscribe":{"topic":"c.*"}`:      "topics.patterns of the endpoint is false",
	} {
		if got := c.ask(`{"id":1,%s}`, request); got.Error == nil || got.Error.Code != "not_allowed" || !strings.Contains(got.Error.Message, want) {
			t.Errorf("%s: %s", request, got.text)
		}
	}
}

// A server has as many topics as it may have. A client that asks for one more is told so, in its own way.
func TestTooManyTopics(t *testing.T) {
	opts := topics()
	opts.Limits.MaxTopics = 2
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	c.subscribed("a")
	c.subscribed("b")
	c.subscribed("b.*") // is no topic
	for _, request := range []string{`"subscribe":{"topic":"c"}`, `"publish":{"topic":"c","data":1}`} {
		if got := c.ask(`{"id":1,%s}`, request); got.Error == nil || got.Error.Code != "too_many_topics" {
			t.Errorf("%s: %s", request, got.text)
		}
	}
	if _, ok := s.Topic("c"); ok {
		t.Error("it was made")
	}
	dial(t, s, "/ws?topic=c").wantClose(codec.CloseTryAgainLater, "limits.max_topics")
	if got := dial(t, s, "/ws?topic=c", speakJSON).said(); got.Error == nil || got.Error.Code != "too_many_topics" || got.ID != nil {
		t.Error(got.text)
	}
}

// A connection that was opened with topics gets the replies to requests that it has not sent, and then goes
// on as any other.
func TestJSONTopicsOfTheRequestLine(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "a", History: 5}))
	epoch := mustPublish(t, s, "a", "one").Epoch
	c := dial(t, s, "/ws?topic=a&last=5", speakJSON)
	if got := c.said(); got.plain() != `{"subscribed":{"topic":"a","offset":1,"epoch":"E","after":0}}` {
		t.Error(got.text)
	}
	if got := c.said(); got.plain() != `{"topic":"a","offset":1,"time":T,"data":"one"}` {
		t.Error(got.text)
	}
	if got := c.ask(`{"id":1,"subscribe":{"topic":"a"}}`); got.Error == nil || got.Error.Code != "already_subscribed" {
		t.Error(got.text)
	}
	c = dial(t, s, "/ws?topic=a&since=0&epoch="+epoch, speakJSON)
	if got := c.said(); got.plain() != `{"subscribed":{"topic":"a","offset":1,"epoch":"E","after":0,"recovered":true}}` {
		t.Error(got.text)
	}
	c = dial(t, s, "/ws?topic=x&topic=y.*", speakJSON)
	if x, y := c.said(), c.said(); x.plain() != `{"subscribed":{"topic":"x","offset":0,"epoch":"E","after":0}}` || y.text != `{"subscribed":{"topic":"y.*"}}` {
		t.Error(x.text, y.text)
	}
}

func TestJSONConnectionsSpeakText(t *testing.T) {
	s := start(t, topics())
	c := dial(t, s, "/ws", speakJSON)
	c.write(masked(0x82, []byte(`{"id":1,"ping":{}}`)))
	c.wantClose(codec.CloseUnsupported, "expected JSON text messages")
}

// Of a hundred clients that publish with the same key at once, one publishes, and all get its receipt. Of a hundred
// times that the application does, too.
func TestOneKeyAtOnce(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "orders", History: 1000}))
	own, clients := make(chan Receipt, 100), make(chan Receipt, 100)
	var all sync.WaitGroup
	for i := range 100 {
		c := dial(t, s, "/ws", speakJSON)
		all.Go(func() {
			c.send(fmt.Sprintf(`{"id":1,"publish":{"topic":"orders","data":%d,"key":"order-17"}}`, i))
			r, err := s.Publish(Publication{Topic: "orders", Payload: []byte("x"), Key: "order-17"})
			if err != nil {
				t.Error(err)
			}
			own <- r
			said, err := c.trySaid()
			if err != nil || said.Published == nil {
				t.Error(said, err)
				return
			}
			clients <- Receipt{Offset: said.Published.Offset, Epoch: said.Published.Epoch, Subscribers: said.Published.Subscribers}
		})
	}
	all.Wait()
	offsets := uint64(0)
	for _, receipts := range []chan Receipt{own, clients} {
		first := <-receipts
		offsets += first.Offset
		for len(receipts) > 0 {
			if r := <-receipts; r != first {
				t.Fatalf("%+v and %+v", r, first)
			}
		}
	}
	if info, _ := s.Topic("orders"); info.History != 2 || offsets != 3 {
		t.Errorf("%d messages were published", info.History)
	}
}

// A publication that failed has used up no key.
func TestAKeyOfAFailure(t *testing.T) {
	opts := topics()
	opts.Limits.MaxTopics = 1
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	c.subscribed("a")
	p := Publication{Topic: "b", Payload: []byte("x"), Key: "k"}
	if _, err := s.Publish(p); err != ErrTooManyTopics {
		t.Fatal(err)
	}
	c.ask(`{"id":1,"unsubscribe":{"topic":"a"}}`)
	if r, err := s.Publish(p); err != nil || r.Offset != 1 {
		t.Error(r, err)
	}
}

// Of a crowd, presence counts all and lists a thousand.
func TestPresenceOfACrowd(t *testing.T) {
	s := start(t, topics())
	c := dial(t, s, "/ws", speakJSON)
	for range 1050 {
		dial(t, s, "/ws?topic=a")
	}
	subscribers(t, s, "a", 1050)
	got := c.ask(`{"id":1,"presence":{"topic":"a"}}`)
	if got.Present == nil || got.Present.Count != 1050 || len(got.Present.Connections) != 1000 {
		t.Fatalf("%.200s", got.text)
	}
	seen := map[string]bool{}
	for _, p := range got.Present.Connections {
		seen[p.ID] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d different ones", len(seen))
	}
}

// Whatever a client sends, nothing panics, and its connection answers or ends.
func FuzzRequest(f *testing.F) {
	s := start(f, topics(TopicRule{Match: "a", History: 2}))
	for _, seed := range []string{
		`{"id":1,"ping":{}}`, `{"id":"x","subscribe":{"topic":"a","since":{"offset":1,"epoch":"x"}}}`, `{"unsubscribe":{"topic":"a"}}`,
		`{"id":1,"publish":{"topic":"a","data":{"x":1},"key":"k"}}`, `{"id":1,"publish":{"topic":"a","data":"AA==","encoding":"base64"}}`,
		`{"id":1,"history":{"topic":"a","limit":3}}`, `{"id":1,"presence":{"topic":"a"}}`, `[]`, `{"id":{}}`, "{\"id\":1,\"ping\":{}}\n", `{"id":"\ud800","ping":{}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, request string) {
		if strings.ToValidUTF8(request, "") != request || len(request) > 1<<20 || strings.Contains(request, "that is all") {
			return // the connection would be closed, and rightly
		}
		if strings.Count(request, "\n") >= reactor.MistakeBurst {
			return // so it would be for too many mistakes, for which each input has a connection of its own
		}
		c := dial(t, s, "/ws", speakJSON)
		c.send(request)
		c.send(`{"id":"that is all","ping":{}}`)
		for {
			got := c.said() // is JSON
			if string(got.ID) == `"that is all"` {
				break
			}
			if !strings.Contains(request, string(got.ID)) || got.Error != nil && (got.Error.Code == "" || !json.Valid([]byte(request)) && got.Error.Code != "bad_request") {
				t.Fatalf("%q got %s", request, got.text)
			}
		}
		if n := s.Stats().Panics; n > 0 {
			t.Fatalf("%d panics", n)
		}
	})
}

package server

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/codec"
)

// What the server answers, byte by byte, and then every kind of message.
func TestEvents(t *testing.T) {
	opts := topics(TopicRule{Match: "a", History: 100})
	opts.Limits.CloseTimeout = 2 * patience // no close frame of the client is waited for
	s := start(t, opts)
	c := dialRaw(t, s)
	c.write([]byte(eventsHead("/ws?topic=a")))
	want := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\nConnection: close\r\n" +
		"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n\r\n"
	head := make([]byte, len(want))
	if _, err := io.ReadFull(c.r, head); err != nil || string(head) != want {
		t.Fatalf("%q, %v", head, err)
	}
	epoch := ""
	eventually(t, "the topic is there", func() bool { info, ok := s.Topic("a"); epoch = info.Epoch; return ok })
	wantBytes := func(want string) {
		t.Helper()
		want = strings.ReplaceAll(want, "E", epoch)
		got := make([]byte, len(want))
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
			t.Fatalf("got  %q, %v\nwant %q", got[:n], err, want)
		}
	}
	wantBytes("event: subscribed\nid: E:0\ndata: {\"topic\":\"a\",\"offset\":0,\"epoch\":\"E\",\"after\":0}\n\n")
	for i, row := range []struct {
		format  Format
		payload string
		event   string
	}{
		{FormatText, "hello", "data: hello\n\n"},
		{FormatText, "", "data: \n\n"},
		{FormatText, " space in front stays", "data:  space in front stays\n\n"},
		{FormatText, "data: x", "data: data: x\n\n"},
		{FormatText, "two\nlines", "data: two\ndata: lines\n\n"},
		{FormatText, "cr\rlf\ncrlf\r\nend", "data: cr\ndata: lf\ndata: crlf\ndata: end\n\n"},
		{FormatText, "\n", "data: \ndata: \n\n"},
		{FormatText, "\r\n\r\n", "data: \ndata: \ndata: \n\n"},
		{FormatText, "\n\revent: x", "data: \ndata: \ndata: event: x\n\n"},
		{FormatText, "Grüße \u2028\x00", "data: Grüße \u2028\x00\n\n"},
		{FormatJSON, "{\n \"a\": 1\n}", "data: {\ndata:  \"a\": 1\ndata: }\n\n"},
		{FormatBinary, "\x00\xff\n", "data: AP8K\n\n"},
	} {
		if _, err := s.Publish(Publication{Topic: "a", Format: row.format, Payload: []byte(row.payload)}); err != nil {
			t.Fatal(err)
		}
		kind := ""
		if row.format == FormatBinary {
			kind = "event: binary\n"
		}
		wantBytes(fmt.Sprintf("%sid: E:%d\n%s", kind, i+1, row.event))
	}
	// What the application sends and broadcasts has no position.
	conn := onlyConn(t, s, "/ws")
	eventually(t, "all are counted", func() bool { return s.Stats().Deliveries == 12 })
	_ = conn.Send(Text, []byte("to you"))
	wantBytes("data: to you\n\n")
	_ = conn.SendFrame(codec.NewFrame(Binary, []byte{1}))
	wantBytes("event: binary\ndata: AQ==\n\n")
	_ = s.Broadcast("/ws", Text, []byte("to all"))
	wantBytes("data: to all\n\n")
	eventually(t, "each is counted once", func() bool { return s.Stats().Deliveries == 15 })
	c.write([]byte("GET /ws HTTP/1.1\r\n\r\n")) // which is not read
	_ = conn.Close(4001, "a \"reason\"\n")
	wantBytes("event: close\ndata: {\"code\":4001,\"reason\":\"a \\\"reason\\\"\\n\"}\n\n")
	c.wantEOF()
	_ = c.conn.Close()
	eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 })
	if st := s.Stats(); st.Open != 0 || dropsOf(s) != 0 || st.QueuedBytes != 0 || s.engine.BacklogBytes() != 0 {
		t.Errorf("%+v", st)
	}
}

// With envelope=true an event's data is what the JSON protocol has.
func TestEventsWithEnvelope(t *testing.T) {
	s := start(t, topics())
	c, st := dial(t, s, "/ws", speakJSON), openStream(t, s, "/ws?topic=a&envelope=true")
	c.subscribed("a")
	st.subscribed()
	for _, p := range []Publication{{Payload: []byte("text\n")}, {Payload: []byte("{\n\"a\":1}"), Format: FormatJSON}, {Payload: []byte{255}, Format: FormatBinary}} {
		p.Topic = "a"
		r, err := s.Publish(p)
		if err != nil {
			t.Fatal(err)
		}
		st.want("", fmt.Sprintf("%s:%d", r.Epoch, r.Offset), c.said().text)
	}
}

// An EventSource that reconnects goes on where it was, if it can: with one topic, and a position that the
// history reaches back to. Otherwise it is told.
func TestLastEventID(t *testing.T) {
	s := start(t, topics(TopicRule{Match: ">", History: 4}))
	epoch := fill(t, s, "log", 10).Epoch
	for _, row := range []struct {
		sentence  string
		query, id string
		recovered string // "" if it is not said
		first     int    // of the messages that come; 11 is none
	}{
		{"a new client starts with what comes next", "topic=log", "", "", 11},
		{"it goes on", "topic=log", "E:8", "true", 9},
		{"an empty one is none", "topic=log", " ", "", 11},
		{"it wins over the address, which is older", "topic=log&since=2&epoch=E", "E:9", "true", 10},
		{"also over last", "topic=log&last=4", "E:9", "true", 10},
		{"the history is too short", "topic=log", "E:5", "false", 7},
		{"another epoch", "topic=log", "other:8", "false", 7},
		{"what is no position", "topic=log", "garbage", "false", 11},
		{"an offset that is none", "topic=log", "E:-8", "false", 11},
		{"several topics start afresh", "topic=log&topic=other", "E:8", "false", 11},
		{"so does a pattern", "topic=*", "E:8", "false", 11},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			target := strings.ReplaceAll("/ws?"+row.query, "=E", "="+epoch)
			var headers []string
			if row.id != "" {
				headers = append(headers, "Last-Event-ID: "+strings.ReplaceAll(row.id, "E:", epoch+":"))
			}
			st := openStream(t, s, target, headers...)
			for range strings.Count(row.query, "topic=") {
				recovered := ""
				if began := st.subscribed(); began.Subscribed.Recovered != nil {
					recovered = fmt.Sprint(*began.Subscribed.Recovered)
				}
				if recovered != row.recovered {
					t.Errorf("recovered is %q, want %q", recovered, row.recovered)
				}
			}
			for i := row.first; i <= 10; i++ {
				st.want("", fmt.Sprintf("%s:%d", epoch, i), fmt.Sprint(i))
			}
			_ = s.Broadcast("/ws", Text, []byte("that was all"))
			st.want("", "", "that was all")
			_ = st.conn.Close()
			eventually(t, "it is gone", func() bool { return s.Count() == 0 })
		})
	}
}

// A stream that has had no message can be resumed, too: after the position that its "subscribed" event had as its id.
// So nothing is lost that is published in between, and a gap is reported once.
func TestEventsResumeBeforeTheFirstMessage(t *testing.T) {
	s := start(t, topics(TopicRule{Match: "log.>", History: 4}, TopicRule{Match: "price", Latest: true}))
	epoch := fill(t, s, "log.gap", 10).Epoch
	for _, topic := range []string{"log.old", "log.last", "log.epoch", "price"} {
		fill(t, s, topic, 10)
	}
	for _, row := range []struct {
		sentence string
		topic    string
		query    string
		id       string // that the client has from elsewhere
		first    string // the message that it gets when it comes back
	}{
		{"a topic that nothing was published to", "log.new", "", "", "new"},
		{"one with messages that do not concern it", "log.old", "", "", "new"},
		{"the newest are on their way", "log.last", "&last=2", "", "9"},
		{"the value of a topic is on its way", "price", "", "", "10"},
		{"behind a gap", "log.gap", "", epoch + ":1", "7"},
		{"in a new epoch", "log.epoch", "", "other:1", "7"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			target, headers := "/ws?topic="+row.topic+row.query, []string(nil)
			if row.id != "" {
				headers = []string{"Last-Event-ID: " + row.id}
			}
			st := openStream(t, s, target, headers...)
			e, err := st.event()
			if err != nil || e.kind != "subscribed" {
				t.Fatal(e, err)
			}
			_ = st.conn.Close() // before it has read anything else
			if row.first == "new" {
				mustPublish(t, s, row.topic, "new")
			}
			st = openStream(t, s, target, "Last-Event-ID: "+e.id)
			if again := st.subscribed().Subscribed; again.Recovered == nil || !*again.Recovered {
				t.Errorf("after %s there is a gap", e.id)
			}
			if first, err := st.event(); err != nil || first.data != row.first {
				t.Errorf("after %s comes %+v, %v; want %s", e.id, first, err, row.first)
			}
		})
	}
	for _, query := range []string{"topic=log.a&topic=log.b", "topic=log.a&topic=x.*", "topic=x.*"} {
		st := openStream(t, s, "/ws?"+query)
		last := ""
		for range strings.Count(query, "topic=") {
			e, err := st.event()
			if err != nil || e.id == "" {
				t.Fatalf("%s: %+v, %v", query, e, err)
			}
			last = e.id
		}
		_ = st.conn.Close()
		st = openStream(t, s, "/ws?"+query, "Last-Event-ID: "+last)
		for range strings.Count(query, "topic=") {
			if r := st.subscribed().Subscribed.Recovered; r == nil || *r {
				t.Errorf("a client that comes back to %s is not told that messages may be missing", query)
			}
		}
	}
}

// Scripts of other origins may read what the configuration says. What is not asked for as events, or not
// with GET, is none.
func TestEventsAreRefused(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Origins = []string{"https://app.example"}
	opts.Endpoints = append(opts.Endpoints, Endpoint{Path: "/open", Mode: ModeTopics, Origins: []string{"*"}}, Endpoint{Path: "/echo", Mode: ModeEcho})
	s := start(t, opts)
	for origin, want := range map[string]string{
		"/ws https://app.example":  "Access-Control-Allow-Origin: https://app.example\r\nVary: Origin\r\n",
		"/ws HTTPS://APP.example":  "Access-Control-Allow-Origin: HTTPS://APP.example\r\nVary: Origin\r\n",
		"/ws https://evil.example": "",
		"/ws null":                 "",
		"/open https://any.where":  "Access-Control-Allow-Origin: https://any.where\r\nVary: Origin\r\n",
	} {
		path, origin, _ := strings.Cut(origin, " ")
		if want == "" {
			c := dialRaw(t, s)
			c.write([]byte("GET " + path + "?topic=a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nOrigin: " + origin + "\r\n\r\n"))
			if resp := c.response(); resp.StatusCode != 403 || resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s gets %s, %v", origin, resp.Status, resp.Header)
			}
			continue
		}
		st := openStream(t, s, path+"?topic=a", "Origin: "+origin)
		if !strings.Contains(st.head, want) {
			t.Errorf("%s gets %q", origin, st.head)
		}
	}
	get := eventsHead("/ws?topic=a")
	for _, row := range []struct {
		sentence, head string
		status         int
		says           string
	}{
		{"POST", strings.Replace(get, "GET", "POST", 1), 405, ""},
		{"another type", strings.Replace(get, "text/event-stream", "text/html", 1), 426, ""},
		{"no topic", eventsHead("/ws"), 400, "topic is missing"},
		{"an endpoint without topics", eventsHead("/echo?topic=a"), 426, ""},
		{"no such endpoint", eventsHead("/none?topic=a"), 404, ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write([]byte(row.head))
			c.wantRefusal(row.status, row.says)
		})
	}
	c := dialRaw(t, s)
	c.write([]byte(strings.Replace(get, "GET", "HEAD", 1)))
	if answer, err := io.ReadAll(c.r); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 405 ")) || !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		t.Errorf("%q, %v", answer, err)
	}
	// The application has its say as with any handshake.
	s = start(t, Options{Endpoints: []Endpoint{{Path: "/ws", Mode: ModeTopics, Handler: Handler{Upgrade: func(r *Request) error {
		r.ResponseHeader = [][2]string{{"X-Hello", "there"}}
		if r.Header("Authorization") == nil {
			return &codec.Rejection{Status: 401, Reason: "log in first"}
		}
		return nil
	}}}}})
	c = dialRaw(t, s)
	c.write([]byte(get))
	c.wantRefusal(401, "log in first")
	if st := openStream(t, s, "/ws?topic=a", "Authorization: yes"); !strings.Contains(st.head, "\r\nX-Hello: there\r\n") {
		t.Error(st.head)
	}
}

// A quiet stream gets a comment every now and then, and no more is expected of the client: neither a message
// nor an answer.
func TestEventsStayAlive(t *testing.T) {
	t.Parallel()
	opts := topics()
	opts.Limits.IdleTimeout = 20 * time.Millisecond
	opts.Limits.HandshakeTimeout = time.Second
	opts.Ping = Ping{Interval: 20 * time.Millisecond, Timeout: 20 * time.Millisecond, Jitter: -1}
	s := start(t, opts)
	st := openStream(t, s, "/ws?topic=a")
	st.subscribed()
	begin := time.Now()
	for range 15 {
		st.want(":", "", "")
	}
	if took := time.Since(begin); took < 15*20*time.Millisecond*9/10 {
		t.Errorf("15 comments came within %v", took)
	}
	dial(t, s, "/ws?topic=a").wantClose(codec.CloseGoingAway, "no message for") // unlike events, a WebSocket is idle
	dialRaw(t, s).wantRefusal(408, "did not arrive within")
	if s.Count() != 1 {
		t.Error("the stream has ended")
	}
}

// A broadcast to an endpoint, and a publish, reach all kinds of clients side by side.
func TestEventsBesideOthers(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Compression = Compression{Enabled: true, Threshold: -1}
	s := start(t, opts)
	plain := dial(t, s, "/ws?topic=a")
	squeezed := dial(t, s, "/ws?topic=a", "Sec-WebSocket-Extensions: permessage-deflate")
	events := openStream(t, s, "/ws?topic=a")
	events.subscribed()
	wrapped := libraries[1].open(t, s, "/ws?topic=a") // another's client, which compresses too
	subscribers(t, s, "a", 4)
	for i := range 20 {
		message := words(i) + strings.Repeat(" and again", 30)
		id := ""
		if i%2 == 0 {
			r := mustPublish(t, s, "a", message)
			id = fmt.Sprintf("%s:%d", r.Epoch, r.Offset)
		} else if err := s.Broadcast("/ws", Text, []byte(message)); err != nil {
			t.Fatal(err)
		}
		plain.want(message)
		squeezed.wantDeflated(Text, message)
		events.want("", id, message)
		mustRead(t, wrapped, Text, []byte(message))
	}
}

// Cathy stops reading her stream. More than max_queue does not wait for her: she is told why, and is gone.
func TestSlowEvents(t *testing.T) {
	t.Parallel()
	opts := topics()
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: 256 << 10}
	s := start(t, opts)
	cathy := openStreamOn(dialSmall(t, s), "/ws?topic=a")
	cathy.subscribed()
	payload := strings.Repeat("x", 32<<10)
	published := 0
	for s.Count() == 1 {
		mustPublish(t, s, "a", payload)
		published++
		eventually(t, "it was her turn", func() bool { return s.engine.BacklogBytes() == 0 })
		if n := s.Stats().QueuedBytes; n > 300<<10 {
			t.Fatalf("%d bytes are queued", n)
		}
	}
	dropped := int(s.Stats().Drops[DropSlowConsumer])
	for i := range published - dropped {
		if e, err := cathy.event(); err != nil || e.offset() != uint64(i+1) || e.data != payload {
			t.Fatalf("event %d of %d: %.80q, %v", i, published, e.data, err)
		}
	}
	cathy.want("close", "", `{"code":1013,"reason":"slow consumer: more than 256KiB queued"}`)
	cathy.wantEOF()
	_ = cathy.conn.Close()
	eventually(t, "she is gone", func() bool { st := s.Stats(); return st.Sockets == 0 && st.QueuedBytes == 0 })
	// Of 8 messages that fill the queue one is partly written, and with TLS another one is encrypted.
	if least := 6; dropped < least || dropsOf(s) != dropped {
		t.Errorf("%d are dropped, want at least %d: %v", dropped, least, s.Stats().Drops)
	}
}

// The same with a socket that takes nothing at all.
func TestEventsWriteTimeout(t *testing.T) {
	t.Parallel()
	opts := topics()
	opts.Limits.WriteTimeout = 200 * time.Millisecond
	opts.Endpoints[0].SlowConsumer = SlowConsumer{MaxQueue: -1}
	s := start(t, opts)
	cathy := openStreamOn(dialSmall(t, s), "/ws?topic=a")
	cathy.subscribed()
	freezeOn(t, s, "a")
	eventually(t, "she is cut off", func() bool {
		if s.Count() > 0 && s.Stats().QueuedBytes < 64<<20 {
			mustPublish(t, s, "a", strings.Repeat("x", 64<<10)) // the kernel may find more room
		}
		st := s.Stats()
		return st.Sockets == 0 && st.QueuedBytes == 0
	})
	if st := s.Stats(); st.Drops[DropWriteTimeout] == 0 || len(s.Subscribers("a")) != 0 {
		t.Errorf("%v", st.Drops)
	}
}

// At the end of the server a stream gets what was published before, and is told to come back.
func TestEventsAtShutdown(t *testing.T) {
	opts := topics()
	opts.Logger = slog.New(slog.DiscardHandler)
	s, cancel, ended := runUntil(t, opts)
	st := openStream(t, s, "/ws?topic=a")
	st.subscribed()
	const published = 3000 // more than a loop reads in one slice
	for i := range published {
		mustPublish(t, s, "a", words(i))
	}
	cancel()
	for i := range published {
		if e, err := st.event(); err != nil || e.data != words(i) {
			t.Fatalf("%+v, %v; want %s", e, err, words(i))
		}
	}
	e, err := st.event()
	if err != nil || e.kind != "close" || e.data != fmt.Sprintf(`{"code":1001,"reason":"server is shutting down; retry=%s"}`, st.retry) || st.retry == "" {
		t.Errorf("%+v, %v, retry %q", e, err, st.retry)
	}
	st.wantEOF()
	_ = st.conn.Close()
	wantEnd(t, ended)
}

// Event streams are for clients whose Upgrade names other protocols, and for proxies that speak HTTP/1.0.
func TestEventsWhateverTheClient(t *testing.T) {
	opts := topics(TopicRule{Match: ">", History: 10})
	opts.HTTP = http.HandlerFunc(mirror)
	s := start(t, opts)
	fill(t, s, "a", 1)
	for _, test := range []struct{ sentence, head string }{
		{"curl --http2", requestHead("GET /ws?topic=a&last=1 HTTP/1.1", "Accept: text/event-stream", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")},
		{"several lines of Accept", requestHead("GET /ws?topic=a&last=1 HTTP/1.1", "Accept: text/plain", "Accept: text/event-stream")},
		{"a stock nginx", requestHead("GET /ws?topic=a&last=1 HTTP/1.0", "Connection: close", "Accept: text/event-stream")},
		{"HTTP/1.0 without a Host", "GET /ws?topic=a&last=1 HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			for _, kept := range []bool{false, true} {
				c := dialRaw(t, s)
				if kept { // for which a page has come first
					c.write([]byte(requestHead("GET / HTTP/1.1")))
					c.wantPage("GET /")
				}
				c.write([]byte(test.head))
				resp := c.response()
				if resp.StatusCode != 200 || len(resp.TransferEncoding) > 0 || resp.ContentLength >= 0 {
					t.Fatalf("answered %s, %v, %d", resp.Status, resp.TransferEncoding, resp.ContentLength)
				}
				b := make([]byte, 1<<10)
				for got := ""; !strings.Contains(got, "\nid: "); {
					n, err := resp.Body.Read(b)
					if got += string(b[:n]); err != nil {
						t.Fatalf("%q, %v", got, err)
					}
				}
			}
		})
	}
}

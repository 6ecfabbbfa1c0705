package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"unsafe"

	"github.com/gorilla/websocket"

	"carillon/codec"
)

// A proxy has sent pages over a connection and uses it again for a WebSocket, with a client that knows
// nothing of that.
func TestUpgradeAfterPages(t *testing.T) {
	s := start(t, withPages(mirror))
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, s.Addr().String())
		if err != nil {
			return nil, err
		}
		r := bufio.NewReader(conn)
		for i := range 3 {
			_, _ = fmt.Fprintf(conn, "GET /page/%d HTTP/1.1\r\nHost: h\r\n\r\n", i)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				return nil, err
			}
			_, _ = bufio.NewReader(resp.Body).WriteTo(&strings.Builder{})
			if resp.StatusCode != 200 || r.Buffered() > 0 {
				return nil, fmt.Errorf("%s, and %d bytes behind it", resp.Status, r.Buffered())
			}
		}
		return conn, nil
	}}
	ws, _, err := dialer.Dial(s.URL("/echo"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	for i := range 10 {
		if err := ws.WriteMessage(websocket.TextMessage, []byte(words(i))); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.ReadMessage(); err != nil || string(got) != words(i) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if st := s.Stats(); st.Sockets != 1 || st.Open != 1 || st.Accepted != 1 || st.PlainHTTP != 1 || st.Returned != 1 {
		t.Errorf("%d sockets, %d open, %d accepted, %d handed over, %d returned; want one of each", st.Sockets, st.Open, st.Accepted, st.PlainHTTP, st.Returned)
	}
	if err := s.Broadcast("/echo", Text, []byte("to all")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := ws.ReadMessage(); err != nil || string(got) != "to all" {
		t.Errorf("%q, %v", got, err)
	}
	_ = ws.Close()
	s.balance(t)
}

// The frames behind the head reach the endpoint, wherever the bytes were read.
func TestFramesBehindALaterHead(t *testing.T) {
	t.Parallel()
	s := start(t, withPages(mirror))
	page, head := []byte(requestHead("GET / HTTP/1.1")), []byte(upgradeHead("/echo"))
	long := strings.Repeat("a message that net/http does not read to its end, ", 1000)
	half := text("the second half comes later")
	for _, test := range []struct {
		sentence     string
		first, later []byte // of which the page's request is the first part
		want         []string
	}{
		{"all in the segment of the first request", join(page, head, text("one"), text("two")), nil, []string{"one", "two"}},
		{"more in the first segment than net/http reads at once", join(page, head, text(long), text("two")), nil, []string{long, "two"}},
		{"the head in the first segment, the frames later", join(page, head), text("one"), []string{"one"}},
		{"half a frame in the first segment", join(page, head, half[:9]), half[9:], []string{"the second half comes later"}},
		{"half a head in the first segment", join(page, head[:50]), join(head[50:], text("one")), []string{"one"}},
		{"head and frames later", page, join(head, text("one"), text(long)), []string{"one", long}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c := dialRaw(t, s)
			c.write(test.first)
			c.wantPage("GET /")
			c.write(test.later)
			if resp := c.response(); resp.StatusCode != 101 {
				t.Fatalf("answered %s", resp.Status)
			}
			for _, w := range test.want {
				c.want(w)
			}
		})
	}
}

// What an endpoint refuses as a connection's first request it refuses in the same way later. Whether a
// head is well-formed is then net/http's to judge, which is not quite as strict.
func TestEndpointsRefuseOnKeptConnections(t *testing.T) {
	s, rows := start(t, withPages(mirror)), 0
	for _, test := range refusals(t) {
		ours := test.why == RefuseMethod || test.why == RefuseNoUpgrade || test.why == RefuseVersion ||
			strings.HasPrefix(test.says, "Sec-") || test.says == "body" || test.says == "Connection"
		if !ours || !strings.Contains(test.head, " /echo ") {
			continue
		}
		rows++
		t.Run(test.sentence, func(t *testing.T) {
			before := s.Stats().Refusals
			c := dialRaw(t, s)
			c.write([]byte(requestHead("GET /a/page HTTP/1.1")))
			c.wantPage("GET /a/page")
			c.write([]byte(test.head))
			c.wantRefusal(test.status, test.says)
			s.wantRefused(t, before, test.why)
		})
	}
	if rows < 25 {
		t.Errorf("only %d rows", rows)
	}
}

func TestUpgradeSeesALaterRequest(t *testing.T) {
	seen := make(chan string, 1)
	opts := withPages(mirror)
	opts.Endpoints = []Endpoint{{Path: "/a%2Fb", Subprotocols: []string{"chat"}, Handler: Handler{
		Upgrade: func(r *Request) error {
			word := fmt.Sprintf("%s %s at %s from %s, cookie %s, tokens", r.Method, r.Target, r.Host, r.RemoteAddr, r.Header("cookie"))
			for name, value := range r.Headers() {
				if strings.EqualFold(string(name), "x-token") {
					word += " " + string(value)
				}
			}
			seen <- word
			if string(r.Query) == "no" {
				return &codec.Rejection{Status: 401, Reason: "log in first"}
			}
			r.Value = "alice"
			return nil
		},
		Open: func(c *Conn) {
			_ = c.Send(Text, fmt.Appendf(nil, "%v on %s from %s speaks %s", c.Value(), c.Path(), c.RemoteAddr(), c.Subprotocol()))
		},
	}}}
	s := start(t, opts)
	headers := []string{"Cookie: a=1; b=2", "X-Token: one", "x-token:two", "Sec-WebSocket-Protocol: chat", "Pragma: no-cache"}
	for _, target := range []string{"/a%2Fb?no", "http://example.com/a%2Fb", "/a%2Fb"} {
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET / HTTP/1.1") + upgradeHead(target, headers...)))
		c.wantPage("GET /")
		local := c.conn.LocalAddr().String()
		if got, want := <-seen, "GET "+target+" at example.com from "+local+", cookie a=1; b=2, tokens one two"; got != want {
			t.Errorf("saw %q, want %q", got, want)
		}
		if strings.HasSuffix(target, "?no") {
			c.wantRefusal(401, "log in first")
			continue
		}
		if resp := c.response(); resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Protocol") != "chat" {
			t.Fatalf("answered %s, %v", resp.Status, resp.Header)
		}
		c.want("alice on /a%2Fb from " + local + " speaks chat")
	}
}

// Connections that come back are spread over the loops.
func TestReturnsAreSpread(t *testing.T) {
	opts := withPages(mirror)
	opts.Loops = 2
	s := start(t, opts)
	for len(s.engine.AllShards()) < 2 {
		dial(t, s, "/echo")
	}
	before := s.Count()
	for range 10 {
		c := dialRaw(t, s)
		c.write([]byte(requestHead("GET / HTTP/1.1") + upgradeHead("/broadcast")))
		c.wantPage("GET /")
		if resp := c.response(); resp.StatusCode != 101 {
			t.Fatalf("answered %s", resp.Status)
		}
	}
	if n := s.Count() - before; n != 10 {
		t.Errorf("%d are open, want 10", n)
	}
	for _, sh := range s.engine.AllShards() {
		if n := sh.Stats.Returned.Load(); n != 5 {
			t.Errorf("%d came back to one loop, want 5", n)
		}
	}
}

// A peer that has reset its connection has no address any more, and gnet would not survive that.
func TestAConnectionIsLostOnItsWayBack(t *testing.T) {
	s := start(t, withPages(mirror))
	dial(t, s, "/echo").wantGone(s)
	back := &reattached{sh: s.engine.AllShards()[0], conn: &plainConn{streamConn: &net.TCPConn{}, listener: s.plain.listener}}
	if err := s.engine.Enroll(back.sh, back, back.conn.streamConn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("enroll: %v", err)
	}
}

// gnet keeps the memory of an address's zone, so it must get a copy of its own.
func TestAZoneIsCopied(t *testing.T) {
	s := start(t, withPages(mirror))
	c := dialRaw(t, s)
	c.write([]byte(requestHead("GET / HTTP/1.1")))
	c.wantPage("GET /")
	shared := string([]byte("eth0"))
	plain := s.plain.listener.members()[0]
	for _, addr := range []net.Addr{plain.streamConn.RemoteAddr(), plain.LocalAddr()} {
		addr.(*net.TCPAddr).Zone = shared
	}
	back := &reattached{sh: s.engine.AllShards()[0], conn: plain}
	_ = s.engine.Enroll(back.sh, back, back.conn.streamConn) // gnet cannot make sense of the zone, which comes after our part
	for _, addr := range []net.Addr{plain.streamConn.RemoteAddr(), plain.LocalAddr()} {
		if zone := addr.(*net.TCPAddr).Zone; zone != shared || unsafe.StringData(zone) == unsafe.StringData(shared) {
			t.Errorf("zone %q is shared", zone)
		}
	}
	_ = plain.Close()
}

// What the two ends of the way take for the path must be the same, or a request could go to and fro
// for ever.
func FuzzRawPath(f *testing.F) {
	for _, target := range []string{"/", "/a?b", "/?", "//a", "http://h", "http://h?b", "HTTP://h/a?b/c", "ws://h:1/%2F", "*", "/a://b?c"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		var r codec.Request
		if r.Parse([]byte("GET "+target+" HTTP/1.1\r\nHost: h\r\n\r\n")) == nil && string(r.Path) != rawPath(target) {
			t.Errorf("the path of %q is %q here and %q there", target, r.Path, rawPath(target))
		}
	})
}

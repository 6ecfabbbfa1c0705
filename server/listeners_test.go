package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// needsIPv6 skips the test on a machine without IPv6.
func needsIPv6(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	_ = l.Close()
}

// atOnce is the time for a shutdown that does not wait.
func atOnce() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// dialAt is dialRaw for any address.
func dialAt(t testing.TB, network, address string) *client {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// upgrade opens a WebSocket on a connection.
func (c *client) upgrade(path string, headers ...string) *client {
	c.t.Helper()
	c.write([]byte(upgradeHead(path, headers...)))
	if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("handshake at %s: %s: %s", path, resp.Status, body)
	}
	return c
}

// Alice comes over IPv4, Bob over IPv6, Carol and Dave over a unix socket each, and all hear the same broadcast.
func TestListeners(t *testing.T) {
	needsIPv6(t)
	carol, dave := socketPath(t), socketPath(t)
	s := start(t, Options{
		Endpoints: echoAndBroadcast(),
		Loops:     2,
		Listeners: []Listener{{Listen: "[::1]:0"}, {Listen: "unix:" + carol}, {Listen: "unix:" + dave}, {Listen: "127.0.0.2:0"}},
	})
	var clients []*client
	for i, addr := range s.Addrs() {
		for range 6 {
			clients = append(clients, dialAt(t, addr.Network(), addr.String()).upgrade("/broadcast"))
		}
		c := dialAt(t, addr.Network(), addr.String()).upgrade("/echo")
		c.send(words(i))
		c.want(words(i))
	}
	if n := len(s.Addrs()); n != 5 || s.Addr() != s.Addrs()[0] || s.Addrs()[2].String() != carol {
		t.Errorf("%d addresses: %v, and the first is %v", n, s.Addrs(), s.Addr())
	}
	clients[0].send("to all")
	for _, c := range clients {
		c.want("to all")
	}
	if st := s.Stats(); st.Open != 35 || st.Sockets != 35 || st.Accepted != 35 || st.Opened != 35 {
		t.Errorf("%+v", st)
	}
}

// Each host means the addresses that it says, and no others.
func TestHosts(t *testing.T) {
	needsIPv6(t)
	for _, test := range []struct {
		sentence, host  string
		reached, closed []string
	}{
		{"no host is everything", "", []string{"127.0.0.1", "127.0.0.2", "::1"}, nil},
		{"so is the unspecified address of IPv6", "[::]", []string{"127.0.0.1", "127.0.0.2", "::1"}, nil},
		{"that of IPv4 is IPv4", "0.0.0.0", []string{"127.0.0.1", "127.0.0.2"}, []string{"::1"}},
		{"the loopback address of IPv6 is itself", "[::1]", []string{"::1"}, []string{"127.0.0.1"}},
		{"that of IPv4 too", "127.0.0.1", []string{"127.0.0.1"}, []string{"127.0.0.2", "::1"}},
		{"a name is an address", "localhost", []string{"127.0.0.1"}, []string{"127.0.0.2"}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			for _, alone := range []bool{true, false} {
				opts := Options{Listen: test.host + ":0", Endpoints: []Endpoint{whoAmI()}}
				if !alone {
					opts.Listeners = []Listener{{Listen: "127.0.0.9:0"}}
				}
				s := start(t, opts)
				_, port, _ := net.SplitHostPort(s.Addr().String())
				for _, ip := range test.reached {
					for range 4 { // any of the loops
						c := dialAt(t, "tcp", net.JoinHostPort(ip, port)).upgrade("/who")
						c.want(c.conn.LocalAddr().String())
					}
				}
				for _, ip := range test.closed {
					if conn, err := net.Dial("tcp", net.JoinHostPort(ip, port)); err == nil {
						_ = conn.Close()
						t.Errorf("%s can be reached", ip)
					}
				}
			}
		})
	}
}

// An address of the link has a zone, without which it means nothing.
func TestZone(t *testing.T) {
	address := linkLocal(t)
	s := start(t, Options{Listen: net.JoinHostPort(address, "0"), Endpoints: []Endpoint{whoAmI()}, Listeners: []Listener{{Listen: "127.0.0.1:0"}}})
	for range 4 {
		c := dialAt(t, "tcp", s.Addr().String()).upgrade("/who")
		c.want(c.conn.LocalAddr().String())
	}
	s.StartDrain("test", 0)
	eventually(t, "it listens no more", func() bool {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

func linkLocal(t *testing.T) string {
	t.Helper()
	all, _ := net.Interfaces()
	for _, i := range all {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
				address := n.IP.String() + "%" + i.Name
				if l, err := net.Listen("tcp", net.JoinHostPort(address, "0")); err == nil {
					_ = l.Close()
					return address
				}
			}
		}
	}
	t.Skip("no interface has a link-local address of IPv6")
	return ""
}

// One listener asks for a PROXY header, another does not, and a third takes one.
func TestEachListenerHasItsOwnProxyProtocol(t *testing.T) {
	path, other := socketPath(t), socketPath(t)
	opts := behindBalancers(ProxyRequired)
	opts.Listeners = []Listener{
		{Listen: "127.0.0.1:0"},
		{Listen: "127.0.0.1:0", ProxyProtocol: ProxyProtocol{Mode: ProxyOptional, From: []string{"127.0.0.1"}}},
		{Listen: "unix:" + path, ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"unix"}}},
		{Listen: "unix:" + other, ProxyProtocol: ProxyProtocol{Mode: ProxyOptional, From: []string{"127.0.0.1"}}},
	}
	s := start(t, opts)
	const with, without = aliceV1, ""
	for _, test := range []struct {
		sentence string
		listener int
		header   string
		want     string // "" for a refusal
		why      RefuseReason
	}{
		{"required and sent", 0, with, aliceAt, 0},
		{"required and not sent", 0, without, "", RefuseProxyMissing},
		{"off and sent", 1, with, "", RefuseMalformed},
		{"off and not sent", 1, without, "self", 0},
		{"optional and sent", 2, with, aliceAt, 0},
		{"optional and not sent", 2, without, "self", 0},
		{"required and sent over a unix socket", 3, with, aliceAt, 0},
		{"required and not sent over a unix socket", 3, without, "", RefuseProxyMissing},
		{"required, and nothing is told over a unix socket", 3, "PROXY UNKNOWN\r\n", "invalid AddrPort", 0},
		{"sent over a unix socket that is not trusted", 4, with, "", RefuseMalformed},
		{"not sent over a unix socket that is not trusted", 4, without, "invalid AddrPort", 0},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			for range 3 {
				before := s.Stats().Refusals
				addr := s.Addrs()[test.listener]
				c := dialAt(t, addr.Network(), addr.String())
				c.write([]byte(test.header))
				if test.want == "" {
					c.write([]byte(upgradeHead("/who")))
					_, _ = io.Copy(io.Discard, c.r)
					s.wantRefused(t, before, test.why)
					continue
				}
				c.upgrade("/who")
				if test.want == "self" {
					test.want = c.conn.LocalAddr().String()
					c.want(test.want)
					test.want = "self"
					continue
				}
				c.want(test.want)
			}
		})
	}
}

// The time for the header is each listener's own, too.
func TestEachListenerHasItsOwnProxyTimeout(t *testing.T) {
	opts := behindBalancers(ProxyRequired)
	opts.ProxyProtocol.Timeout = time.Hour
	opts.Limits.HandshakeTimeout = time.Hour
	opts.Listeners = []Listener{{Listen: "127.0.0.1:0", ProxyProtocol: ProxyProtocol{Mode: ProxyRequired, From: []string{"127.0.0.1"}, Timeout: 100 * time.Millisecond}}}
	s := start(t, opts)
	patient := dialAt(t, "tcp", s.Addrs()[0].String())
	dialAt(t, "tcp", s.Addrs()[1].String()).wantEOF()
	patient.write([]byte(aliceV1))
	patient.upgrade("/who").want(aliceAt)
}

// A drain gives up every address, serves clients that have come in time, and leaves no file.
func TestDrainClosesEveryListener(t *testing.T) {
	path := socketPath(t)
	s, err := New(Options{
		Listen: "127.0.0.1:0", Listeners: []Listener{{Listen: "127.0.0.2:0"}, {Listen: "unix:" + path}},
		Endpoints: echoAndBroadcast(), Drain: Drain{Duration: time.Hour, Deadline: 2 * time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	<-s.Started()
	var all []*client
	for _, addr := range s.Addrs() {
		all = append(all, dialAt(t, addr.Network(), addr.String()).upgrade("/echo"))
	}
	silent := dialAt(t, "unix", path) // it has not asked for anything yet
	s.StartDrain("test", 0)
	for _, addr := range s.Addrs() {
		eventually(t, addr.String()+" is given up", func() bool {
			conn, err := net.Dial(addr.Network(), addr.String())
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		})
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is there: %v", err)
	}
	for _, c := range all[1:] { // one may be asked to go at once
		c.send("still served")
		c.want("still served")
	}
	silent.upgrade("/echo")
	s.Shutdown(atOnce())
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A server that cannot have all its addresses has none.
func TestListenersFailTogether(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path, free := socketPath(t), freeAddress(t)
	for _, test := range []struct {
		opts Options
		want string
	}{
		{Options{Listen: free, Listeners: []Listener{{Listen: "unix:" + path}, {Listen: taken.Addr().String()}}},
			"listeners[1].listen: listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		{Options{Listen: taken.Addr().String(), Listeners: []Listener{{Listen: "unix:" + path}}},
			"listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		{Options{Listen: "unix:" + path, Listeners: []Listener{{Listen: free}}, Internal: Internal{Listen: taken.Addr().String()}},
			"internal.listen: listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		{Options{Listen: "localhost:0", Listeners: []Listener{{Listen: "unix:" + path}, {Listen: "256.0.0.1:0"}}},
			"listeners[1].listen: listen tcp: lookup 256.0.0.1"},
		{Options{Listen: free, Listeners: []Listener{{Listen: strings.Replace(free, "127.0.0.1", "localhost", 1)}}},
			"listeners[0].listen: " + strings.Replace(free, "127.0.0.1", "localhost", 1) + " is " + free + ", which is already the address of listen"},
	} {
		test.opts.Endpoints = echoAndBroadcast()
		s, err := New(test.opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), test.want) || errors.Is(err, ErrEngine) {
			t.Errorf("it is %v, want %s", err, test.want)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is there: %v", err)
		}
		if l, err := net.Listen("tcp", free); err != nil {
			t.Errorf("the port is not free: %v", err)
		} else {
			_ = l.Close()
		}
		if s.Addr() != nil || len(s.Addrs()) > 0 {
			t.Errorf("it has addresses: %v", s.Addrs())
		}
	}
}

func TestSameAddress(t *testing.T) {
	for _, pair := range [][2]string{
		{":80", ":80"}, {":80", "127.0.0.1:80"}, {"[::]:80", "0.0.0.0:80"}, {"0.0.0.0:80", "10.0.0.1:80"}, {"0.0.0.0:80", "example.com:80"},
		{"[::1]:80", "[::]:80"}, {"unix:/a", "unix:/a"}, {"unix:@a", "unix:@a"},
	} {
		if !sameAddress(pair[0], pair[1]) || !sameAddress(pair[1], pair[0]) {
			t.Errorf("%q can both be had", pair)
		}
	}
	for _, pair := range [][2]string{
		{":80", ":81"}, {":0", ":0"}, {"127.0.0.1:80", "127.0.0.2:80"}, {"0.0.0.0:80", "[::1]:80"}, {"unix:/a", "unix:/b"}, {"unix:/a", ":80"},
	} {
		if sameAddress(pair[0], pair[1]) || sameAddress(pair[1], pair[0]) {
			t.Errorf("%q cannot both be had", pair)
		}
	}
}

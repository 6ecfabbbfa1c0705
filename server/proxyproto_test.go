package server

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// whoAmI is an endpoint that tells each client its address, and echoes.
func whoAmI() Endpoint {
	return Endpoint{Path: "/who", Handler: Handler{
		Open:    func(c *Conn) { _ = c.Send(Text, []byte(c.RemoteAddr().String())) },
		Message: echo,
	}}
}

// behindBalancers expects PROXY headers from 127.0.0.1, and not from other addresses of the machine.
func behindBalancers(mode ProxyMode) Options {
	return Options{
		Endpoints:     []Endpoint{whoAmI()},
		HTTP:          http.HandlerFunc(mirror),
		ProxyProtocol: ProxyProtocol{Mode: mode, From: []string{"127.0.0.1"}},
	}
}

// dialFrom is dialRaw with a source address of its own.
func dialFrom(t testing.TB, s *Server, source string) *client {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

const (
	aliceV1 = "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"
	aliceV2 = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f\xc0\x00\x02\x01\xc6\x33\x64\x01\xdc\x04\x01\xbb\x04\x00\x00"
	aliceAt = "192.0.2.1:56324"
)

func TestProxyHeaderTellsTheClient(t *testing.T) {
	t.Parallel()
	for _, mode := range []ProxyMode{ProxyRequired, ProxyOptional} {
		s := start(t, behindBalancers(mode))
		for _, test := range []struct{ sentence, header, want string }{
			{"version 1", aliceV1, aliceAt},
			{"version 2", aliceV2, aliceAt},
			{"over IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 4000 443\r\n", "[2001:db8::1]:4000"},
			{"a balancer that does not know is the client", "PROXY UNKNOWN\r\n", ""},
			{"a balancer that checks is the client", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", ""},
		} {
			head, hello := upgradeHead("/who"), string(text("hello"))
			for how, parts := range map[string][]string{
				"in one piece":          {test.header + head + hello},
				"before the rest":       {test.header, head + hello},
				"cut in the middle":     {test.header[:9], test.header[9:] + head[:30], head[30:] + hello[:3], hello[3:]},
				"byte by byte":          strings.Split(test.header+head+hello, ""),
				"with half of the head": {test.header + head[:50], head[50:], hello},
			} {
				t.Run(string(mode)+", "+test.sentence+", "+how, func(t *testing.T) {
					c := dialRaw(t, s)
					before := s.Stats().BytesIn
					for _, part := range parts {
						c.write([]byte(part))
						before += uint64(len(part))
						eventually(t, "it has arrived", func() bool { return s.Stats().BytesIn >= before })
					}
					if resp := c.response(); resp.StatusCode != http.StatusSwitchingProtocols {
						t.Fatalf("answered %s", resp.Status)
					}
					want := test.want
					if want == "" {
						want = c.conn.LocalAddr().String()
					}
					c.want(want)
					c.want("hello")
					c.write(masked(0x88, nil))
					_, _, _ = c.frame()
					c.wantEOF()
				})
			}
		}
	}
}

func TestProxyHeaderIsRefused(t *testing.T) {
	for _, test := range []struct {
		sentence string
		mode     ProxyMode
		source   string
		send     string
		status   int // 0: closed without an answer; 101: not refused
		why      RefuseReason
	}{
		{"a request without the header it needs", ProxyRequired, "127.0.0.1", upgradeHead("/who"), 0, RefuseProxyMissing},
		{"TLS instead of the header", ProxyRequired, "127.0.0.1", "\x16\x03\x01\x00\x05hello", 0, RefuseProxyMissing},
		{"a malformed header of version 1", ProxyRequired, "127.0.0.1", "PROXY TCP5 a b 1 2\r\n" + upgradeHead("/who"), 0, RefuseProxyMalformed},
		{"a malformed header of version 2", ProxyRequired, "127.0.0.1", strings.Replace(aliceV2, "\x21\x11", "\x21\x99", 1), 0, RefuseProxyMalformed},
		{"a malformed header where it is optional", ProxyOptional, "127.0.0.1", "PROXY TCP5 a b 1 2\r\n" + upgradeHead("/who"), 0, RefuseProxyMalformed},
		{"a second header", ProxyRequired, "127.0.0.1", aliceV1 + aliceV1 + upgradeHead("/who"), 400, RefuseMalformed},
		{"a header from a stranger", ProxyOptional, "127.0.0.2", aliceV1 + upgradeHead("/who"), 400, RefuseMalformed},
		{"a header of version 2 from a stranger", ProxyOptional, "127.0.0.2", aliceV2 + upgradeHead("/who"), 400, RefuseMalformed},
		{"a header where there is none", ProxyOff, "127.0.0.1", aliceV1 + upgradeHead("/who"), 400, RefuseMalformed},
		{"a stranger may connect without, where it is optional", ProxyOptional, "127.0.0.2", upgradeHead("/who"), 101, 0},
		{"so may a balancer", ProxyOptional, "127.0.0.1", upgradeHead("/who"), 101, 0},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := start(t, behindBalancers(test.mode))
			c := dialFrom(t, s, test.source)
			c.write([]byte(test.send))
			switch test.status {
			case 101:
				if resp := c.response(); resp.StatusCode != 101 {
					t.Fatalf("answered %s", resp.Status)
				}
				c.want(c.conn.LocalAddr().String())
				return
			case 0:
				c.wantEOF()
			default:
				c.wantRefusal(test.status, "")
			}
			s.wantRefused(t, map[RefuseReason]uint64{}, test.why)
		})
	}
}

// Where the header is required, a peer that is not a balancer is not even read from.
func TestProxyHeaderFromAStranger(t *testing.T) {
	s := start(t, behindBalancers(ProxyRequired))
	c := dialFrom(t, s, "127.0.0.2")
	c.wantEOF()
	s.wantRefused(t, map[RefuseReason]uint64{}, RefuseProxyPeer)
	eventually(t, "its socket is closed", func() bool { return s.Stats().Sockets == 0 })
}

func TestProxyHeaderTimeout(t *testing.T) {
	const timeout = 300 * time.Millisecond
	open := func(t *testing.T, mode ProxyMode) (*Server, *client, time.Time) {
		opts := behindBalancers(mode)
		opts.ProxyProtocol.Timeout = timeout
		s := start(t, opts)
		return s, dialRaw(t, s), time.Now()
	}
	t.Run("silence is cut off", func(t *testing.T) {
		s, c, began := open(t, ProxyRequired)
		c.wantEOF()
		if took := time.Since(began); took < timeout/2 || took > patience/2 {
			t.Errorf("after %v", took)
		}
		s.wantRefused(t, map[RefuseReason]uint64{}, RefuseProxyMissing)
	})
	t.Run("bytes that dribble in extend nothing", func(t *testing.T) {
		s, c, began := open(t, ProxyOptional)
		for i := 0; ; i++ {
			if _, err := c.conn.Write([]byte(aliceV1[i%10 : i%10+1])); err != nil || time.Since(began) > 3*timeout {
				break
			}
			if i < 9 {
				time.Sleep(timeout / 6)
			} else {
				break
			}
		}
		c.wantEOF()
		s.wantRefused(t, map[RefuseReason]uint64{}, RefuseProxyMalformed)
	})
	t.Run("where it is optional, a late client may still send a request", func(t *testing.T) {
		_, c, _ := open(t, ProxyOptional)
		time.Sleep(2 * timeout)
		c.write([]byte(upgradeHead("/who")))
		if resp := c.response(); resp.StatusCode != 101 {
			t.Fatalf("answered %s", resp.Status)
		}
		c.want(c.conn.LocalAddr().String())
	})
	t.Run("but no header any more", func(t *testing.T) {
		s, c, _ := open(t, ProxyOptional)
		time.Sleep(2 * timeout)
		c.write([]byte(aliceV1 + upgradeHead("/who")))
		c.wantRefusal(400, "")
		s.wantRefused(t, map[RefuseReason]uint64{}, RefuseMalformed)
	})
}

// A page, another page and then a WebSocket, on one connection of a balancer: all three come from alice.
func TestProxyHeaderAndPlainHTTP(t *testing.T) {
	for _, header := range []string{aliceV1, aliceV2} {
		s := start(t, behindBalancers(ProxyRequired))
		c := dialRaw(t, s)
		for _, send := range []string{header + requestHead("GET /one HTTP/1.1"), requestHead("GET /two HTTP/1.1")} {
			c.write([]byte(send))
			if got := c.wantPage("GET /").Header.Get("X-Remote"); got != aliceAt {
				t.Errorf("the page is for %s, want %s", got, aliceAt)
			}
		}
		c.write([]byte(upgradeHead("/who")))
		if resp := c.response(); resp.StatusCode != 101 {
			t.Fatalf("answered %s", resp.Status)
		}
		c.want(aliceAt)
	}
}

// A whole request that is shorter than the header behind whose end it comes is found all the same.
func TestProxyHeaderBeforeAShortRequest(t *testing.T) {
	s := start(t, behindBalancers(ProxyRequired))
	c := dialRaw(t, s)
	c.write([]byte(aliceV1[:len(aliceV1)-1]))
	s.arrived(t, len(aliceV1)-1)
	c.write([]byte("\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	if got := c.wantPage("GET /").Header.Get("X-Remote"); got != aliceAt {
		t.Errorf("the page is for %s, want %s", got, aliceAt)
	}
}

// The header costs a connection no memory that it keeps.
func TestProxyHeaderLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	s := start(t, behindBalancers(ProxyRequired))
	c := dialRaw(t, s)
	for i, b := range []byte(aliceV1 + upgradeHead("/who")) {
		c.write([]byte{b})
		s.arrived(t, i+1)
	}
	if resp := c.response(); resp.StatusCode != 101 {
		t.Fatalf("answered %s", resp.Status)
	}
	c.want(aliceAt)
	for conn := range s.Conns() {
		_ = conn.Send(Text, []byte("later"))
		c.want("later")
		if conn.core().Inbound() != nil {
			t.Error("the connection still has its head")
		}
	}
}

package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/internal/certs"
	"carillon/server/internal/reactor"
)

// A WebSocket over TLS is one like any other.
func TestTLSEcho(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
		c := dialTLS(t, s, config, "/echo")
		for i := range 100 {
			c.send(words(i))
			c.want(words(i))
		}
		for _, size := range []int{1, 16<<10 - 10, 16 << 10, 70_000, 1 << 20} { // many records
			payload := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			go c.conn.Write(masked(0x82, payload))
			if op, got, err := c.frame(); op != Binary || !bytes.Equal(got, payload) || err != nil {
				t.Fatalf("%d bytes: got %v, %d bytes, %v", size, op, len(got), err)
			}
		}
		if got := s.Stats().TLSHandshakes; got != 1 {
			t.Errorf("%d handshakes were counted, want 1", got)
		}
		c.write(masked(0x88, []byte{0x03, 0xe8}))
		c.wantClose(codec.CloseNormal, "") // and close_notify: the client's TLS would say so if it were missing
		_ = c.conn.Close()
		eventually(t, "nothing is left", func() bool { return s.Stats().Sockets == 0 })
	})
}

// Each record comes a byte at a time, in the handshake and after it.
func TestTLSDribbles(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
		c := dialRaw(t, s)
		c.conn = &trickle{c.conn}
		c.startTLS(config)
		c.open("/echo")
		c.send("hello")
		c.want("hello")
	})
}

// trickle writes a byte at a time.
type trickle struct{ net.Conn }

func (d *trickle) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// The end of a connection is told by TLS, too, whichever side begins it.
func TestTLSEnds(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		ended := make(chan error, 1)
		s := start(t, a.overTLS(Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
			Message: func(c *Conn, _ Opcode, _ []byte) { _ = c.Close(4000, "enough") },
			Close:   func(_ *Conn, err error) { ended <- err },
		}}}}))

		c, heard := dialRecorded(t, s, config, "/")
		c.send("close")
		c.wantClose(4000, "enough")
		heard.wantCloseNotify(t)
		_ = c.conn.Close()
		<-ended

		c, heard = dialRecorded(t, s, config, "/")
		_ = c.conn.(*tls.Conn).CloseWrite()
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("after close_notify: %v, want EOF", err)
		}
		c.wantEOF()
		heard.wantCloseNotify(t)
		_ = c.conn.Close()

		// A close frame and close_notify in one write: the answer still comes.
		c = dialTLS(t, s, config, "/")
		c.write(masked(0x88, []byte{0x03, 0xe8}))
		_ = c.conn.(*tls.Conn).CloseWrite()
		if op, _, err := c.frame(); op != codec.OpClose || err != nil {
			t.Errorf("got %v, %v; want a close frame", op, err)
		}
		c.wantEOF()
		_ = c.conn.Close()
		<-ended

		c = dialTLS(t, s, config, "/")
		_ = c.conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
		_ = c.conn.(*tls.Conn).NetConn().Close()
		if err := <-ended; err == nil {
			t.Error("a reset is no orderly end")
		}

		c = dialTLS(t, s, config, "/") // a record that was not encrypted
		_, _ = c.conn.(*tls.Conn).NetConn().Write([]byte{23, 3, 3, 0, 32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32})
		if err := <-ended; !strings.Contains(err.Error(), "bad record MAC") {
			t.Errorf("after a forged record: %v", err)
		}
		if _, err := c.conn.Read(make([]byte, 1)); !strings.Contains(err.Error(), "bad record MAC") {
			t.Errorf("the client is told %v", err)
		}
		_ = c.conn.Close()
		eventually(t, "nothing is left", func() bool { return s.Stats().Sockets == 0 })
	})
}

// overheard keeps what is read, encrypted as it is: crypto/tls takes an end without close_notify for one with it.
type overheard struct {
	net.Conn
	read []byte
}

func (r *overheard) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read = append(r.read, b[:n]...)
	return n, err
}

func dialRecorded(t *testing.T, s *Server, config *tls.Config, path string) (*client, *overheard) {
	c := dialRaw(t, s)
	heard := &overheard{Conn: c.conn}
	c.conn = heard
	c.startTLS(config)
	c.open(path)
	return c, heard
}

// wantCloseNotify checks that the last record is an alert. That of TLS 1.3 can be told by its length.
func (r *overheard) wantCloseNotify(t *testing.T) {
	t.Helper()
	var kind, size int
	for b := r.read; len(b) >= certs.RecordHead; b = b[min(len(b), certs.RecordHead+size):] {
		kind, size = int(b[0]), int(b[3])<<8|int(b[4])
	}
	if kind != 21 && !(kind == 23 && size == 2+1+16) {
		t.Errorf("the last record is of kind %d and has %d bytes: no close_notify", kind, size)
	}
}

// Only HTTP/1.1 is spoken, and a client that wants something else is told so.
func TestTLSProtocols(t *testing.T) {
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
	for _, offered := range [][]string{nil, {"http/1.1"}, {"h2", "http/1.1"}} {
		config := a.client()
		config.NextProtos = offered
		c := shakeTLS(t, s, config)
		if got := c.state().NegotiatedProtocol; got != "http/1.1" && offered != nil {
			t.Errorf("offered %q, got %q", offered, got)
		}
	}
	config := a.client()
	config.NextProtos = []string{"h2"}
	wantTLSError(t, s, config, "no application protocol", RefuseTLSProtocol)
	old := a.client()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	wantTLSError(t, s, old, "protocol version not supported", RefuseTLSVersion)
	stranger := newAuthority(t).client()
	wantTLSError(t, s, stranger, "unknown authority", RefuseTLSAlert)
}

// wantTLSError checks that a handshake fails, that the client is told why and that the reason is counted.
func wantTLSError(t *testing.T, s *Server, config *tls.Config, text string, why RefuseReason) {
	t.Helper()
	before := s.Stats().Refusals[why]
	conn := tls.Client(dialRaw(t, s).conn, config)
	_ = conn.SetDeadline(time.Now().Add(patience))
	err := conn.Handshake()
	if err == nil { // TLS 1.3 tells it after the client's own part
		_, err = conn.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("the client is told %v, want %q", err, text)
	}
	eventually(t, "it is counted as "+why.String(), func() bool { return s.Stats().Refusals[why] == before+1 })
}

// The certificate is the one for the name that the client asks for.
func TestTLSNames(t *testing.T) {
	a := newAuthority(t)
	s := start(t, Options{
		Endpoints: echoAndBroadcast(),
		TLS:       TLS{Certificates: []Certificate{a.pair("one.test"), a.pair("two.test")}},
	})
	for asked, want := range map[string]string{"one.test": "one.test", "two.test": "two.test", "": "one.test", "three.test": "one.test"} {
		config := a.client()
		config.ServerName, config.InsecureSkipVerify = asked, true
		if got := shakeTLS(t, s, config).state().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("asked for %q, got %q, want %q", asked, got, want)
		}
	}
}

// Clients show certificates: those that must and have none, or one that is not trusted, stay outside.
func TestTLSClientCertificates(t *testing.T) {
	eachVersion(t, func(t *testing.T, a *authority, config *tls.Config) {
		who := make(chan string, 1)
		opts := a.overTLS(Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Upgrade: func(r *Request) error {
			name := ""
			if chain := r.TLS().VerifiedChains; len(chain) > 0 {
				name = chain[0][0].Subject.CommonName
			}
			who <- name
			return nil
		}}}}})
		opts.TLS.ClientAuth, opts.TLS.ClientCAFile = ClientAuthRequire, a.file()
		s := start(t, opts)
		dialTLS(t, s, a.shows(config.Clone(), "alice"), "/")
		if got := <-who; got != "alice" {
			t.Errorf("the handler sees %q", got)
		}
		wantTLSError(t, s, config, "", RefuseTLSCertificate)
		wantTLSError(t, s, newAuthority(t).shows(config.Clone(), "mallory"), "", RefuseTLSCertificate)

		opts.TLS.ClientAuth = ClientAuthRequest
		s = start(t, opts)
		dialTLS(t, s, config, "/")
		if got := <-who; got != "" {
			t.Errorf("the handler sees %q where nothing was shown", got)
		}
		dialTLS(t, s, a.shows(config.Clone(), "bob"), "/")
		if got := <-who; got != "bob" {
			t.Errorf("the handler sees %q", got)
		}
		wantTLSError(t, s, newAuthority(t).shows(config.Clone(), "mallory"), "", RefuseTLSCertificate)
	})
}

// What is no TLS gets an answer that a person can read, and the other way round.
func TestTLSOrNot(t *testing.T) {
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
	c := dialRaw(t, s)
	c.write([]byte(upgradeHead("/echo")))
	resp := c.response()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(body), "this port speaks TLS") {
		t.Errorf("%s: %s", resp.Status, body)
	}
	c.wantEOF()
	for _, garbage := range []string{"\x00\x01\x02", "\x16\x02\x00", "\x16\x03\x01\x00\x00", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "\x16\x03\x01\xff\xff"} {
		c := dialRaw(t, s)
		c.write([]byte(garbage))
		c.wantEOF()
	}
	huge := append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, make([]byte, reactor.MaxHello)...)
	c = dialRaw(t, s)
	c.write(huge)
	c.wantEOF()
	if st := s.Stats(); st.Refusals[RefusePlainText] != 1 || st.Refusals[RefuseTLSHello] != 6 {
		t.Errorf("counted %d and %d, want 1 and 6", st.Refusals[RefusePlainText], st.Refusals[RefuseTLSHello])
	}

	plain := start(t, Options{Endpoints: echoAndBroadcast()})
	conn := tls.Client(dialRaw(t, plain).conn, a.client())
	if err := conn.Handshake(); err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("the client is told %v", err)
	}
	eventually(t, "it is counted", func() bool { return plain.Stats().Refusals[RefuseTLS] == 1 })
}

// An endpoint knows the scheme of its own pages when it speaks TLS.
func TestTLSIsSecure(t *testing.T) {
	a := newAuthority(t)
	secure := make(chan bool, 1)
	opts := a.overTLS(Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Upgrade: func(r *Request) error {
		secure <- r.Secure
		return nil
	}}}}})
	s := start(t, opts)
	if url := s.URL("/x"); !strings.HasPrefix(url, "wss://127.0.0.1:") {
		t.Error(url)
	}
	dialTLS(t, s, a.client(), "/", "Origin: https://example.com")
	if !<-secure {
		t.Error("Request.Secure is not set")
	}
	c := shakeTLS(t, s, a.client())
	c.write([]byte(upgradeHead("/", "Origin: http://example.com", "Cookie: a=b")))
	if resp := c.response(); resp.StatusCode != 403 {
		t.Errorf("a page without TLS: %s, want 403", resp.Status)
	}
}

// Each listener has its own certificates, or none, and so has a unix socket.
func TestTLSOfEachListener(t *testing.T) {
	a, path := newAuthority(t), socketPath(t)
	s := start(t, Options{
		Endpoints: echoAndBroadcast(),
		Listeners: []Listener{
			{Listen: "127.0.0.1:0", TLS: TLS{Certificates: []Certificate{a.pair("server.test")}}},
			{Listen: "unix:" + path, TLS: TLS{Certificates: []Certificate{a.pair("server.test")}, MinVersion: "1.3"}},
		},
	})
	dial(t, s, "/echo").echoes("plain")
	for _, at := range s.Addrs()[1:] {
		c := dialAt(t, at.Network(), at.String())
		c.startTLS(a.client())
		c.open("/echo")
		c.echoes("secure")
	}
	c := dialAt(t, "tcp", s.Addrs()[1].String())
	c.write([]byte(upgradeHead("/echo")))
	c.wantRefusal(http.StatusBadRequest, "")
	if n := s.Stats().TLSHandshakes; n != 2 {
		t.Errorf("%d handshakes were counted, want 2", n)
	}
}

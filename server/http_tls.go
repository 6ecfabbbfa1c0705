package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"

	"carillon/server/internal/reactor"
)

// secureConn is a connection with TLS that the http.Server serves, or the application when it has hijacked
// it. Closing it closes the plainConn below it. The http.Server does not know that it is TLS: it would look
// for a *tls.Conn, which could not have read what the loop has.
type secureConn struct {
	*tls.Conn
	session *reactor.Session
	plain   *plainConn
	early   []byte // what the loop has decrypted; owned by the reader
}

// secured puts the session that a loop had on top of the connection.
func (c *plainConn) secured(s *reactor.Session) *secureConn {
	secured := &secureConn{Conn: s.TLS, session: s, plain: c, early: c.early}
	c.early = nil
	s.Conn, s.Lower = nil, c
	return secured
}

func (c *secureConn) Read(b []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.early)
	if c.early = c.early[n:]; len(c.early) == 0 {
		c.early = nil
	}
	return n, nil
}

// servedConn is what a request knows of its connection.
type servedConn struct {
	plain *plainConn
	tls   *tls.ConnectionState // nil without TLS
}

type servedConnKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	c := &servedConn{}
	c.plain, _, _ = lowest(conn)
	if secured, ok := conn.(*secureConn); ok {
		state := secured.ConnectionState()
		c.tls = &state
	}
	return context.WithValue(ctx, servedConnKey{}, c)
}

// servedOn is the connection that a request has come on.
func servedOn(r *http.Request) *servedConn { return r.Context().Value(servedConnKey{}).(*servedConn) }

// tellTLS sets what net/http would have set.
func (c *servedConn) tellTLS(r *http.Request) {
	if c.tls != nil {
		r.TLS = c.tls
	}
}

// lowest is the TCP connection of one that the http.Server has, and the session on it, if there is one.
func lowest(conn net.Conn) (plain *plainConn, s *reactor.Session, early []byte) {
	if c, ok := conn.(*secureConn); ok {
		return c.plain, c.session, c.early
	}
	plain = conn.(*plainConn)
	return plain, nil, plain.early
}

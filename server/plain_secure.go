package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// secureConn is a connection with TLS that the http.Server serves, or the application when it has hijacked
// it. Closing it closes the plainConn below it. The http.Server does not know that it is TLS: it would look
// for a *tls.Conn, which could not have read what the loop has.
type secureConn struct {
	*tls.Conn
	session *session
	plain   *plainConn
	early   []byte // what the loop has decrypted; owned by whoever reads
}

// secured puts the session that a loop had on top of the connection.
func (c *plainConn) secured(s *session) *secureConn {
	secured := &secureConn{Conn: s.tls, session: s, plain: c, early: c.early}
	c.early = nil
	s.conn, s.lower = nil, c
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

// tlsKey is that of a connection's state in its context.
type tlsKey struct{}

func withTLS(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*secureConn); ok {
		state := c.ConnectionState()
		return context.WithValue(ctx, tlsKey{}, &state)
	}
	return ctx
}

// tellTLS sets what net/http would have set.
func tellTLS(r *http.Request) {
	if state, ok := r.Context().Value(tlsKey{}).(*tls.ConnectionState); ok {
		r.TLS = state
	}
}

// lowest is the TCP connection of one that the http.Server has, and the session on it, if there is one.
func lowest(conn net.Conn) (plain *plainConn, s *session, early []byte) {
	if c, ok := conn.(*secureConn); ok {
		return c.plain, c.session, c.early
	}
	plain = conn.(*plainConn)
	return plain, nil, plain.early
}

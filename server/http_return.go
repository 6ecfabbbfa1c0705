package server

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"carillon/server/internal/reactor"
)

// A proxy that keeps its connections sends whatever comes next on any of them: after some pages, a
// WebSocket handshake. So a request for an endpoint takes its connection back to a loop, where it is
// answered as if it had come first, whether that opens a WebSocket or refuses to.

// reattached is a connection on its way back from the http.Server to a loop.
type reattached struct {
	sh      *reactor.Shard
	conn    *plainConn
	bytes   []byte           // the request's head and what has been read behind it
	session *reactor.Session // nil without TLS
}

// reattach waits until the loop has the connection, and forgets it if the loop does not take it.
func (p *plainHTTP) reattach(w http.ResponseWriter, r *http.Request) {
	head := headOf(r)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // HTTP/1 can be hijacked, and there is no other here
	}
	c, session, early := lowest(conn)
	rest, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	shards := p.srv.engine.AllShards()
	back := &reattached{
		sh:      shards[p.turn.Add(1)%uint64(len(shards))],
		conn:    c,
		bytes:   slices.Concat(head, rest, early),
		session: session,
	}
	p.moving <- struct{}{}
	err = p.srv.engine.Enroll(back.sh, back, c.streamConn)
	<-p.moving
	if !c.listener.leave(c) {
		return
	}
	p.srv.engine.LogLoss("connection lost while being passed to a loop", c.remote.AddrPort(), err)
	back.sh.Stats.Refusals[reactor.LossReason(err)].Add(1)
	_ = c.streamConn.Close()
	p.srv.engine.Release(c.remote, c.counted)
	p.srv.engine.SocketClosed()
}

// Opened is called on the loop. From here on the connection is like one that was accepted.
func (r *reattached) Opened(s reactor.Socket) bool {
	if !r.conn.listener.leave(r.conn) {
		return false // it has been closed meanwhile, and counted
	}
	r.sh.BeginTurn()
	r.sh.Stats.Returned.Add(1)
	r.sh.Admit(s, r.conn.entered, r.conn.remote, r.conn.counted).Continue(r.session, r.bytes)
	r.sh.EndSocketTurn()
	return true
}

// headOf rebuilds a request's head. What net/http does not keep is lost: the order and the case of header names, Host
// with an absolute target, and the absence of Cache-Control with Pragma. None of that means anything in a handshake.
func headOf(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\n", r.Method, r.RequestURI, r.Proto)
	if r.Host != "" {
		fmt.Fprintf(&b, "Host: %s\r\n", r.Host)
	}
	if len(r.TransferEncoding) > 0 { // no handshake has one: it is to be refused for it
		fmt.Fprintf(&b, "Transfer-Encoding: %s\r\n", strings.Join(r.TransferEncoding, ", "))
	}
	_ = r.Header.Write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}

// rawPath is the path of a request target as [codec.Request] has it, escapes and all. The two must
// agree: what the one takes for an endpoint's and the other does not would go to and fro for ever.
func rawPath(target string) string {
	if !strings.HasPrefix(target, "/") {
		_, rest, absolute := strings.Cut(target, "://")
		if !absolute {
			return target
		}
		target = rest[min(len(rest), strings.IndexAny(rest+"/", "/?")):]
	}
	path, _, _ := strings.Cut(target, "?")
	if path == "" {
		return "/"
	}
	return path
}

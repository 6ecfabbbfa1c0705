package server

import (
	"errors"
	"slices"
	"strings"

	"carillon/codec"
	"carillon/server/internal/auth"
)

// Scripts of listed origins may read event streams although they come from elsewhere (CORS, Fetch standard, section
// 3.3). A script that sends a header of its own, such as Authorization, is preceded by a preflight request of the
// browser, which carries neither cookies nor tokens.

var errPreflight = errors.New("a preflight request")

// corsMaxAge is how long, in seconds, a browser may go without another preflight.
const corsMaxAge = "600"

// corsFields returns the headers that let a script of another origin read the answer to r, nil if there are none.
// With cookies it may read only if its origin is listed by name: with "*" or "null" any site could read what its
// visitors may.
func corsFields(o *auth.Origins, r *codec.Request) [][2]string {
	origin, byName := o.Readable(r)
	if origin == "" {
		return nil
	}
	fields := [][2]string{{"Access-Control-Allow-Origin", origin}, {"Vary", "Origin"}}
	if byName {
		fields = append(fields, [2]string{"Access-Control-Allow-Credentials", "true"})
	}
	return fields
}

// appendCORS appends the fields except those that the application sets itself: browsers refuse them if they come twice.
func appendCORS(b []byte, fields, application [][2]string) []byte {
	for _, f := range fields {
		isSet := slices.ContainsFunc(application, func(a [2]string) bool { return strings.EqualFold(a[0], f[0]) })
		if !isSet || f[0] == "Vary" {
			b = codec.AppendFields(b, [][2]string{f})
		}
	}
	return b
}

// isPreflight reports whether a browser asks with a request which method and headers a script may send.
func isPreflight(r *codec.Request) bool {
	return string(r.Method) == "OPTIONS" && r.Header("Origin") != nil && r.Header("Access-Control-Request-Method") != nil
}

// answerPreflight allows a script to send any header: they are checked when the request itself comes. The origin has
// been checked.
func (c *Conn) answerPreflight(r *codec.Request) {
	sh := c.shard()
	b := append(sh.Control[:0], "HTTP/1.1 204 No Content\r\nConnection: close\r\n"...)
	b = codec.AppendFields(b, corsFields(&c.endpoint().now().origins, r))
	b = append(b, "Access-Control-Allow-Methods: GET\r\nAccess-Control-Max-Age: "+corsMaxAge+"\r\n"...)
	if names := auth.JoinedHeader(r, "Access-Control-Request-Headers"); names != "" {
		b = codec.AppendFields(b, [][2]string{{"Access-Control-Allow-Headers", names}, {"Vary", "Access-Control-Request-Headers"}})
	}
	sh.Control = append(b, "\r\n"...)
	c.core().LastAnswer(sh.Control)
}

// withCORS returns the rejection of an event stream with the headers that let a script read it.
func (c *Conn) withCORS(r *codec.Request, rejection *codec.Rejection) *codec.Rejection {
	if c.core().Endpoint() == nil || c.endpoint().Mode != ModeTopics || !wantsEvents(r) {
		return rejection
	}
	fields := corsFields(&c.endpoint().now().origins, r)
	if fields == nil {
		return rejection
	}
	with := *rejection
	with.Header = slices.Concat(rejection.Header, fields)
	return &with
}

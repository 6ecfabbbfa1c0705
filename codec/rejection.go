package codec

import (
	"net/http"
	"strconv"
	"strings"
)

// Rejection is the refusal of a request: a complete HTTP answer, after which the connection is closed.
// Those that this package returns are shared and must not be changed.
type Rejection struct {
	Status int         // such as 400
	Reason string      // one line, sent as the body: plain text, unless Header has a Content-Type
	Header [][2]string // names and values beyond those that every refusal has
}

// Error returns the status and the reason.
func (r *Rejection) Error() string {
	return "websocket: request refused with " + strconv.Itoa(r.Status) + ": " + r.Reason
}

// AppendResponse appends the whole answer to dst. Whatever Header holds, the answer stays one answer:
// control characters in values become spaces, and a header whose name is no token is left out. Of several that Header
// has of Content-Type or X-Content-Type-Options, which every answer has one of, the first counts.
func (r *Rejection) AppendResponse(dst []byte) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(r.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(r.Status)...)
	dst = append(dst, "\r\n"...)
	dst = r.appendOnce(dst, contentType, "text/plain; charset=utf-8")
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(r.Reason)+1), 10)
	dst = append(dst, "\r\nConnection: close\r\n"...)
	dst = r.appendOnce(dst, contentTypeOptions, "nosniff")
	for _, h := range r.Header {
		if !equalFold(h[0], "content-length") && !equalFold(h[0], "transfer-encoding") &&
			!strings.EqualFold(h[0], contentType) && !strings.EqualFold(h[0], contentTypeOptions) {
			dst = appendField(dst, h[0], h[1])
		}
	}
	dst = append(dst, "\r\n"...)
	dst = appendClean(dst, r.Reason)
	return append(dst, '\n')
}

const (
	contentType        = "Content-Type"
	contentTypeOptions = "X-Content-Type-Options"
)

// appendOnce appends a header that an answer has once: with the value that Header has, or else with this one.
func (r *Rejection) appendOnce(dst []byte, name, value string) []byte {
	for _, h := range r.Header {
		if strings.EqualFold(h[0], name) {
			value = h[1]
			break
		}
	}
	return appendField(dst, name, value)
}

// AppendFields appends header lines, of names and values, to an HTTP answer, as AppendResponse does.
func AppendFields(dst []byte, fields [][2]string) []byte {
	for _, f := range fields {
		dst = appendField(dst, f[0], f[1])
	}
	return dst
}

// appendField appends one header line, or nothing when the name is no token.
func appendField(dst []byte, name, value string) []byte {
	if !IsToken(name) {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = appendClean(dst, value)
	return append(dst, "\r\n"...)
}

// appendClean appends s with spaces for its control characters.
func appendClean(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if byteClass[c]&inValue == 0 {
			c = ' '
		}
		dst = append(dst, c)
	}
	return dst
}

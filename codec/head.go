package codec

import "bytes"

// HeadLen returns the length of the request head at the start of buf, its blank line included, or 0
// when more bytes are needed. from is how many bytes of buf earlier calls have seen in vain; 0 at first.
//
// A blank line counts even if its line ends are bare LF, which [Request.Parse] then refuses: the
// client gets its 400 instead of silence. Empty lines before the request line are for [EmptyLines].
func HeadLen(buf []byte, from int) int {
	// The blank line may begin with the LF of the line before, two bytes back.
	for i := max(0, from-2); i < len(buf); {
		lf := bytes.IndexByte(buf[i:], '\n')
		if lf < 0 {
			return 0
		}
		i += lf + 1
		switch {
		case i < len(buf) && buf[i] == '\n':
			return i + 1
		case i+1 < len(buf) && buf[i] == '\r' && buf[i+1] == '\n':
			return i + 2
		}
	}
	return 0
}

// maxEmptyLines is generous: clients that send an empty line behind the body of a POST send one.
const maxEmptyLines = 4

// EmptyLines returns the length of the empty lines at the start of buf, at most four. A server skips those
// before a request line (RFC 9112, section 2.2).
func EmptyLines(buf []byte) (n int) {
	for n < maxEmptyLines*len(crlf) && bytes.HasPrefix(buf[n:], crlf) {
		n += len(crlf)
	}
	return n
}

var crlf = []byte("\r\n")

// What Parse refuses, in the order in which a head is read.
var (
	errRequestLine = badRequest("malformed request line")
	errVersion     = &Rejection{Status: 505, Reason: "only HTTP/1.1 is supported"}
	errTarget      = badRequest("malformed request target")
	errLineEnd     = badRequest("lines must end in CR LF")
	errHeaderName  = badRequest("malformed header name")
	errHeaderValue = badRequest("control character in a header value")
	errHeadEnd     = badRequest("the head does not end with a blank line")
	errHost        = badRequest("exactly one valid Host header is required")
)

func badRequest(reason string) *Rejection { return &Rejection{Status: 400, Reason: reason} }

// parseFields checks the header section, blank line included, and notes the Host.
func (r *Request) parseFields(section []byte) *Rejection {
	hosts := 0
	for {
		line, rest, ok := cutLine(section)
		if !ok {
			return errLineEnd
		}
		if len(line) == 0 {
			if len(rest) > 0 {
				return errHeadEnd
			}
			break
		}
		name, value, ok := cutField(line)
		// A line that goes on with the value of the last one (obs-fold) begins with white space,
		// which is no token either.
		if !ok || !isToken(name) {
			return errHeaderName
		}
		if !all(value, inValue) {
			return errHeaderValue
		}
		if len(name) == len("host") && equalFold(name, "host") {
			hosts++
			r.Host = value
		}
		section = rest
	}
	if hosts == 0 && r.HTTP10 {
		return nil // Host came with HTTP/1.1
	}
	if hosts != 1 || !validHost(r.Host) {
		return errHost
	}
	return nil
}

// cutLine cuts the first line off b; ok=false when it does not end in CR LF. A CR inside the line is
// left for the checks of what it stands in: it is part of no token, target or value.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	lf := bytes.IndexByte(b, '\n')
	if lf < 1 || b[lf-1] != '\r' {
		return nil, nil, false
	}
	return b[:lf-1], b[lf+1:], true
}

func cutField(line []byte) (name, value []byte, ok bool) {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return nil, nil, false
	}
	return line[:colon], trim(line[colon+1:]), true
}

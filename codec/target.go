package codec

import "bytes"

// parseLine takes the request line apart (RFC 9112, section 3).
func (r *Request) parseLine(line []byte) *Rejection {
	method, rest, ok := bytes.Cut(line, space)
	if !ok || !isToken(method) {
		return errRequestLine
	}
	target, version, ok := bytes.Cut(rest, space)
	if !ok || len(target) == 0 {
		return errRequestLine
	}
	if !isHTTPVersion(version) {
		return errRequestLine
	}
	r.HTTP10 = string(version) == "HTTP/1.0"
	if !r.HTTP10 && string(version) != "HTTP/1.1" {
		return errVersion
	}
	r.Method, r.Target = method, target
	if !all(target, inTarget) {
		return errTarget
	}
	return r.parseTarget(target)
}

var space = []byte(" ")

// isHTTPVersion reports whether b is "HTTP/" DIGIT "." DIGIT.
func isHTTPVersion(b []byte) bool {
	return len(b) == len("HTTP/1.1") && string(b[:5]) == "HTTP/" &&
		isDigit(b[5]) && b[6] == '.' && isDigit(b[7])
}

// parseTarget accepts the origin form, "/path?query", and the absolute form, "http://host/path?query"
// (RFC 9112, sections 3.2.1 and 3.2.2).
func (r *Request) parseTarget(target []byte) *Rejection {
	if target[0] != '/' {
		scheme, rest, ok := bytes.Cut(target, schemeEnd)
		if !ok || !equalFold(scheme, "http") && !equalFold(scheme, "https") &&
			!equalFold(scheme, "ws") && !equalFold(scheme, "wss") {
			return errTarget
		}
		end := bytes.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		r.authority, target = rest[:end], rest[end:]
		if !validHost(r.authority) {
			return errTarget
		}
	}
	r.Path, r.Query, _ = bytes.Cut(target, questionMark)
	if len(r.Path) == 0 {
		r.Path = rootPath
	}
	if !validEscapes(r.Path) {
		return errTarget
	}
	return nil
}

var (
	schemeEnd    = []byte("://")
	questionMark = []byte("?")
	rootPath     = []byte("/")
)

// validHost reports whether b is a host, with or without a port (RFC 9110, section 7.2). An empty host
// is refused: there is no resource of http, https, ws or wss without one (section 4.2.1).
func validHost(b []byte) bool {
	host, port := b, []byte(nil)
	if colon := bytes.LastIndexByte(b, ':'); colon >= 0 && bytes.IndexByte(b[colon:], ']') < 0 {
		host, port = b[:colon], b[colon+1:]
	}
	for _, c := range port {
		if !isDigit(c) {
			return false
		}
	}
	if len(host) > 0 && host[0] == '[' {
		return validIPv6(host)
	}
	return len(host) > 0 && all(host, inHost) && validEscapes(host)
}

// validIPv6 looks at the characters only: whether such an address exists decides nothing here.
func validIPv6(b []byte) bool {
	if len(b) < len("[::]") || b[len(b)-1] != ']' {
		return false
	}
	colons := 0
	for _, c := range b[1 : len(b)-1] {
		if c == ':' {
			colons++
		} else if !isHex(c) && c != '.' {
			return false
		}
	}
	return colons >= 2
}

// validEscapes reports whether each "%" is followed by two hexadecimal digits.
func validEscapes(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '%')
		if i < 0 {
			return true
		}
		if len(b) < i+3 || !isHex(b[i+1]) || !isHex(b[i+2]) {
			return false
		}
		b = b[i+3:]
	}
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

package codec

import "bytes"

// What a byte may be part of. One table, so that a check is one look-up for each byte.
const (
	inToken  = 1 << iota // RFC 9110, section 5.6.2
	inValue              // of a header: HTAB, SP, VCHAR, obs-text (RFC 9110, section 5.5)
	inTarget             // of a request: visible ASCII but "#" (RFC 9112, section 3.2)
	inHost               // a registered name: unreserved, sub-delims, "%" (RFC 3986, section 3.2.2)
)

var byteClass = func() (table [256]byte) {
	for c := range table {
		if c == '\t' || c >= ' ' && c != 0x7F {
			table[c] |= inValue
		}
		if c > ' ' && c < 0x7F && c != '#' {
			table[c] |= inTarget
		}
	}
	const alnum = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for _, c := range []byte(alnum + "!#$%&'*+-.^_`|~") {
		table[c] |= inToken
	}
	for _, c := range []byte(alnum + "-._~!$&'()*+,;=%") {
		table[c] |= inHost
	}
	return table
}()

// all reports whether every byte of s is of the class.
func all[S string | []byte](s S, class byte) bool {
	for i := range len(s) {
		if byteClass[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// IsToken reports whether s is a token, which header names, methods and subprotocols have to be
// (RFC 9110, section 5.6.2).
func IsToken(s string) bool { return isToken(s) }

func isToken[S string | []byte](s S) bool { return len(s) > 0 && all(s, inToken) }

// equalFold compares ASCII without regard to case. lower must be in lower case.
func equalFold[S string | []byte](s S, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// trim removes the optional white space around a header value.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// nextItem cuts the first element off a comma-separated list, white space trimmed. Elements may be
// empty (RFC 9110, section 5.6.1).
func nextItem(list []byte) (item, rest []byte) {
	item, rest, _ = bytes.Cut(list, comma)
	return trim(item), rest
}

var comma = []byte(",")

// hasToken reports whether the comma-separated list has the token, in any case.
func hasToken(list []byte, lower string) bool {
	for len(list) > 0 {
		var item []byte
		item, list = nextItem(list)
		if equalFold(item, lower) {
			return true
		}
	}
	return false
}

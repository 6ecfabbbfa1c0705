package server

import (
	"errors"

	"carillon/codec"
)

var (
	errNotTLS    = errors.New("what came is not the beginning of TLS")
	errPlainText = errors.New("a request without TLS")
)

var (
	rejectPlainText = &codec.Rejection{Status: 400, Reason: "this port speaks TLS: use https:// or wss://"}
	rejectTLS       = &codec.Rejection{Status: 400, Reason: "this port does not speak TLS: use http:// or ws://"}
)

// A TLS record (RFC 8446, section 5.1), and the ClientHello that is in the first ones (section 4).
const (
	recordHead      = 5 // type, version, length
	recordHandshake = 22
	mostOfRecord    = 1 << 14
	helloHead       = 4 // type, length
	helloType       = 1

	// A record is this much longer when it is encrypted (RFC 5246, section 6.2.3).
	mostOfSealed = mostOfRecord + 2048
)

// isTLS says whether a connection begins like TLS.
func isTLS(b []byte) bool { return len(b) > 0 && b[0] == recordHandshake }

// wholeHello says whether b holds a ClientHello to its end. It looks no further than at lengths: what is in
// it is for crypto/tls.
func wholeHello(b []byte) (bool, error) {
	missing, known := helloHead, false
	var head []byte
	for missing > 0 {
		switch {
		case len(b) > 0 && b[0] >= 'A' && b[0] <= 'Z' && head == nil:
			return false, errPlainText
		case len(b) > 0 && b[0] != recordHandshake, len(b) > 1 && b[1] != 3:
			return false, errNotTLS
		case len(b) < recordHead:
			return false, nil
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > mostOfRecord {
			return false, errNotTLS
		}
		part := b[recordHead:min(len(b), recordHead+n)]
		if !known {
			if head = append(head, part[:min(len(part), helloHead-len(head))]...); len(head) > 0 && head[0] != helloType {
				return false, errNotTLS
			}
			if len(head) == helloHead {
				known = true
				missing += int(head[1])<<16 | int(head[2])<<8 | int(head[3])
			}
		}
		if missing -= len(part); missing <= 0 {
			return true, nil
		}
		if len(part) < n {
			return false, nil
		}
		b = b[recordHead+n:]
	}
	return true, nil
}

package certs

import (
	"errors"
)

// What WholeHello returns for what is no TLS.
var (
	ErrNotTLS    = errors.New("the first bytes are not TLS")
	ErrPlainText = errors.New("a request without TLS")
)

// A TLS record (RFC 8446, section 5.1), and the ClientHello that is in the first ones (section 4).
const (
	RecordHead      = 5 // type, version, length
	RecordHandshake = 22
	maxRecord       = 1 << 14
	helloHead       = 4 // type, length
	helloType       = 1

	// A record is this much longer when it is encrypted (RFC 5246, section 6.2.3).
	MaxSealed = maxRecord + 2048
)

// IsTLS reports whether a connection begins like TLS.
func IsTLS(b []byte) bool { return len(b) > 0 && b[0] == RecordHandshake }

// WholeHello reports whether b holds a ClientHello to its end. It looks no further than at lengths: what is in
// it is for crypto/tls.
func WholeHello(b []byte) (bool, error) {
	missing, known := helloHead, false
	var head []byte
	for missing > 0 {
		switch {
		case len(b) > 0 && b[0] >= 'A' && b[0] <= 'Z' && head == nil:
			return false, ErrPlainText
		case len(b) > 0 && b[0] != RecordHandshake, len(b) > 1 && b[1] != 3:
			return false, ErrNotTLS
		case len(b) < RecordHead:
			return false, nil
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return false, ErrNotTLS
		}
		part := b[RecordHead:min(len(b), RecordHead+n)]
		if !known {
			if head = append(head, part[:min(len(part), helloHead-len(head))]...); len(head) > 0 && head[0] != helloType {
				return false, ErrNotTLS
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
		b = b[RecordHead+n:]
	}
	return true, nil
}

package codec

import (
	"bytes"
	"encoding/base64"
)

// The header names of the opening handshake, in lower case.
const (
	nameUpgrade    = "upgrade"
	nameConnection = "connection"
	nameKey        = "sec-websocket-key"
	nameVersion    = "sec-websocket-version"
	nameProtocol   = "sec-websocket-protocol"
	nameExtensions = "sec-websocket-extensions"
)

// What CheckUpgrade refuses.
var (
	errMethod = &Rejection{Status: 405, Reason: "a WebSocket handshake must be a GET request",
		Header: [][2]string{{"Allow", "GET"}}}
	errNoUpgrade = &Rejection{Status: 426, Reason: "this is a WebSocket endpoint",
		Header: [][2]string{{"Connection", "Upgrade"}, {"Upgrade", "websocket"}, {"Sec-WebSocket-Version", "13"}}}
	errUpgradeHTTP10 = &Rejection{Status: 505, Reason: "a WebSocket handshake needs HTTP/1.1, and this is HTTP/1.0: " +
		"a proxy may need configuring (nginx: proxy_http_version 1.1)"}
	errNoConnection = badRequest("the Connection header must include Upgrade")
	errBody         = badRequest("a WebSocket handshake must not have a body")
	errTwoVersions  = badRequest("expected exactly one Sec-WebSocket-Version header")
	errNoVersion    = badRequest("the Sec-WebSocket-Version header is missing")
	errBadVersion   = badRequest("malformed Sec-WebSocket-Version header")
	errOtherVersion = &Rejection{Status: 426, Reason: "only version 13 of the WebSocket protocol is supported",
		Header: [][2]string{{"Connection", "Upgrade"}, {"Upgrade", "websocket"}, {"Sec-WebSocket-Version", "13"}}}
	errTwoKeys = badRequest("expected exactly one Sec-WebSocket-Key header")
	errNoKey   = badRequest("the Sec-WebSocket-Key header is missing")
	errBadKey  = badRequest("the Sec-WebSocket-Key header must be 16 bytes in base64")
)

// handshakeFields are the headers that decide whether a request is a handshake.
type handshakeFields struct {
	upgrade, connection bool // the header names websocket, or upgrade
	body                bool // a length above 0, or a Transfer-Encoding
	hixie               bool // a header of drafts 75 and 76, before there were versions
	key, version        []byte
	keys, versions      int
}

func (f *handshakeFields) read(r *Request) {
	for name, value := range r.Headers() {
		switch len(name) {
		case len(nameUpgrade):
			f.upgrade = f.upgrade || equalFold(name, nameUpgrade) && hasToken(value, "websocket")
		case len(nameConnection):
			f.connection = f.connection || equalFold(name, nameConnection) && hasToken(value, "upgrade")
		case len("content-length"):
			f.body = f.body || equalFold(name, "content-length") && !isZero(value)
		case len(nameKey): // as long as Transfer-Encoding
			if equalFold(name, nameKey) {
				f.key = value
				f.keys++
			}
			f.body = f.body || equalFold(name, "transfer-encoding")
		case len("sec-websocket-key1"):
			f.hixie = f.hixie || equalFold(name, "sec-websocket-key1") || equalFold(name, "sec-websocket-key2")
		case len(nameVersion):
			if equalFold(name, nameVersion) {
				f.version = value
				f.versions++
			}
		}
	}
}

// isZero reports whether a Content-Length is 0, which is no body (RFC 9110, section 8.6).
func isZero(length []byte) bool {
	return len(length) > 0 && len(bytes.TrimLeft(length, "0")) == 0
}

// NamesWebSocket reports whether an Upgrade header names websocket. A server ignores one that names other
// protocols only, such as h2c (RFC 9110, section 7.8).
func (r *Request) NamesWebSocket() bool {
	for name, value := range r.Headers() {
		if equalFold(name, nameUpgrade) && hasToken(value, "websocket") {
			return true
		}
	}
	return false
}

// CheckUpgrade reports, as a *[Rejection], why the request is not the opening handshake of a client (RFC 6455, section
// 4.2.1). A client that does not ask for WebSocket at all, or for another version of it, is told by a 426 what it could
// ask for (section 4.2.2). The version is checked before what depends on it: drafts had other headers, and a body.
func (r *Request) CheckUpgrade() error {
	if string(r.Method) != "GET" {
		return errMethod
	}
	if r.HTTP10 {
		return errUpgradeHTTP10
	}
	var f handshakeFields
	f.read(r)
	switch {
	case !f.upgrade:
		return errNoUpgrade
	case !f.connection:
		return errNoConnection
	}
	if err := f.checkVersion(); err != nil {
		return err
	}
	switch {
	case f.body:
		return errBody
	case f.keys == 0:
		return errNoKey
	case f.keys > 1:
		return errTwoKeys
	case !validKey(f.key):
		return errBadKey
	}
	return nil
}

func (f *handshakeFields) checkVersion() error {
	switch {
	case f.versions > 1:
		return errTwoVersions
	case f.versions == 0 && (f.hixie || f.keys == 0):
		return errOtherVersion
	case f.versions == 0:
		return errNoVersion
	case !validVersion(f.version):
		return errBadVersion
	case string(f.version) != "13":
		return errOtherVersion
	}
	return nil
}

// validVersion reports whether b is a number from 0 to 255 without leading zeros.
func validVersion(b []byte) bool {
	if len(b) == 0 || len(b) > 3 || len(b) > 1 && b[0] == '0' {
		return false
	}
	n := 0
	for _, c := range b {
		if !isDigit(c) {
			return false
		}
		n = 10*n + int(c-'0')
	}
	return n <= 255
}

// validKey reports whether b is 16 bytes in base64: 22 digits and "==". The last digit has four bits
// too many. RFC 4648, section 3.5, lets a decoder insist on zeros there; this one does not, since the
// answer is made from the key's text and RFC 6455 only asks that it can be decoded.
func validKey(b []byte) bool {
	if len(b) != 24 {
		return false
	}
	var key [18]byte
	n, err := base64.StdEncoding.Decode(key[:], b)
	return err == nil && n == 16
}

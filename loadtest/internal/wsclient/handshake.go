package wsclient

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// MaxHead is the largest response head that is accepted, in bytes.
const MaxHead = 16 << 10

// deflateOffer disables context takeover both ways, so that one decompressor can serve all connections of
// a process.
const deflateOffer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

// Handshake is the opening handshake of all connections of a run. Only the key differs.
type Handshake struct {
	Request      string   `json:"request"` // the request head, up to the key
	Subprotocols []string `json:"subprotocols,omitempty"`
	Compression  bool     `json:"compression,omitempty"`
}

func NewHandshake(host, uri string, subprotocols []string, compression bool, headers []string) Handshake {
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\n", uri, host)
	b.WriteString("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n")
	if len(subprotocols) > 0 {
		fmt.Fprintf(&b, "Sec-WebSocket-Protocol: %s\r\n", strings.Join(subprotocols, ", "))
	}
	if compression {
		b.WriteString("Sec-WebSocket-Extensions: " + deflateOffer + "\r\n")
	}
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("Sec-WebSocket-Key: ")
	return Handshake{Request: b.String(), Subprotocols: subprotocols, Compression: compression}
}

// KeySize is the length of a Sec-WebSocket-Key.
const KeySize = 24

// AppendKey appends the Sec-WebSocket-Key of one handshake. The same seed gives the same key.
func AppendKey(to []byte, seed uint64) []byte {
	var nonce [16]byte
	random := rand.NewPCG(seed, seed)
	binary.LittleEndian.PutUint64(nonce[:], random.Uint64())
	binary.LittleEndian.PutUint64(nonce[8:], random.Uint64())
	return base64.StdEncoding.AppendEncode(to, nonce[:])
}

// AcceptFor is the Sec-WebSocket-Accept for a key (RFC 6455, section 1.3).
func AcceptFor(key []byte) string {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// HeadEnd is the length of a complete head at the start of b, or 0.
func HeadEnd(b []byte) int {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return 0
}

// Verify checks the response to a handshake: its head, and as much of its body as has arrived. It reports
// whether messages may be compressed, or why there is no WebSocket connection.
func (h *Handshake) Verify(head, body, key []byte) (compressed bool, err error) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	status, isHTTP := strings.CutPrefix(lines[0], "HTTP/1.")
	if !isHTTP || len(status) < 5 || status[1] != ' ' {
		return false, fmt.Errorf("response is not HTTP: %q", Shorten(lines[0]))
	}
	if code := status[2:]; !strings.HasPrefix(code, "101") || len(code) > 3 && code[3] != ' ' {
		return false, Refusal(code, body)
	}
	if status[0] != '1' {
		return false, errors.New("101 response with HTTP/1.0")
	}
	header := map[string][]string{}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return false, fmt.Errorf("malformed header line %q", Shorten(line))
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		header[name] = append(header[name], strings.Trim(value, " \t"))
	}
	if v := header["Upgrade"]; len(v) != 1 || !strings.EqualFold(v[0], "websocket") {
		return false, errors.New("101 response without Upgrade: websocket")
	}
	if !hasToken(header["Connection"], "upgrade") {
		return false, errors.New("101 response without Connection: Upgrade")
	}
	if v := header["Sec-Websocket-Accept"]; len(v) != 1 || v[0] != AcceptFor(key) {
		return false, errors.New("101 response with a wrong Sec-WebSocket-Accept")
	}
	if v := header["Sec-Websocket-Protocol"]; len(v) > 1 || len(v) == 1 && !slices.Contains(h.Subprotocols, v[0]) {
		return false, fmt.Errorf("101 response with a subprotocol that was not offered: %s", Shorten(strings.Join(v, ", ")))
	}
	return h.checkExtensions(header["Sec-Websocket-Extensions"])
}

func (h *Handshake) checkExtensions(values []string) (compressed bool, err error) {
	if len(values) == 0 {
		return false, nil
	}
	all := strings.Join(values, ", ")
	params := strings.Split(all, ";")
	if !h.Compression || strings.Contains(all, ",") || strings.TrimSpace(params[0]) != "permessage-deflate" {
		return false, fmt.Errorf("101 response with an extension that was not offered: %s", Shorten(all))
	}
	takeover := true
	for _, p := range params[1:] {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		bits, err := strconv.Atoi(strings.Trim(value, `"`))
		switch {
		case name == "server_no_context_takeover" && value == "":
			takeover = false
		case name == "client_no_context_takeover" && value == "":
		case name == "server_max_window_bits" && err == nil && bits >= 8 && bits <= 15:
		default:
			return false, fmt.Errorf("101 response with a permessage-deflate parameter that was not offered: %s", Shorten(p))
		}
	}
	if takeover {
		return false, errors.New("101 response with permessage-deflate but without server_no_context_takeover")
	}
	return true, nil
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// Refusal is the error for a response other than 101. It quotes the server's body.
func Refusal(status string, body []byte) error {
	text := "HTTP " + Shorten(status)
	if status == "200" || strings.HasPrefix(status, "200 ") {
		return errors.New(text + " instead of 101: no WebSocket endpoint at this path")
	}
	if words := FirstLine(body); words != "" && !strings.EqualFold(words, strings.TrimLeft(status, "0123456789 ")) {
		text += ": " + words
	}
	return errors.New(text)
}

// FirstLine is the first non-empty line of text from a server, safe to print.
func FirstLine(b []byte) string {
	for line := range strings.Lines(strings.ToValidUTF8(string(b), "?")) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return -1
			}
			return r
		}, line)
		if line = strings.TrimSpace(line); line != "" {
			return Shorten(line)
		}
	}
	return ""
}

// Shorten truncates text from a server so that it fits in one line.
func Shorten(s string) string {
	const limit = 120
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}

package codec

import (
	"bytes"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws/wsflate"
)

var (
	errExtensions = badRequest("malformed Sec-WebSocket-Extensions header")
	errProtocols  = badRequest("malformed Sec-WebSocket-Protocol header")
)

// deflateAnswers are the answers to an offer of permessage-deflate (RFC 7692, section 7.1), by the
// server_max_window_bits that it asks for, 0 for none. Without context takeover in either direction nothing is kept
// between messages: an idle connection costs no window, and one compressed frame serves all who have the same window. A
// client that says how large its own window is gets no answer to that (section 7.1.2.2): any is small enough to inflate
// with.
var deflateAnswers = func() (answers [MaxWindow + 1][]httphead.Option) {
	for bits := range answers {
		if bits > 0 && bits < int(minWindow) {
			continue
		}
		answers[bits] = []httphead.Option{wsflate.Parameters{
			ServerNoContextTakeover: true,
			ClientNoContextTakeover: true,
			ServerMaxWindowBits:     wsflate.WindowBits(bits),
		}.Option()}
	}
	return answers
}()

// negotiateDeflate tries the offers in the value of one Sec-WebSocket-Extensions header in order, and
// returns the answer to the first that can be accepted, and the server's window in bits; nil when none can. ok=false
// means that the value is no list of extensions, which fails the handshake (RFC 6455, section 9.1).
func negotiateDeflate(value []byte) (answer []httphead.Option, window uint8, ok bool) {
	s := offerScanner{rest: value}
	extensions := 0
	for s.skipCommas() {
		extensions++
		name := s.token()
		if name == nil {
			return nil, 0, false
		}
		offer := deflateOffer{declined: string(name) != wsflate.ExtensionName}
		for s.next(';') {
			param, value, ok := s.param()
			if !ok {
				return nil, 0, false
			}
			offer.add(param, value)
		}
		if len(s.rest) > 0 && s.rest[0] != ',' {
			return nil, 0, false
		}
		if answer == nil && !offer.declined {
			answer, window = deflateAnswers[offer.window], MaxWindow
			if offer.window > 0 {
				window = offer.window
			}
		}
	}
	return answer, window, extensions > 0
}

// deflateOffer is one offer of permessage-deflate and whether it has to be declined because of a
// parameter that is unknown, comes twice or has a bad value (RFC 7692, section 7).
type deflateOffer struct {
	declined bool
	seen     uint8
	window   uint8 // server_max_window_bits; 0 without
}

const (
	seenServerTakeover = 1 << iota
	seenClientTakeover
	seenServerWindow
	seenClientWindow
)

// add takes in a parameter; value is nil when it has none.
func (o *deflateOffer) add(param, value []byte) {
	var bit uint8
	var good bool
	switch string(param) {
	case "server_no_context_takeover":
		bit, good = seenServerTakeover, value == nil
	case "client_no_context_takeover":
		bit, good = seenClientTakeover, value == nil
	case "server_max_window_bits":
		o.window = windowBits(value)
		bit, good = seenServerWindow, o.window > 0
	case "client_max_window_bits":
		bit, good = seenClientWindow, value == nil || windowBits(value) > 0
	}
	if !good || o.seen&bit != 0 {
		o.declined = true
	}
	o.seen |= bit
}

// windowBits reads a number from 8 to 15 without leading zeros, and returns 0 for anything else.
func windowBits(b []byte) uint8 {
	switch {
	case len(b) == 1 && (b[0] == '8' || b[0] == '9'):
		return b[0] - '0'
	case len(b) == 2 && b[0] == '1' && b[1] >= '0' && b[1] <= '5':
		return 10 + b[1] - '0'
	}
	return 0
}

// offerScanner reads a list of extensions (RFC 6455, section 9.1):
//
//	extension-list  = 1#extension
//	extension       = token *( ";" extension-param )
//	extension-param = token [ "=" (token | quoted-string) ]
type offerScanner struct{ rest []byte }

// skipCommas goes to the next element of the list, over empty ones, and reports whether there is one.
func (s *offerScanner) skipCommas() bool {
	for s.next(',') {
	}
	return len(s.rest) > 0
}

// next skips white space and then c, and reports whether c was there.
func (s *offerScanner) next(c byte) bool {
	s.rest = trim(s.rest)
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = trim(s.rest[1:])
	return true
}

// token reads a token; nil when there is none.
func (s *offerScanner) token() []byte {
	n := 0
	for n < len(s.rest) && byteClass[s.rest[n]]&inToken != 0 {
		n++
	}
	if n == 0 {
		return nil
	}
	token := s.rest[:n]
	s.rest = s.rest[n:]
	return token
}

func (s *offerScanner) param() (name, value []byte, ok bool) {
	if name = s.token(); name == nil {
		return nil, nil, false
	}
	if !s.next('=') {
		return name, nil, true
	}
	if len(s.rest) > 0 && s.rest[0] == '"' {
		value = s.quoted()
	} else {
		value = s.token()
	}
	return name, value, value != nil
}

// quoted reads a quoted string, whose content must be a token (RFC 6455, section 9.1); nil otherwise.
// A token has no character that needs a backslash. One that has it all the same is unquoted into a
// copy, which is rare enough.
func (s *offerScanner) quoted() []byte {
	content := s.rest[1:]
	var unquoted []byte
	for i := 0; i < len(content); i++ {
		switch c := content[i]; c {
		case '\\':
			if unquoted == nil {
				unquoted = bytes.Clone(content[:i:i])
			}
			if i++; i == len(content) {
				return nil
			}
			unquoted = append(unquoted, content[i])
		case '"':
			s.rest = content[i+1:]
			if unquoted == nil {
				unquoted = content[:i]
			}
			if !isToken(unquoted) {
				return nil
			}
			return unquoted
		default:
			if unquoted != nil {
				unquoted = append(unquoted, c)
			}
		}
	}
	return nil
}

// chooseProtocol returns the index in ours of the first subprotocol of the client's list that stands
// there, or -1. ok=false means that the value is no list of tokens.
func chooseProtocol(value []byte, ours []string) (index int, ok bool) {
	index = -1
	items := 0
	for len(value) > 0 {
		var item []byte
		if item, value = nextItem(value); len(item) == 0 {
			continue
		}
		if !isToken(item) {
			return -1, false
		}
		items++
		for i := 0; i < len(ours) && index < 0; i++ {
			if string(item) == ours[i] {
				index = i
			}
		}
	}
	return index, items > 0
}

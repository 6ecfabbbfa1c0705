package codec

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// maxReason is what a close frame has room for besides its code.
const maxReason = maxControl - 2

// AppendFrame appends one whole, unmasked frame to dst, as a server sends it (RFC 6455, section 5.1).
// The payload of a control frame is cut after 125 bytes (section 5.5); use [AppendClose] for close
// frames.
func AppendFrame(dst []byte, op Opcode, payload []byte) []byte {
	if op.isControl() && len(payload) > maxControl {
		payload = payload[:maxControl]
	}
	dst = appendHeader(dst, bitFin|byte(op), len(payload))
	return append(dst, payload...)
}

// AppendClose appends a close frame to dst (RFC 6455, section 5.5.1). CloseNoStatus makes one without
// payload; any other code that must not be on the wire is replaced by CloseInternalError, since it is
// the sender's mistake. The reason is cut between two characters so that it fits into 123 bytes; bytes
// that are not UTF-8 become U+FFFD.
func AppendClose(dst []byte, code CloseCode, reason string) []byte {
	if code == CloseNoStatus {
		return AppendFrame(dst, OpClose, nil)
	}
	if !code.Valid() {
		code = CloseInternalError
	}
	reason = fitReason(reason)
	dst = appendHeader(dst, bitFin|byte(OpClose), 2+len(reason))
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, reason...)
}

func fitReason(reason string) string {
	if !utf8.ValidString(reason) {
		reason = strings.ToValidUTF8(reason, string(utf8.RuneError))
	}
	if len(reason) <= maxReason {
		return reason
	}
	end := maxReason
	for !utf8.RuneStart(reason[end]) {
		end--
	}
	return reason[:end]
}

func appendHeader(dst []byte, b0 byte, length int) []byte {
	switch {
	case length < length16:
		return append(dst, b0, byte(length))
	case length <= 0xFFFF:
		return append(dst, b0, length16, byte(length>>8), byte(length))
	}
	dst = append(dst, b0, length64)
	return binary.BigEndian.AppendUint64(dst, uint64(length))
}

// maxHeader is the size of the longest header that appendHeader writes.
const maxHeader = 10

// headerLen returns the size of the header that appendHeader writes.
func headerLen(length int) int {
	switch {
	case length < length16:
		return 2
	case length <= 0xFFFF:
		return 4
	}
	return maxHeader
}

// FrameLen returns the size, header included, of the unmasked frame at the start of b. Of b only the
// header is looked at, and all of that must be there: up to 10 bytes, fewer when the frame is short.
func FrameLen(b []byte) int {
	switch n := int(b[1]); n {
	case length16:
		return 4 + int(binary.BigEndian.Uint16(b[2:]))
	case length64:
		return 10 + int(binary.BigEndian.Uint64(b[2:]))
	default:
		return 2 + n
	}
}

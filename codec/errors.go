package codec

// ProtocolError is a rule that the client broke. After it the connection can only be failed (RFC 6455,
// section 7.1.7). Each rule is one package-level variable, to be compared with errors.Is or ==; the
// values are shared and must not be changed.
type ProtocolError struct {
	Code    CloseCode // what to close with
	Rule    string    // the rule in one line of at most 123 bytes, so that it fits a close frame as reason
	Section string    // where the rule stands, such as "RFC 6455, section 5.1"
}

// Error returns the rule and where it stands.
func (e *ProtocolError) Error() string {
	return "websocket: " + e.Rule + " (" + e.Section + ")"
}

// The rules about one frame.
var (
	ErrUnmasked         = &ProtocolError{CloseProtocolError, "a client must mask its frames", "RFC 6455, section 5.1"}
	ErrReservedBits     = &ProtocolError{CloseProtocolError, "a reserved bit is set without a negotiated extension", "RFC 6455, section 5.2"}
	ErrReservedOpcode   = &ProtocolError{CloseProtocolError, "the opcode is reserved", "RFC 6455, section 5.2"}
	ErrNonMinimalLength = &ProtocolError{CloseProtocolError, "the payload length is not in its shortest form", "RFC 6455, section 5.2"}
	ErrLengthOverflow   = &ProtocolError{CloseProtocolError, "the most significant bit of a 64-bit length must be 0", "RFC 6455, section 5.2"}
	ErrControlTooLong   = &ProtocolError{CloseProtocolError, "a control frame must not exceed 125 bytes", "RFC 6455, section 5.5"}
)

// The rules about the order of frames.
var (
	ErrControlFragmented      = &ProtocolError{CloseProtocolError, "a control frame must not be fragmented", "RFC 6455, section 5.5"}
	ErrUnexpectedContinuation = &ProtocolError{CloseProtocolError, "there is no message to continue", "RFC 6455, section 5.4"}
	ErrExpectedContinuation   = &ProtocolError{CloseProtocolError, "a new message began before the previous one was complete", "RFC 6455, section 5.4"}
)

// The rules about payloads.
var (
	ErrInvalidUTF8     = &ProtocolError{CloseInvalidPayload, "a text message must be UTF-8", "RFC 6455, section 8.1"}
	ErrClosePayload    = &ProtocolError{CloseProtocolError, "a close frame with a payload needs a code of two bytes", "RFC 6455, section 5.5.1"}
	ErrCloseCode       = &ProtocolError{CloseProtocolError, "the close code must not be used on the wire", "RFC 6455, section 7.4"}
	ErrCloseReasonUTF8 = &ProtocolError{CloseInvalidPayload, "a close reason must be UTF-8", "RFC 6455, section 5.5.1"}
)

// The limits that the server sets.
var (
	ErrMessageTooBig    = &ProtocolError{CloseMessageTooBig, "the message is larger than this server accepts", "RFC 6455, section 10.4"}
	ErrTooManyFragments = &ProtocolError{ClosePolicyViolation, "the message has more fragments than this server accepts", "RFC 6455, section 10.4"}
)

// The rules of permessage-deflate.
var (
	ErrDeflateData            = &ProtocolError{CloseInvalidPayload, "the compressed message is not DEFLATE data", "RFC 7692, section 7.2.2"}
	ErrCompressedControl      = &ProtocolError{CloseProtocolError, "a control frame must not be compressed", "RFC 7692, section 6.1"}
	ErrCompressedContinuation = &ProtocolError{CloseProtocolError, "only the first frame of a message carries the compression bit", "RFC 7692, section 6.1"}
)

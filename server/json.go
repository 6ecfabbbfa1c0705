package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"carillon/codec"
)

// DecodeError is a message that is not what [JSON] expects; [Handler.Error] gets it.
type DecodeError struct {
	Code codec.CloseCode // [codec.CloseUnsupported] for a binary message, else [codec.CloseInvalidPayload]
	Err  error           // what is wrong, such as a *json.SyntaxError; not for the client's eyes
}

func (e *DecodeError) Error() string { return "decode message: " + e.Err.Error() }

func (e *DecodeError) Unwrap() error { return e.Err }

var (
	errBinary   = errors.New("message is binary: expected a JSON text message")
	errTrailing = errors.New("message has more than one JSON value")
)

// JSONRules loosen what [JSONWith] demands, and say how [Conn.SendJSONWith] writes. The zero value is what [JSON] and
// [Conn.SendJSON] do.
type JSONRules struct {
	// IgnoreUnknown ignores fields that the type does not have. Default: they are errors.
	IgnoreUnknown bool

	// AcceptBinary takes binary messages too. Default: they are errors.
	AcceptBinary bool

	// KeepNumbers decodes a number into an interface, as with JSON[any] or a field of type any, as a [json.Number],
	// which has its digits as they were sent. Default: a float64, which turns 12345678901234567890 into
	// 12345678901234567000.
	KeepNumbers bool

	// PlainHTML sends the characters <, > and & as they are. Default: as \u003c and so on, as [json.Marshal] does,
	// which is safe inside of a page's <script>. Both decode to the same text.
	PlainHTML bool

	// KeepOpen leaves the connection open after an error; [Handler.Error] may answer it. Default: it is
	// closed with the error's Code.
	KeepOpen bool
}

// JSON makes a [Handler.Message] that gets each message as a value of a type, strictly: the message must
// be text and hold one JSON value without fields that the type does not have. Otherwise [Handler.Error]
// gets a *[DecodeError], and then the connection is closed, with 1003 after a binary message and with 1007
// after any other, unless Error has closed it with a code of its own choice.
//
// In all else it goes by [json.Unmarshal]: names match in any case, the last of two counts, fields that are missing are
// zero, and the message null is the zero value. If the message decides about permissions, and other code has
// parsed it before, take it as a [json.RawMessage] and check that first. The value shares nothing with the payload, so
// it may be kept.
func JSON[T any](do func(c *Conn, v T)) func(c *Conn, op Opcode, payload []byte) {
	return JSONWith(JSONRules{}, do)
}

// JSONWith is [JSON] with looser rules.
func JSONWith[T any](rules JSONRules, do func(c *Conn, v T)) func(c *Conn, op Opcode, payload []byte) {
	return func(c *Conn, op Opcode, payload []byte) {
		var v T
		if err := rules.decode(op, payload, &v); err != nil {
			c.undecoded(rules, err)
			return
		}
		do(c, v)
	}
}

// decode fills in v, the pointer to a value.
func (r JSONRules) decode(op Opcode, payload []byte, v any) *DecodeError {
	if op == Binary {
		if !r.AcceptBinary {
			return &DecodeError{codec.CloseUnsupported, errBinary}
		}
		if !utf8.Valid(payload) {
			return &DecodeError{codec.CloseInvalidPayload, ErrNotText}
		}
	}
	if err := r.unmarshal(payload, v); err != nil {
		return &DecodeError{codec.CloseInvalidPayload, err}
	}
	return nil
}

func (r JSONRules) unmarshal(payload []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	if !r.IgnoreUnknown {
		d.DisallowUnknownFields()
	}
	if r.KeepNumbers {
		d.UseNumber()
	}
	if err := d.Decode(v); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // there is nothing at all
		}
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errTrailing
	}
	return nil
}

// undecoded tells the application, and then the peer in words that say nothing of how the program is made.
func (c *Conn) undecoded(rules JSONRules, err *DecodeError) {
	c.callError(c.handler(), err)
	if rules.KeepOpen {
		return
	}
	reason := "the message is not the expected JSON"
	if err.Code == codec.CloseUnsupported {
		reason = "expected JSON text messages"
	}
	_ = c.Close(err.Code, reason)
}

// marshal encodes a value as [json.Marshal] does, but for what the rules say.
func (r JSONRules) marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(!r.PlainHTML)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// SendJSON sends a value as one text message. It fails as [json.Marshal] and [Conn.Send] do.
func (c *Conn) SendJSON(v any) error { return c.SendJSONWith(JSONRules{}, v) }

// SendJSONWith is [Conn.SendJSON] with rules; only PlainHTML has an effect.
func (c *Conn) SendJSONWith(rules JSONRules, v any) error {
	payload, err := rules.marshal(v)
	if err != nil {
		return err
	}
	return c.Send(Text, payload)
}

// NewJSONFrame prepares a value as one text message for any number of receivers: see [Conn.SendFrame] and
// [Server.BroadcastFrame]. It fails as [json.Marshal] does.
func NewJSONFrame(v any) (*codec.Frame, error) { return NewJSONFrameWith(JSONRules{}, v) }

// NewJSONFrameWith is [NewJSONFrame] with rules; only PlainHTML has an effect.
func NewJSONFrameWith(rules JSONRules, v any) (*codec.Frame, error) {
	payload, err := rules.marshal(v)
	if err != nil {
		return nil, err
	}
	return codec.NewFrame(Text, payload), nil
}

package server

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"carillon/codec"
)

type order struct {
	Item  string   `json:"item"`
	Count int      `json:"count"`
	Tags  []string `json:"tags"`
}

// What each set of rules takes. An empty close code is a message that is taken.
func TestJSONRules(t *testing.T) {
	const bad, binary = codec.CloseInvalidPayload, codec.CloseUnsupported
	for _, row := range []struct {
		sentence      string
		op            Opcode
		message       string
		strict, loose codec.CloseCode
	}{
		{"an object", Text, `{"item":"tea","count":2}`, 0, 0},
		{"white space around it", Text, " \r\n{\"item\":\"tea\"}\t\n", 0, 0},
		{"an object without fields", Text, `{}`, 0, 0},
		{"null is the zero value", Text, `null`, 0, 0},
		{"names in other case", Text, `{"ITEM":"tea"}`, 0, 0},
		{"a field that the type does not have", Text, `{"item":"tea","price":3}`, bad, 0},
		{"a second value", Text, `{"item":"tea"}{"item":"coffee"}`, bad, bad},
		{"something behind the value", Text, `{"item":"tea"} x`, bad, bad},
		{"a bracket too many", Text, `{"item":"tea"}}`, bad, bad},
		{"a type that does not fit", Text, `{"item":7}`, bad, bad},
		{"a number that does not fit", Text, `{"count":1.5}`, bad, bad},
		{"another kind of value", Text, `[]`, bad, bad},
		{"half an object", Text, `{"item":"te`, bad, bad},
		{"nothing", Text, ``, bad, bad},
		{"white space only", Text, ` `, bad, bad},
		{"no JSON", Text, `tea, please`, bad, bad},
		{"a comma too many", Text, `{"item":"tea",}`, bad, bad},
		{"very deep nesting", Text, strings.Repeat("[", 100_000), bad, bad},
		{"a binary message", Binary, `{"item":"tea"}`, binary, 0},
		{"a binary message that is not UTF-8", Binary, "{\"item\":\"\xff\"}", binary, bad},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			for rules, want := range map[JSONRules]codec.CloseCode{
				{}:                    row.strict,
				{IgnoreUnknown: true}: map[bool]codec.CloseCode{true: row.strict, false: row.loose}[row.op == Binary],
				{IgnoreUnknown: true, AcceptBinary: true}: row.loose,
			} {
				var v order
				code := codec.CloseCode(0)
				err := rules.decode(row.op, []byte(row.message), &v)
				if err != nil {
					code = err.Code
				}
				if code != want {
					t.Errorf("%+v: %v; want code %d", rules, err, want)
				}
			}
		})
	}
}

// Through a connection: what is taken reaches the handler, typed; what is not reaches Error, and then the
// client as a close.
func TestJSON(t *testing.T) {
	for _, row := range []struct {
		sentence string
		rules    JSONRules
		send     []byte
		code     codec.CloseCode
		reason   string
	}{
		{"strictly", JSONRules{}, text(`{"item":"tea","milk":true}`), codec.CloseInvalidPayload, "the message is not the expected JSON"},
		{"strictly, binary", JSONRules{}, masked(0x82, []byte(`{"item":"tea"}`)), codec.CloseUnsupported, "expected JSON text messages"},
		{"loosely", JSONRules{IgnoreUnknown: true, AcceptBinary: true}, text(`nonsense`), codec.CloseInvalidPayload, "the message is not the expected JSON"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			heard := make(chan error, 10)
			s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
				Message: JSONWith(row.rules, func(c *Conn, o order) {
					if err := c.SendJSON(map[string]any{"sold": o}); err != nil {
						t.Error(err)
					}
				}),
				Error: func(_ *Conn, err error) { heard <- err },
			}}}})
			c := dial(t, s, "/")
			c.send(`{"item":"tea","count":2,"tags":["hot"]}`)
			c.want(`{"sold":{"item":"tea","count":2,"tags":["hot"]}}`)
			c.write(append(row.send, text(`{"item":"unsold"}`)...))
			c.wantClose(row.code, row.reason)
			var bad *DecodeError
			if err := <-heard; !errors.As(err, &bad) || bad.Code != row.code || !strings.HasPrefix(err.Error(), "decode message: ") {
				t.Errorf("Error got %v", err)
			}
			if len(heard) > 0 {
				t.Errorf("Error is called again, with %v", <-heard)
			}
		})
	}
}

// With KeepOpen it is for Error to answer, and the conversation goes on.
func TestJSONKeepOpen(t *testing.T) {
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Message: JSONWith(JSONRules{KeepOpen: true}, func(c *Conn, o order) { _ = c.SendJSON(o.Count) }),
		Error: func(c *Conn, err error) {
			var syntax *json.SyntaxError
			_ = c.SendJSON(map[string]bool{"syntax": errors.As(err, &syntax)})
		},
	}}}})
	c := dial(t, s, "/")
	c.send(`{"count":1}`)
	c.want(`1`)
	c.send(`{"count":}`)
	c.want(`{"syntax":true}`)
	c.send(`{"count":"2"}`)
	c.want(`{"syntax":false}`)
	c.send(`{"count":3}`)
	c.want(`3`)
}

// A number into an interface keeps its digits by rule, however lenient the rules are otherwise, and so does what is
// sent.
func TestJSONNumbersAndEscapes(t *testing.T) {
	const message = `{"id":12345678901234567890,"note":"<b>&\u2028"}`
	for rules, want := range map[JSONRules]string{
		{}:                                   `{"id":12345678901234567000,"note":"\u003cb\u003e\u0026\u2028"}`,
		{KeepNumbers: true}:                  `{"id":12345678901234567890,"note":"\u003cb\u003e\u0026\u2028"}`,
		{PlainHTML: true}:                    `{"id":12345678901234567000,"note":"<b>&\u2028"}`,
		{KeepNumbers: true, PlainHTML: true}: `{"id":12345678901234567890,"note":"<b>&\u2028"}`,
		{KeepNumbers: true, PlainHTML: true, IgnoreUnknown: true}: `{"id":12345678901234567890,"note":"<b>&\u2028"}`,
	} {
		s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: JSONWith(rules, func(c *Conn, v any) {
			f, err := NewJSONFrameWith(rules, v)
			if err := errors.Join(err, c.SendJSONWith(rules, v), c.SendFrame(f)); err != nil {
				t.Error(err)
			}
		})}}}})
		c := dial(t, s, "/")
		c.send(message)
		c.want(want)
		c.want(want)
	}
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: JSON(func(c *Conn, v string) {
		f, _ := NewJSONFrame(v)
		_, _ = c.SendJSON(v), c.SendFrame(f)
	})}}}})
	c := dial(t, s, "/")
	c.send(`"<"`)
	c.want(`"\u003c"`)
	c.want(`"\u003c"`)
}

// The value is the handler's own: what comes later does not change it.
func TestJSONValueMayBeKept(t *testing.T) {
	kept := make(chan json.RawMessage, 2)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{Message: JSON(func(_ *Conn, v json.RawMessage) { kept <- v })}}}})
	c := dial(t, s, "/")
	c.send(`"one"`)
	c.send(`"two"`)
	if one, two := <-kept, <-kept; string(one) != `"one"` || string(two) != `"two"` {
		t.Errorf("kept %s and %s", one, two)
	}
}

// A panic while decoding is one of Message.
func TestJSONPanics(t *testing.T) {
	heard := make(chan error, 1)
	s := start(t, Options{Endpoints: []Endpoint{{Path: "/", Handler: Handler{
		Message: JSON(func(*Conn, explosive) {}),
		Error:   func(_ *Conn, err error) { heard <- err },
	}}}})
	c := dial(t, s, "/")
	c.send(`1`)
	c.wantClose(codec.CloseInternalError, "internal server error")
	var p *PanicError
	if err := <-heard; !errors.As(err, &p) || p.Hook != "Message" {
		t.Errorf("Error got %v", err)
	}
}

type explosive struct{}

func (*explosive) UnmarshalJSON([]byte) error { panic("handle with care") }

// What JSON does not have is an error of the call, and nothing is sent.
func TestSendJSONFails(t *testing.T) {
	s := start(t, Options{Endpoints: echoAndBroadcast()})
	c := dial(t, s, "/broadcast")
	conn := onlyConn(t, s, "/broadcast")
	var unsupported *json.UnsupportedTypeError
	if err := conn.SendJSON(make(chan int)); !errors.As(err, &unsupported) || !strings.HasPrefix(err.Error(), "encode message: ") {
		t.Errorf("SendJSON of a channel: %v", err)
	}
	if _, err := NewJSONFrame(func() {}); !errors.As(err, &unsupported) {
		t.Errorf("NewJSONFrame of a function: %v", err)
	}
	f, err := NewJSONFrame([]int{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.BroadcastFrame("/broadcast", f), conn.SendFrame(f), conn.SendJSON("done")); err != nil {
		t.Fatal(err)
	}
	c.want(`[1,2]`)
	c.want(`[1,2]`)
	c.want(`"done"`)
	c.kill()
	eventually(t, "it is gone", func() bool { return s.Stats().Sockets == 0 })
	if err := conn.SendJSON(1); err != ErrClosed {
		t.Errorf("SendJSON after the end: %v", err)
	}
}

// FuzzJSON holds the strict rules against encoding/json's own: what they take, Unmarshal takes, with the
// same result.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{"item":"tea","count":2,"tags":[]}`, `{}{}`, `null `, ` `, `{"x":1}`, `{"item":"a"}x`, "{\"item\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var strict, loose order
		errStrict := JSONRules{}.unmarshal(payload, &strict)
		errLoose := JSONRules{IgnoreUnknown: true}.unmarshal(payload, &loose)
		if errStrict == io.EOF || errStrict == nil && errLoose != nil {
			t.Fatalf("strictly %v, loosely %v", errStrict, errLoose)
		}
		if errStrict == nil {
			a, _ := json.Marshal(strict)
			b, _ := json.Marshal(loose)
			if string(a) != string(b) {
				t.Fatalf("strictly %s, loosely %s", a, b)
			}
		}
	})
}

package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

type outer struct {
	Name  string   `json:"name"`
	Kinds []string `json:"kinds"`
	Inner *inner   `json:"inner"`
	Skip  string   `json:"-"`
}

type inner struct {
	Size json.RawMessage `json:"size"`
}

func TestShapes(t *testing.T) {
	const null, unknown = "null", "unknown"
	for _, test := range []struct {
		sentence string
		text     string
		allowed  string
		problem  string // "" for none
	}{
		{"nothing", `{}`, "", ""},
		{"all there is", ` { "name" : "a\"}{" , "kinds" : ["x", "{\"name\":1}"] , "inner" : { "size" : [1,{"size":2}] } } `, "", ""},
		{"an escaped name is the name", `{"\u006e\u0061me":"a"}`, "", ""},
		{"a member twice", `{"name":"a","name":"a"}`, null + unknown, "name is given twice"},
		{"twice, once with escapes", `{"name":"a","n\u0061me":"b"}`, null + unknown, "name is given twice"},
		{"twice within", `{"inner":{"size":1,"size":2}}`, null + unknown, "inner.size is given twice"},
		{"twice in another object", `{"inner":{"size":1},"size":2,"size":3}`, unknown, ""},
		{"twice where nothing hangs on it", `{"x":1,"x":2}`, unknown, ""},
		{"another case", `{"Name":"a"}`, unknown, `has a field that differs from name in case only: expected that name; found "Name"`},
		{"another case, with the name", `{"name":"a","NAME":"b"}`, unknown, "differs from name in case only"},
		{"another case within", `{"inner":{"SIZE":1}}`, unknown, "inner has a field that differs from size"},
		{"the long s", `{"kind\u017f":[]}`, unknown, `differs from kinds in case only: expected that name; found "kind\u017f"`},
		{"the sign of Kelvin", "{\"\u212ainds\":[]}", unknown, "differs from kinds"},
		{"unknown", `{"nam":"a"}`, null, `has an unknown field: expected only name, kinds, inner; found "nam"`},
		{"unknown within", `{"inner":{"sise":1}}`, null, `inner has an unknown field: expected only size; found "sise"`},
		{"unknown, with escapes and long", `{"` + strings.Repeat(`\u0061`, 100) + `":1}`, null, "unknown field"},
		{"a field that is not decoded", `{"-":"a"}`, null, "unknown field"},
		{"null", `{"name":null}`, unknown, "name is null"},
		{"null for a list", `{"kinds":null}`, unknown, "kinds is null"},
		{"null for an object", `{"inner":null}`, unknown, "inner is null"},
		{"null within", `{"inner":{"size":null}}`, unknown, "inner.size is null"},
		{"null where it is allowed", `{"name":null,"inner":null}`, null, ""},
		{"null in an unknown field", `{"x":null}`, unknown, ""},
		{"null itself", `null`, null + unknown, "is null"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			s := ShapeOf[outer](Rules{Unknown: strings.Contains(test.allowed, unknown), Null: strings.Contains(test.allowed, null)})
			err := s.Unmarshal([]byte(test.text), &outer{})
			if err == nil && test.problem != "" || err != nil && (test.problem == "" || !strings.Contains(err.Error(), test.problem)) {
				t.Errorf("%s: %v, want %q", test.text, err, test.problem)
			}
		})
	}
	if err := ShapeOf[outer](Rules{}).Unmarshal([]byte(`{"name":"a"} {}`), &outer{}); err == nil {
		t.Error("what follows the object is passed over")
	}
}

// What the check lets through means the same to encoding/json as to a reader that goes by RFC 8259, byte for byte: each
// known member is there once at most, and under its own name.
func FuzzShapes(f *testing.F) {
	f.Add([]byte(`{"name":"a","kinds":["\\"],"inner":{"size":"\\\""}}`))
	f.Add([]byte(`{"na\u006de":null,"x":{"y":[]},"inner":{}}`))
	f.Add([]byte(`{"a\\":1,"name":2}`))
	f.Add([]byte(`{"inner":{"size":1},"KINDS":[]}`))
	f.Add([]byte(`{"name`))
	loose := ShapeOf[outer](Rules{Unknown: true, Null: true})
	strict := ShapeOf[outer](Rules{})
	f.Fuzz(func(t *testing.T, text []byte) {
		lenient := loose.Check(text)
		closed := strict.Check(text)
		if !json.Valid(text) {
			return
		}
		counts, folded, other, nulls, object := topMembers(text)
		twice := false
		for _, name := range []string{"name", "kinds", "inner"} {
			twice = twice || counts[name] > 1
		}
		if wrong := !object || twice || folded; wrong && lenient == nil {
			t.Errorf("%s passes", text)
		}
		if wrong := !object || twice || folded || other || nulls; wrong && closed == nil {
			t.Errorf("%s passes the strict check", text)
		}
		if lenient != nil && object && !twice && !folded && counts["inner"] == 0 {
			t.Errorf("%s: %v", text, lenient)
		}
	})
}

// topMembers goes through an object with the standard library.
func topMembers(text []byte) (counts map[string]int, folded, other, nulls, object bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	counts = map[string]int{}
	if first, _ := d.Token(); first != json.Delim('{') {
		return counts, false, false, false, false
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return counts, false, false, false, false
		}
		name, _ := token.(string)
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return counts, false, false, false, false
		}
		known := false
		for _, k := range []string{"name", "kinds", "inner"} {
			known = known || k == name
			folded = folded || k != name && strings.EqualFold(k, name)
			nulls = nulls || k == name && string(value) == "null"
		}
		other = other || !known
		counts[name]++
	}
	_, _ = d.Token()
	_, err := d.Token()
	return counts, folded, other, nulls, errors.Is(err, io.EOF)
}

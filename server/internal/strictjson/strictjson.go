// Package strictjson finds what encoding/json forgives, in objects by which something is decided.
package strictjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// encoding/json forgives what must not decide anything: it takes "Allow" for "allow" (and the long s of Unicode for an
// s), the last of two members of one name, and null for a member that is absent. [Shape] finds all of that in a text
// that json.Unmarshal has accepted, so that what was decoded means what it says. It replaces encoding/json/v2, which
// needs GOEXPERIMENT in this version of Go.

// Shape describes the members of a JSON object by which something is decided. It is immutable.
type Shape struct {
	rules   Rules
	members []member // at most 64
}

type member struct {
	name  string
	bytes []byte // name
	in    *Shape // of a value that is an object; nil looks no further
}

// Rules loosen the check.
type Rules struct {
	Unknown bool // members of other names are allowed
	Null    bool // null is allowed and stands for an absent member
}

// ShapeOf returns the shape of the objects that a struct is decoded from. Each exported field needs a json tag. Fields
// that are structs, or pointers to them, are looked into, unless their type decodes itself.
func ShapeOf[T any](rules Rules) *Shape { return shapeOfType(reflect.TypeFor[T](), rules) }

func shapeOfType(t reflect.Type, rules Rules) *Shape {
	s := &Shape{rules: rules}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		m := member{name: name, bytes: []byte(name)}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && !reflect.PointerTo(inner).Implements(reflect.TypeFor[json.Unmarshaler]()) {
			m.in = shapeOfType(inner, rules)
		}
		s.members = append(s.members, m)
	}
	if len(s.members) > 64 {
		panic("strictjson: a shape has more members than a word has bits")
	}
	return s
}

// Without returns the shape without one of its members, which then is as good as unknown.
func (s *Shape) Without(name string) *Shape {
	members := slices.DeleteFunc(slices.Clone(s.members), func(m member) bool { return m.name == name })
	return &Shape{s.rules, members}
}

// maxMemberName is longer than any name of a shape.
const maxMemberName = 32

// Error is a member that must not decide anything.
type Error struct {
	Path    string // such as carillon.subscribe; "" for the object itself
	Problem string // what is wrong and what is expected; nothing of it comes from the text
	found   string // the name of the member, as the text has it, where that is the problem
}

func (e *Error) Error() string {
	if e.found == "" {
		return e.Plain()
	}
	return fmt.Sprintf("%s; found %+.40q", e.Plain(), e.found)
}

// Plain is the error without what comes from the text.
func (e *Error) Plain() string { return strings.TrimPrefix(e.Path+" "+e.Problem, " ") }

// Within returns the error as one of the object in which the member of that name is the object at fault.
func (e *Error) Within(name string) *Error {
	return &Error{Path: strings.TrimSuffix(name+"."+e.Path, "."), Problem: e.Problem, found: e.found}
}

var (
	errNotObject = &Error{Problem: "is not a JSON object"}
	errNull      = &Error{Problem: "is null: expected a value, or omit it"}
)

// Unmarshal decodes an object into a value of the type that the shape is of, and checks it. The error is that of
// json.Unmarshal, or an *[Error].
func (s *Shape) Unmarshal(text []byte, v any) error {
	if err := json.Unmarshal(text, v); err != nil {
		return err
	}
	return s.Check(text)
}

// Check returns an *[Error] for the first member that makes the object ambiguous. The text must be valid JSON, or
// what it returns means nothing. It allocates nothing unless a name has escapes.
func (s *Shape) Check(text []byte) error {
	if err := s.object(text); err != nil {
		return err
	}
	return nil
}

func (s *Shape) object(text []byte) *Error {
	w := walker{text: text}
	switch {
	case w.take('n'):
		return errNull
	case !w.take('{'):
		return errNotObject
	}
	var seen uint64
	var buf [maxMemberName]byte
	for !w.take('}') {
		name := w.name(buf[:0])
		value := w.value()
		if value == nil {
			return errNotObject // not valid JSON
		}
		w.take(',')
		i, err := s.find(name)
		if err != nil {
			return err
		}
		if i < 0 {
			continue
		}
		m := &s.members[i]
		if seen&(1<<i) != 0 {
			return &Error{Path: m.name, Problem: "is given twice: expected it once"}
		}
		seen |= 1 << i
		null := value[0] == 'n'
		if null && !s.rules.Null {
			return errNull.Within(m.name)
		}
		if m.in == nil || null {
			continue
		}
		if err := m.in.object(value); err != nil {
			return err.Within(m.name)
		}
	}
	return nil
}

// find returns the place of the member with exactly that name, or -1 for one that may be passed over.
func (s *Shape) find(name []byte) (int, *Error) {
	for i := range s.members {
		if string(name) == s.members[i].name {
			return i, nil
		}
	}
	plain := isASCII(name) // and then case does not change the length
	for i := range s.members {
		m := &s.members[i]
		if (!plain || len(name) == len(m.name)) && bytes.EqualFold(name, m.bytes) {
			return -1, &Error{Problem: "has a field that differs from " + m.name + " in case only: expected that name", found: string(name)}
		}
	}
	if s.rules.Unknown {
		return -1, nil
	}
	return -1, &Error{Problem: "has an unknown field: expected only " + strings.Join(s.names(), ", "), found: string(name)}
}

func isASCII(text []byte) bool {
	for _, c := range text {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func (s *Shape) names() []string {
	var names []string
	for _, m := range s.members {
		names = append(names, m.name)
	}
	return names
}

// walker goes through valid JSON without decoding it. Of anything else it makes something, but never panics or runs for
// ever.
type walker struct{ text []byte }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func (w *walker) space() {
	for len(w.text) > 0 && isSpace(w.text[0]) {
		w.text = w.text[1:]
	}
}

// take reports whether the next character is c, and passes it.
func (w *walker) take(c byte) bool {
	w.space()
	if len(w.text) == 0 || w.text[0] != c {
		return false
	}
	w.text = w.text[1:]
	return true
}

// name returns the name of the next member without its escapes, and passes the colon.
func (w *walker) name(buf []byte) []byte {
	w.space()
	quoted := w.string()
	w.take(':')
	if len(quoted) < 2 {
		return nil
	}
	return unescape(buf, quoted[1:len(quoted)-1])
}

// string passes a string and returns it with its quotes; nil if there is none.
func (w *walker) string() []byte {
	n := stringLength(w.text)
	s := w.text[:n]
	w.text = w.text[n:]
	return s
}

// stringLength returns the length of the string, with its quotes, at the beginning of a text; 0 if there is none.
func stringLength(text []byte) int {
	if len(text) == 0 || text[0] != '"' {
		return 0
	}
	for i := 1; i < len(text); {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return 0
		}
		end, back := i+n, i+n
		for text[back-1] == '\\' {
			back--
		}
		if i = end + 1; (end-back)%2 == 0 {
			return i
		}
	}
	return 0
}

// value passes a value and returns it; nil if there is none.
func (w *walker) value() []byte {
	w.space()
	depth, i := 0, 0
scan:
	for i < len(w.text) {
		switch w.text[i] {
		case '"':
			n := stringLength(w.text[i:])
			if n == 0 {
				return nil
			}
			i += n
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				break scan
			}
			depth--
		case ',':
			if depth == 0 {
				break scan
			}
		}
		i++
	}
	end := i
	for end > 0 && isSpace(w.text[end-1]) {
		end--
	}
	value := w.text[:end]
	w.text = w.text[i:]
	if end == 0 {
		return nil
	}
	return value
}

// unescape returns what stands between the quotes of a string: as it is if it has no escapes, or is too long to be the
// name of a member that decides anything, and else appended to buf. Halves of surrogate pairs become U+FFFD each, which
// no such name has.
func unescape(buf, s []byte) []byte {
	if bytes.IndexByte(s, '\\') < 0 || len(s) > 6*maxMemberName {
		return s
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '\\' || i+1 == len(s) {
			buf = append(buf, c)
			continue
		}
		i++
		switch c = s[i]; c {
		case 'u':
			n, err := strconv.ParseUint(string(s[i+1:min(i+5, len(s))]), 16, 16)
			if err != nil {
				return s // not valid JSON
			}
			buf = utf8.AppendRune(buf, rune(n))
			i += 4
		case 'b', 'f', 'n', 'r', 't':
			buf = append(buf, ' ') // a control character, which no such name has either
		default:
			buf = append(buf, c)
		}
	}
	return buf
}

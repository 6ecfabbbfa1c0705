package cli

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"carillon/internal/redact"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// decoder reads YAML into a config, strictly, and remembers where each key was set.
type decoder struct {
	file     string
	variable string            // set while the text is a variable's and not the file's
	origin   map[string]string // by key: "FILE:12:9", or the name of a variable; "" for the file itself
	problems []error
}

func (d *decoder) add(at *token.Token, key, format string, args ...any) {
	d.problems = append(d.problems, &problem{where: d.at(at), key: key, text: fmt.Sprintf(format, args...)})
}

func (d *decoder) at(t *token.Token) string {
	if d.variable != "" {
		return d.variable
	}
	return fmt.Sprintf("%s:%d:%d", d.file, t.Position.Line, t.Position.Column)
}

// whereIs returns where a key was set; for a key that was not, where the nearest one around it was.
func (d *decoder) whereIs(key string) string {
	for {
		if where, ok := d.origin[key]; ok {
			return where
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
}

// document decodes the text of a whole file.
func (d *decoder) document(text []byte, c reflect.Value) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if body := d.parse(text); body != nil {
		d.decode(body, c, "")
	}
}

// parse returns the one document in the text, or nil after noting what is wrong with it.
func (d *decoder) parse(text []byte) ast.Node {
	start := token.New("", "", &token.Position{Line: 1, Column: 1})
	if valid := bytes.ToValidUTF8(text, nil); len(valid) != len(text) {
		i := strings.IndexRune(string(text), utf8.RuneError)
		start.Position.Line += bytes.Count(text[:i], []byte("\n"))
		start.Position.Column = i - bytes.LastIndexByte(text[:i], '\n')
		d.add(start, "", "is not valid UTF-8")
		return nil
	}
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at, what := start, err.Error()
		if e, ok := errors.AsType[yaml.Error](err); ok {
			at, what = cmp.Or(e.GetToken(), start), e.GetMessage()
		}
		if strings.Contains(what, "'\t'") {
			what = "tabs cannot indent: expected spaces"
		}
		d.add(at, "", "not YAML: %s", what)
		return nil
	}
	if len(file.Docs) > 1 {
		at := cmp.Or(file.Docs[1].Start, start)
		if file.Docs[1].Start == nil && file.Docs[1].Body != nil {
			at = first(file.Docs[1].Body)
		}
		d.add(at, "", "a second document starts here: expected one")
		return nil
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		d.add(start, "", "is empty: expected keys such as listen and endpoints")
		return nil
	}
	return file.Docs[0].Body
}

// first returns the token with which a node begins; a mapping's own is its first colon.
func first(n ast.Node) *token.Token {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	return n.GetToken()
}

func (d *decoder) decode(n ast.Node, v reflect.Value, key string) {
	if key != "" {
		d.origin[key] = d.at(first(n))
	}
	_, empty := n.(*ast.NullNode)
	switch v.Kind() {
	case reflect.Struct:
		if m, ok := n.(*ast.MappingNode); ok {
			d.section(m, v, key)
		} else if !empty || key == "" || strings.HasSuffix(key, "]") {
			d.add(first(n), key, "is %s: expected keys and values", kindOf(n))
		}
	case reflect.Slice:
		v.SetZero()
		if s, ok := n.(*ast.SequenceNode); ok {
			if len(s.Values) == 0 {
				return // as if it were not there
			}
			list := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
			for i, item := range s.Values {
				d.decode(item, list.Index(i), fmt.Sprintf("%s[%d]", key, i))
			}
			v.Set(list)
		} else if !empty {
			d.add(first(n), key, "is %s: expected a list", kindOf(n))
		}
	default:
		d.scalar(n, v, key)
	}
}

func (d *decoder) section(m *ast.MappingNode, v reflect.Value, prefix string) {
	if prefix != "" {
		prefix += "."
	}
	names := map[string]reflect.StructField{}
	for _, f := range fields(v.Type()) {
		names[f.Tag.Get("yaml")] = f
	}
	seen := map[string]int{}
	for _, entry := range m.Values {
		at := entry.Key.GetToken()
		name := oneLine(at.Value)
		f, known := names[name]
		line, twice := seen[name]
		seen[name] = at.Position.Line
		switch {
		case !known && renamedKeys[prefix+name] != "":
			d.add(at, prefix+name, "is no longer supported: expected %s", renamedKeys[prefix+name])
		case !known:
			d.add(at, prefix+name, "unknown key%s", suggestion(name, slices.Sorted(maps.Keys(names))))
		case twice:
			d.add(at, prefix+name, "is set twice, first on line %d", line)
		default:
			d.decode(entry.Value, v.FieldByIndex(f.Index), prefix+name)
		}
	}
}

// renamedKeys says what has taken the place of a key that there was once.
var renamedKeys = map[string]string{
	"shutdown": "drain; drain.deadline replaces shutdown.timeout",
}

// oneLine quotes a key that would not fit into the line of an error message.
func oneLine(s string) string {
	if quoted := strconv.Quote(s); len(quoted) != len(s)+2 {
		return quoted
	}
	return s
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, key string) {
	text, quoted := n.GetToken().Value, false
	switch n := n.(type) {
	case *ast.StringNode:
		text = n.Value
		quoted = n.Token.Type == token.SingleQuoteType || n.Token.Type == token.DoubleQuoteType
	case *ast.LiteralNode:
		text, quoted = n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
	default:
		d.add(first(n), key, "is %s: expected a single value", kindOf(n))
		return
	}
	_, fromText := v.Addr().Interface().(encoding.TextUnmarshaler)
	fromText = fromText || v.Kind() == reflect.String || v.Type() == reflect.TypeFor[time.Duration]()
	if quoted && !fromText && text != "off" {
		d.add(n.GetToken(), key, "%q is quoted: expected a %s without quotes", text, plainName(v.Kind()))
	} else if err := setScalar(v, text); err != nil {
		d.add(n.GetToken(), key, "%v", err)
	}
}

func plainName(k reflect.Kind) string {
	if k == reflect.Bool {
		return "switch"
	}
	return "number"
}

// kindOf names the kind of a node, for errors.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.NullNode:
		return "empty"
	case *ast.MappingNode:
		return "a section"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		return "an anchor, an alias or a tag, which are not supported"
	}
	return "a single value"
}

// setScalar sets a single value from its text. "off" becomes a negative number, which itself is refused: -5s is more
// likely a mistake than meant. Which keys can be off, the options know.
func setScalar(v reflect.Value, text string) error {
	off := text == "off"
	switch x := v.Addr().Interface().(type) {
	case *time.Duration:
		if off {
			*x = -1
			return nil
		}
		d, err := time.ParseDuration(text)
		if _, plain := strconv.ParseFloat(text, 64); err != nil && plain == nil {
			return fmt.Errorf("%s has no unit: expected a duration, such as %ss for seconds", text, text)
		} else if err != nil {
			return fmt.Errorf("%q is not a duration: expected one such as 30s or 1m30s", text)
		} else if d < 0 {
			return negative(text)
		}
		*x = d
		return nil
	case encoding.TextUnmarshaler:
		return x.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if off {
			n = -1
		} else if err != nil {
			return fmt.Errorf("%q is not a whole number: expected one such as 1000", text)
		} else if n < 0 {
			return negative(text)
		}
		v.SetInt(int64(n))
	case reflect.Float64:
		x, err := strconv.ParseFloat(text, 64)
		if off {
			x = -1
		} else if err != nil {
			return fmt.Errorf("%q is not a number: expected one such as 0.2", text)
		} else if x < 0 {
			return negative(text)
		}
		v.SetFloat(x)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is not a boolean: expected true or false", text)
		}
		v.SetBool(text == "true")
	case reflect.String:
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("%q has a non-printable character: expected plain text", redact.URL(text))
		}
		v.SetString(text)
	default:
		panic("config: cannot set a " + v.Type().String())
	}
	return nil
}

func negative(text string) error {
	return fmt.Errorf("%s is negative: expected 0 or more, or off for a key that can be off", text)
}

// suggestion ends the message about a key that does not exist among its siblings: with a name that is
// close, or the place where a key of that name belongs, or what there is.
func suggestion(name string, siblings []string) string {
	if near := nearest(name, siblings); near != "" {
		return ", did you mean " + near + "?"
	}
	for _, k := range keys(reflect.TypeFor[config](), "", nil, false) {
		if strings.HasSuffix(k.path, "."+name) {
			return ", did you mean " + k.path + "?"
		}
	}
	return ": expected one of " + strings.Join(siblings, ", ")
}

// nearest returns the candidate that at most a third of its letters tell from the word, or "".
func nearest(word string, candidates []string) string {
	best, least := "", len(word)/3+1
	for _, c := range candidates {
		if n := distance(strings.ToLower(word), strings.ToLower(c)); n < least {
			best, least = c, n
		}
	}
	return best
}

// distance is how many letters must be inserted, removed or replaced to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

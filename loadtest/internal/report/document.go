package report

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Document is what --json writes: every run of one invocation, in the order in which they were made.
// Where they do not state their rounds, the nth run of a name with the same command and settings is its
// nth round.
type Document struct {
	Schema  string    `json:"schema"`
	Rounds  int       `json:"rounds,omitempty"`
	Results []*Result `json:"results"`
}

// WriteJSON writes doc as the file path, in one step: readers see the old file or the new one.
func WriteJSON(path string, doc *Document) error {
	stated := *doc
	stated.Schema = Schema
	text, err := json.MarshalIndent(&stated, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replaceFile(path, append(text, '\n'))
}

// ReadJSON reads what writeJSON wrote. Its errors name the file and the place in it.
func ReadJSON(path string) (*Document, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	doc, err := parseDocument(text)
	if err != nil {
		return nil, fmt.Errorf("read results: %s: %w", path, err)
	}
	return doc, nil
}

func parseDocument(text []byte) (*Document, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, errors.New("the file is empty")
	}
	// The schema comes first: a file of another form has types that would only confuse here.
	var head struct {
		Schema any `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, placed(text, err)
	}
	switch found := head.Schema.(type) {
	case nil:
		return nil, fmt.Errorf("no schema is stated, expected %q", Schema)
	case string:
		if found != Schema {
			return nil, fmt.Errorf("the schema is %q, expected %q", found, Schema)
		}
	default:
		return nil, fmt.Errorf("the schema is not a text, expected %q", Schema)
	}
	var doc Document
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, placed(text, err)
	}
	if len(doc.Results) == 0 {
		return nil, errors.New("there are no results in it")
	}
	for i, r := range doc.Results {
		if r == nil {
			return nil, fmt.Errorf("result %d is null", i+1)
		}
		if r.Schema != "" && r.Schema != Schema {
			return nil, fmt.Errorf("result %d has the schema %q, expected %q", i+1, r.Schema, Schema)
		}
	}
	return &doc, nil
}

// placed says where in text a JSON error is.
func placed(text []byte, err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		if syntax.Error() == "unexpected end of JSON input" {
			return fmt.Errorf("the file is cut off after byte %d (line %d)", len(text), lineAt(text, int64(len(text))))
		}
		return fmt.Errorf("not JSON at byte %d (line %d): %w", syntax.Offset, lineAt(text, syntax.Offset), err)
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		what := kind.Field
		if what == "" {
			what = "the document"
		}
		return fmt.Errorf("at byte %d (line %d): %s is a %s, expected %s",
			kind.Offset, lineAt(text, kind.Offset), what, kind.Value, kind.Type)
	}
	return err
}

func lineAt(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(offset, int64(len(text)))], []byte("\n"))
}

// replaceFile writes beside path and renames, so that a full disk or an interrupt costs no old report.
// What is no ordinary file, such as /dev/stdout, is written to as it is.
func replaceFile(path string, content []byte) (err error) {
	target := path
	if linked, err := filepath.EvalSymlinks(path); err == nil {
		target = linked
	}
	mode := os.FileMode(0o666)
	if info, err := os.Stat(target); err == nil {
		if !info.Mode().IsRegular() {
			return os.WriteFile(path, content, mode)
		}
		mode = info.Mode().Perm()
	}
	beside := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+"."+rand.Text()[:8])
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(beside)
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return err
	}
	return os.Rename(beside, target)
}

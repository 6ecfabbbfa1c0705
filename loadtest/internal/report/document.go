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

// Document is the content of a JSON file: all runs of one invocation in order. If runs have no round
// numbers, the nth run of a server with the same command and settings is its nth round.
type Document struct {
	Schema  string    `json:"schema"`
	Rounds  int       `json:"rounds,omitempty"`
	Results []*Result `json:"results"`
}

// WriteJSON writes doc to a file atomically.
func WriteJSON(path string, doc *Document) error {
	stated := *doc
	stated.Schema = Schema
	text, err := json.MarshalIndent(&stated, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replaceFile(path, append(text, '\n'))
}

// ReadJSON reads a file that WriteJSON wrote. Errors name the file and the position.
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
		return nil, errors.New("file is empty")
	}
	// The schema is checked first: in another format, type errors would be misleading.
	var head struct {
		Schema any `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, placed(text, err)
	}
	switch found := head.Schema.(type) {
	case nil:
		return nil, fmt.Errorf("no schema, expected %q", Schema)
	case string:
		if found != Schema {
			return nil, fmt.Errorf("schema is %q, expected %q", found, Schema)
		}
	default:
		return nil, fmt.Errorf("schema is not a string, expected %q", Schema)
	}
	var doc Document
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, placed(text, err)
	}
	if len(doc.Results) == 0 {
		return nil, errors.New("no results")
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

// placed adds the position to a JSON error.
func placed(text []byte, err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		if syntax.Error() == "unexpected end of JSON input" {
			return fmt.Errorf("file is truncated after byte %d (line %d)", len(text), lineAt(text, int64(len(text))))
		}
		return fmt.Errorf("not JSON at byte %d (line %d): %w", syntax.Offset, lineAt(text, syntax.Offset), err)
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		what := kind.Field
		if what == "" {
			what = "the document"
		}
		return fmt.Errorf("at byte %d (line %d): %s has type %s, expected %s",
			kind.Offset, lineAt(text, kind.Offset), what, kind.Value, kind.Type)
	}
	return err
}

func lineAt(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(offset, int64(len(text)))], []byte("\n"))
}

// replaceFile writes a temporary file and renames it, so that a failed write leaves the old file intact.
// Files that are not regular, such as /dev/stdout, are written directly.
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
	temporary := filepath.Join(filepath.Dir(target), "."+filepath.Base(target)+"."+rand.Text()[:8])
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(temporary)
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
	return os.Rename(temporary, target)
}

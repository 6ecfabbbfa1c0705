package report

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestDocumentComesBackAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.json")
	doc := sampleDocument(t)
	for range 2 { // the second write replaces the first
		if err := WriteJSON(path, doc); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadJSON(path)
	if err != nil {
		t.Fatal(err)
	}
	want := *doc
	want.Schema = Schema
	if !reflect.DeepEqual(got, &want) {
		t.Error("the document read is not the one written")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWriteKeepsTheOldFileWhenItFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.json")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	doc := &Document{Results: []*Result{{Seconds: positiveInfinity()}}}
	if err := WriteJSON(path, doc); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, expected one that names the file", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "old" {
		t.Errorf("the old file is now %q", text)
	}
	if err := WriteJSON(filepath.Join(path, "none", "x.json"), &Document{}); err == nil {
		t.Error("wrote into a folder that does not exist")
	}
}

func TestWriteFollowsLinksAndKeepsPermissions(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(link, []byte("new")); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	info, err := os.Stat(file)
	if err != nil || string(text) != "new" || info.Mode().Perm() != 0o600 {
		t.Errorf("file is %q, %v, %v", text, info.Mode(), err)
	}
	if info, _ := os.Lstat(link); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced by a file")
	}
	if err := replaceFile(os.DevNull, []byte("x")); err != nil {
		t.Errorf("writing to a device: %v", err)
	}
}

func TestReadSaysWhatIsWrongAndWhere(t *testing.T) {
	head := `{"schema":"` + Schema + `",`
	for _, c := range []struct{ name, text, want string }{
		{"an empty file", " \n", "file is empty"},
		{"a text that is no JSON", "hello", "not JSON at byte 1 (line 1)"},
		{"a wrong byte on the third line", "{\n\"schema\":\n;}", "not JSON at byte 13 (line 3)"},
		{"a file cut off within a list", head + "\n\"results\":[", "file is truncated after byte 44 (line 2)"},
		{"something after the end", head + `"results":[]} x`, "not JSON at byte 47"},
		{"no schema", `{"results":[]}`, `no schema, expected "` + Schema + `"`},
		{"another schema", `{"schema":"vegeta/12"}`, `schema is "vegeta/12", expected "` + Schema + `"`},
		{"a schema that is a number", `{"schema":7}`, "schema is not a string"},
		{"a list instead of an object", `[]`, "at byte 1 (line 1): the document has type array"},
		{"a text where a number belongs", head + `"results":[{"seconds":"ten"}]}`, "results.seconds has type string, expected float64"},
		{"no results", head + `"results":[]}`, "no results"},
		{"a result that is null", head + `"results":[{},null]}`, "result 2 is null"},
		{"a result of another schema", head + `"results":[{"schema":"x"}]}`, `result 1 has the schema "x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "in.json")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ReadJSON(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, expected %q and the file's name", err, c.want)
			}
		})
	}
	if _, err := ReadJSON(filepath.Join(t.TempDir(), "none.json")); err == nil || !strings.Contains(err.Error(), "none.json") {
		t.Errorf("a missing file gives %v", err)
	}
}

// FuzzParseDocument also makes a report of each document that parses.
func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"schema":"` + Schema + `","results":[{"name":"a","latency":{"count":3,"p50":1,"histogram":"HISTFAAA"}}]}`))
	f.Add([]byte(`{"schema":"` + Schema + `","results":[{"name":"a","storm":{"back50":1}},{"name":"b","storm":{"back50":-2,"back100":1e300}}]}`))
	f.Add([]byte(`{"schema":"` + Schema + `","results":[{"series":[{"at":1,"p99":2},{"at":1e308,"p99":1e308}],"server":{"rssPerConnection":1e-300}}]}`))
	f.Add([]byte(`{"schema":"` + Schema + `","results":[{"connections":{"perSecond":-5,"handshake":{"count":1,"p50":-3}}},{"name":"b","connections":{"perSecond":1e308}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		doc, err := parseDocument(text)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "out.html")
		if err := WriteHTML(path, doc); err != nil {
			t.Skip(err) // some metrics cannot be drawn
		}
		Diff(doc, doc, 5)
		if Diff(doc, doc, 5).Worse() {
			t.Error("a document is worse than itself")
		}
	})
}

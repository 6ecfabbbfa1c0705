package envelope

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// encoded is what encoding/json makes of a string.
func encoded(t testing.TB, text string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func checkText(t *testing.T, text string) {
	t.Helper()
	want := encoded(t, text)
	if got := string(AppendText(nil, text)); got != want {
		t.Errorf("%q becomes %s, want %s", text, got, want)
	}
	if got := string(AppendText([]byte("x"), []byte(text))); got != "x"+want {
		t.Errorf("the bytes of %q become %s, want x%s", text, got, want)
	}
	if n := TextSize([]byte(text)); n < len(want) && strings.ToValidUTF8(text, "") == text {
		t.Errorf("the size of %q is %d, want %d at least", text, n, len(want))
	}
}

func TestAppendText(t *testing.T) {
	for _, text := range []string{
		"", "plain", `a "quoted" \ backslash`, "\b\f\n\r\t", "\x00\x01\x1f\x7f", "<script>&amp;</script>",
		"grüße, 世界, 🎼", "\u2027\u2028\u2029\u202a", "\xff\xfe", "half of \xe2\x80", "a\xc0b", "\ufffd",
	} {
		checkText(t, text)
	}
}

func FuzzAppendText(f *testing.F) {
	f.Add("a \"b\"\n\u2028\xff")
	f.Fuzz(func(t *testing.T, text string) { checkText(t, text) })
}

func TestAppendTextAllocates(t *testing.T) {
	b, text := make([]byte, 0, 1024), []byte("nothing to \"escape\" here \u2028")
	if n := testing.AllocsPerRun(100, func() { b = AppendText(b[:0], text) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever ends a line in a message ends it for the client of server-sent events.
func TestAppendEventLines(t *testing.T) {
	for data, want := range map[string]string{
		"":              "data: \n\n",
		"one":           "data: one\n\n",
		"one\ntwo":      "data: one\ndata: two\n\n",
		"one\rtwo":      "data: one\ndata: two\n\n",
		"one\r\ntwo":    "data: one\ndata: two\n\n",
		"one\n\rtwo":    "data: one\ndata: \ndata: two\n\n",
		"\n":            "data: \ndata: \n\n",
		"\r\n\r\nx\r\n": "data: \ndata: \ndata: x\ndata: \n\n",
	} {
		if got := string(AppendEvent(nil, "", "", []byte(data))); got != want {
			t.Errorf("%q becomes %q, want %q", data, got, want)
		}
	}
}

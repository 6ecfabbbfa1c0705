package server

import (
	"bytes"
	"encoding/json"
	"errors"
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
	if got := string(appendText(nil, text)); got != want {
		t.Errorf("%q becomes %s, want %s", text, got, want)
	}
	if got := string(appendText([]byte("x"), []byte(text))); got != "x"+want {
		t.Errorf("the bytes of %q become %s, want x%s", text, got, want)
	}
	if n := textSize([]byte(text)); n < len(want) && strings.ToValidUTF8(text, "") == text {
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
	if n := testing.AllocsPerRun(100, func() { b = appendText(b[:0], text) }); n > 0 {
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
		if got := string(appendEvent(nil, "", "", []byte(data))); got != want {
			t.Errorf("%q becomes %q, want %q", data, got, want)
		}
	}
}

// A message whose levels most parsers would not take is refused, in whatever way it comes.
func TestTooManyLevels(t *testing.T) {
	deep := func(levels int) string { return strings.Repeat(`{"a":[`, levels/2) + strings.Repeat("]}", levels/2) }
	s := start(t, internalOf(topics(TopicRule{Match: "log", History: 10})))
	c := dial(t, s, "/ws", speakJSON)
	if got := c.ask(`{"id":1,"publish":{"topic":"log","data":%s}}`, deep(maxLevels)); got.Published == nil {
		t.Error(got.text)
	}
	if got := c.ask(`{"id":2,"publish":{"topic":"log","data":%s}}`, deep(maxLevels+2)); got.Error == nil || got.Error.Code != "bad_request" || !strings.Contains(got.Error.Message, "levels") {
		t.Error(got.text)
	}
	if _, err := s.Publish(Publication{Topic: "log", Format: FormatJSON, Payload: []byte(deep(maxLevels + 2))}); err == nil {
		t.Error("it was published")
	}
	call(t, s, "POST", "/v1/topics/log/messages", deep(maxLevels+2), asJSON).isProblem(t, 422, "not-json", "levels")
	if got := c.ask(`{"id":3,"history":{"topic":"log"}}`); got.History == nil || len(got.History.Messages) != 1 {
		t.Error(got.text)
	}
	if brackets := `"` + strings.Repeat(`[\"{`, 2*maxLevels) + `"`; isTooDeep([]byte(brackets)) {
		t.Error("brackets in a string count")
	}
}

// A message that is within the limit, and would be several times as large for some of its receivers, is refused.
func TestMessagesThatGrow(t *testing.T) {
	opts := internalOf(topics(TopicRule{Match: "log", History: 10}))
	opts.Limits.MaxMessage = 64 << 10
	s := start(t, opts)
	for _, row := range []struct {
		sentence, payload string
		format            Format
		refused           bool
	}{
		{"control characters become six bytes in JSON", strings.Repeat("\x01", 60<<10), FormatText, true},
		{"lines get a name in an event stream", strings.Repeat("\n", 60<<10), FormatText, true},
		{"between values of JSON, too", "[" + strings.Repeat("\n", 60<<10) + "]", FormatJSON, true},
		{"ordinary text does not grow", strings.Repeat("a line of \"ordinary\" text\n", 2<<10), FormatText, false},
		{"bytes become base64, whatever they are", strings.Repeat("\n", 60<<10), FormatBinary, false},
		{"what is small may grow", strings.Repeat("\x01", 10<<10), FormatText, false},
	} {
		_, err := s.Publish(Publication{Topic: "log", Format: row.format, Payload: []byte(row.payload)})
		if got := errors.Is(err, ErrTooLarge); got != row.refused || err != nil && !row.refused {
			t.Errorf("%s: %v", row.sentence, err)
		}
	}
	call(t, s, "POST", "/v1/topics/log/messages", strings.Repeat("\n", 60<<10), asText).isProblem(t, 413, "too-large", "twice as large")
}

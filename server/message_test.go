package server

import (
	"errors"
	"strings"
	"testing"

	"carillon/server/internal/envelope"
)

// A message whose levels most parsers would not take is refused, in whatever way it comes.
func TestTooManyLevels(t *testing.T) {
	deep := func(levels int) string { return strings.Repeat(`{"a":[`, levels/2) + strings.Repeat("]}", levels/2) }
	s := start(t, internalOf(topics(TopicRule{Match: "log", History: 10})))
	c := dial(t, s, "/ws", speakJSON)
	if got := c.ask(`{"id":1,"publish":{"topic":"log","data":%s}}`, deep(envelope.MaxLevels)); got.Published == nil {
		t.Error(got.text)
	}
	if got := c.ask(`{"id":2,"publish":{"topic":"log","data":%s}}`, deep(envelope.MaxLevels+2)); got.Error == nil || got.Error.Code != "bad_request" || !strings.Contains(got.Error.Message, "levels") {
		t.Error(got.text)
	}
	if _, err := s.Publish(Publication{Topic: "log", Format: FormatJSON, Payload: []byte(deep(envelope.MaxLevels + 2))}); err == nil {
		t.Error("it was published")
	}
	call(t, s, "POST", "/v1/topics/log/messages", deep(envelope.MaxLevels+2), asJSON).isProblem(t, 422, "not-json", "levels")
	if got := c.ask(`{"id":3,"history":{"topic":"log"}}`); got.History == nil || len(got.History.Messages) != 1 {
		t.Error(got.text)
	}
	if brackets := `"` + strings.Repeat(`[\"{`, 2*envelope.MaxLevels) + `"`; envelope.IsTooDeep([]byte(brackets)) {
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
	call(t, s, "POST", "/v1/topics/log/messages", strings.Repeat("\n", 60<<10), asText).isProblem(t, 413, "too-large", "more than double in size")
}

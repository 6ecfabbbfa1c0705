package topic

import (
	"errors"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	const topic, pattern, neither = 0, 1, 2
	for _, row := range []struct {
		sentence string
		name     string
		is       int
		says     string // the problem, if it is neither
	}{
		{"one level is a topic", "prices", topic, ""},
		{"levels are separated by dots", "prices.eu.AAPL", topic, ""},
		{"a level may be one character", "a.b.c", topic, ""},
		{"all allowed characters are allowed", "azAZ09-_~:@/+=,!%&'();", topic, ""},
		{"$ is allowed behind the beginning", "a$.$b", topic, ""},
		{"255 bytes are allowed", strings.Repeat("a", 255), topic, ""},
		{"many levels are allowed", strings.Repeat("a.", 127) + "a", topic, ""},

		{"* alone is a pattern", "*", pattern, ""},
		{"> alone is a pattern", ">", pattern, ""},
		{"* may stand anywhere", "*.b.*", pattern, ""},
		{"* may stand in the midst", "a.*.c", pattern, ""},
		{"> may stand last", "a.b.>", pattern, ""},
		{"* and > may stand together", "a.*.>", pattern, ""},

		{"the empty name is none", "", neither, "is empty"},
		{"256 bytes are too many", strings.Repeat("a", 256), neither, "has 256 bytes: expected at most 255"},
		{"a megabyte is too much", strings.Repeat("a.", 1<<19), neither, "expected at most 255"},
		{"a dot alone has empty levels", ".", neither, "level 1 is empty"},
		{"a level must not be empty", "a..b", neither, "level 2 is empty"},
		{"the first level must not be empty", ".a", neither, "level 1 is empty"},
		{"the last level must not be empty", "a.", neither, "level 2 is empty"},
		{"$ at the beginning is reserved", "$SYS", neither, "begins with $, which is reserved"},
		{"a space is not allowed", "a b", neither, `has the character ' '`},
		{"NUL is not allowed", "a\x00", neither, `has the character '\x00'`},
		{"a line break is not allowed", "a\n", neither, `has the character '\n'`},
		{"a quote is not allowed", `a"b`, neither, `has the character '"'`},
		{"letters are those of ASCII", "ü", neither, "has the character"},
		{"# is not allowed", "a.#", neither, `has the character '#'`},
		{"> stands last only", ">.a", neither, "has > in level 1: expected it in the last level only"},
		{"> stands last only, also between others", "a.>.b", neither, "has > in level 2"},
		{"a wildcard is a whole level", "a.b*", neither, "level 2 mixes a wildcard with other characters"},
		{"a wildcard is one character", "**", neither, "level 1 mixes a wildcard with other characters"},
		{"so is the other", ">>", neither, "level 1 mixes a wildcard with other characters"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			asTopic, asPattern := Check(row.name), CheckPattern(row.name)
			if (asTopic == nil) != (row.is == topic) || (asPattern == nil) != (row.is != neither) {
				t.Fatalf("as a topic: %v; as a pattern: %v", asTopic, asPattern)
			}
			if asPattern == nil && IsPattern(row.name) != (row.is == pattern) {
				t.Error("isPattern is wrong")
			}
			var why *NameError
			if asTopic != nil && (!errors.As(asTopic, &why) || !strings.HasPrefix(row.name, why.Name)) {
				t.Errorf("the error is %#v", asTopic)
			}
			if row.is == neither && !strings.Contains(asPattern.Error(), row.says) {
				t.Errorf("it says %q, want %q", asPattern, row.says)
			}
			if asTopic != nil && len(asTopic.Error()) > 1200 {
				t.Errorf("the error has %d bytes", len(asTopic.Error()))
			}
		})
	}
}

// plainMatches is Matches in the plainest words.
func plainMatches(pattern, topic []string) bool {
	switch {
	case len(pattern) == 0 || len(topic) == 0:
		return len(pattern) == len(topic)
	case pattern[0] == ">":
		return true
	}
	return (pattern[0] == "*" || pattern[0] == topic[0]) && plainMatches(pattern[1:], topic[1:])
}

// allNames are all names of at most so many levels out of these words.
func allNames(words []string, levels int) (all []string) {
	longest := words
	for range levels {
		all = append(all, longest...)
		var next []string
		for _, name := range longest {
			for _, w := range words {
				next = append(next, name+"."+w)
			}
		}
		longest = next
	}
	return all
}

// What one pattern covers, and whether two overlap, is a question about all topics. With two words besides the
// wildcards and one level more than the patterns have, every answer shows.
func TestPatternsAgainstEnumeration(t *testing.T) {
	topics := allNames([]string{"a", "b", "c"}, 5)
	var patterns []string
	for _, p := range allNames([]string{"a", "b", "*", ">"}, 4) {
		if CheckPattern(p) == nil {
			patterns = append(patterns, p)
		}
	}
	if len(patterns) < 100 {
		t.Fatalf("only %d patterns", len(patterns))
	}
	matched := map[string][]bool{}
	for _, p := range patterns {
		for _, topic := range topics {
			want := plainMatches(strings.Split(p, "."), strings.Split(topic, "."))
			if Matches(p, topic) != want {
				t.Fatalf("Matches(%q, %q) is %v", p, topic, !want)
			}
			matched[p] = append(matched[p], want)
		}
	}
	for _, p := range patterns {
		for _, q := range patterns {
			all, some := true, false
			for i := range topics {
				all = all && (matched[p][i] || !matched[q][i])
				some = some || matched[p][i] && matched[q][i]
			}
			if Covers(p, q) != all {
				t.Errorf("Covers(%q, %q) is %v", p, q, !all)
			}
			if Overlaps(p, q) != some || Overlaps(q, p) != some {
				t.Errorf("Overlaps(%q, %q) is %v", p, q, !some)
			}
		}
	}
}

// Whatever the names are, nothing panics, and the three questions agree with each other.
func FuzzMatches(f *testing.F) {
	f.Add("prices.*.AAPL", "prices.eu.>", "prices.eu.AAPL")
	f.Add(">", "*", "a")
	f.Add("a.b", "a.b.>", "a.b.c")
	f.Add("$", "..", "\xff*")
	f.Fuzz(func(t *testing.T, p, q, topic string) {
		if CheckPattern(p) != nil || CheckPattern(q) != nil || Check(topic) != nil {
			return
		}
		split := func(s string) []string { return strings.Split(s, ".") }
		inP, inQ := Matches(p, topic), Matches(q, topic)
		switch {
		case inP != plainMatches(split(p), split(topic)):
			t.Errorf("Matches(%q, %q) is %v", p, topic, inP)
		case inP && inQ && !Overlaps(p, q):
			t.Errorf("%q and %q share %q, but do not overlap", p, q, topic)
		case Covers(p, q) && inQ && !inP:
			t.Errorf("%q covers %q, but not %q", p, q, topic)
		case Covers(p, q) && !Overlaps(p, q):
			t.Errorf("%q covers %q, but does not overlap it", p, q)
		case Overlaps(p, q) != Overlaps(q, p):
			t.Errorf("Overlaps(%q, %q) depends on the order", p, q)
		case !Covers(p, p) || !Covers(">", p):
			t.Errorf("%q is not covered", p)
		case inP != Covers(p, topic) || inP != Overlaps(p, topic):
			t.Errorf("a topic is a pattern for itself: %q, %q", p, topic)
		case IsPattern(p) == (Check(p) == nil):
			t.Errorf("IsPattern(%q) is %v", p, IsPattern(p))
		}
	})
}

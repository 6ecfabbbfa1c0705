// Package topic is the contract of topics: their names and patterns, what is published to them and kept of them, and
// the [Broker] that joins servers to a cluster. Package server has an alias for every type that applications need.
package topic

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxName is the length of the longest topic or pattern, in bytes.
const maxName = 255

// NameError describes a name that is not a topic, or not a pattern.
type NameError struct {
	Name    string // as it was given, cut after 255 bytes
	Problem string
}

func (e *NameError) Error() string { return fmt.Sprintf("topic %q: %s", e.Name, e.Problem) }

// Check reports what is wrong with the name of a topic: it has levels of at least one allowed character,
// separated by dots, and at most 255 bytes. The error is a *[NameError].
func Check(name string) error {
	pattern, err := Parse(name)
	if err == nil && pattern {
		err = &NameError{Name: name, Problem: "is a pattern: expected the name of one topic"}
	}
	return err
}

// CheckPattern reports what is wrong with a name that may be that of a topic or a pattern. A pattern has "*" for any
// one level, or ">" as its last level for one or more. The error is a *[NameError].
func CheckPattern(name string) error {
	_, err := Parse(name)
	return err
}

// Parse reports whether a name is a pattern. The error, a *[NameError], is that of [CheckPattern].
func Parse(name string) (pattern bool, err error) {
	fail := func(format string, args ...any) (bool, error) {
		return false, &NameError{Name: name[:min(len(name), maxName)], Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case name == "":
		return fail("is empty")
	case len(name) > maxName:
		return fail("has %d bytes: expected at most %d", len(name), maxName)
	case name[0] == '$':
		return fail("begins with $, which is reserved")
	}
	level, start := 1, 0
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '.' {
			if c := name[i]; !inName[c] && c != '*' && c != '>' {
				r, size := utf8.DecodeRuneInString(name[i:])
				if r == utf8.RuneError && size == 1 {
					return fail("has the byte %#02x, which is not UTF-8", c)
				}
				return fail("has the character %q, which is not allowed", r)
			}
			continue
		}
		switch word := name[start:i]; {
		case word == "":
			return fail("level %d is empty", level)
		case word == "*", word == ">" && i == len(name):
			pattern = true
		case word == ">":
			return fail("has > in level %d: expected it in the last level only", level)
		case strings.ContainsAny(word, "*>"):
			return fail("level %d mixes a wildcard with other characters", level)
		}
		level, start = level+1, i+1
	}
	return pattern, nil
}

var inName = func() (allowed [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~:@/+=,!%&'();$") {
		allowed[c] = true
	}
	return allowed
}()

// IsPattern reports whether a name is a pattern. It must be one that [CheckPattern] accepts.
func IsPattern(name string) bool {
	return name == "*" || name == ">" || strings.HasPrefix(name, "*.") || strings.HasSuffix(name, ".>") ||
		strings.HasSuffix(name, ".*") || strings.Contains(name, ".*.")
}

// Matches reports whether a topic matches a pattern, which may also be the name of a topic.
func Matches(pattern, topic string) bool {
	for {
		p, restP, moreP := strings.Cut(pattern, ".")
		if p == ">" {
			return true
		}
		t, restT, moreT := strings.Cut(topic, ".")
		if p != "*" && p != t || moreP != moreT {
			return false
		}
		if !moreP {
			return true
		}
		pattern, topic = restP, restT
	}
}

// Covers reports whether every topic that matches inner also matches outer. Either may be the name of a topic.
// Both must be names that [CheckPattern] accepts.
func Covers(outer, inner string) bool {
	for {
		o, restO, moreO := strings.Cut(outer, ".")
		if o == ">" {
			return true
		}
		i, restI, moreI := strings.Cut(inner, ".")
		if i == ">" || o != "*" && o != i || moreO != moreI {
			return false
		}
		if !moreO {
			return true
		}
		outer, inner = restO, restI
	}
}

// Overlaps reports whether a topic can match both patterns. Either may be the name of a topic. A client can ask for
// many names at once, and each is compared with all others, so it takes only a few nanoseconds a level.
func Overlaps(a, b string) bool {
	i, j := 0, 0
	for i < len(a) && j < len(b) { // a level begins at both
		switch {
		case a[i] == '>' || b[j] == '>':
			return true
		case a[i] == '*':
			i, j = i+1, levelEnd(b, j)
		case b[j] == '*':
			i, j = levelEnd(a, i), j+1
		default:
			for i < len(a) && j < len(b) && a[i] == b[j] && a[i] != '.' {
				i, j = i+1, j+1
			}
			if i < len(a) && a[i] != '.' || j < len(b) && b[j] != '.' {
				return false
			}
		}
		if i == len(a) || j == len(b) {
			return i == len(a) && j == len(b)
		}
		i, j = i+1, j+1 // behind the dots
	}
	return false
}

// levelEnd returns where the level ends that begins at i.
func levelEnd(name string, i int) int {
	for i < len(name) && name[i] != '.' {
		i++
	}
	return i
}

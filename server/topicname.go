package server

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxTopic is the longest name of a topic or pattern, in bytes.
const maxTopic = 255

// TopicError is a name that is no topic, or no pattern.
type TopicError struct {
	Name    string // as it was given, cut after some bytes
	Problem string
}

func (e *TopicError) Error() string { return fmt.Sprintf("topic %q: %s", e.Name, e.Problem) }

// CheckTopic says whether a name is the name of a topic: levels of at least one allowed character,
// separated by dots, at most 255 bytes in all. The error is a *[TopicError].
func CheckTopic(name string) error {
	pattern, err := checkName(name)
	if err == nil && pattern {
		err = &TopicError{Name: name, Problem: "is a pattern: expected the name of one topic"}
	}
	return err
}

// CheckPattern says whether a name is the name of a topic or a pattern: one that has "*", which stands
// for any one level, or ">" as its last level, which stands for one or more. The error is a *[TopicError].
func CheckPattern(name string) error {
	_, err := checkName(name)
	return err
}

func checkName(name string) (pattern bool, err error) {
	fail := func(format string, args ...any) (bool, error) {
		return false, &TopicError{Name: name[:min(len(name), maxTopic)], Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case name == "":
		return fail("is empty")
	case len(name) > maxTopic:
		return fail("has %d bytes: expected at most %d", len(name), maxTopic)
	case name[0] == '$':
		return fail("begins with $, which is reserved")
	}
	level, start := 1, 0
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '.' {
			if c := name[i]; !inTopic[c] && c != '*' && c != '>' {
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
			return fail("level %d has a wildcard beside other characters", level)
		}
		level, start = level+1, i+1
	}
	return pattern, nil
}

var inTopic = func() (allowed [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~:@/+=,!%&'();$") {
		allowed[c] = true
	}
	return allowed
}()

// IsPattern says whether a name is a pattern that [CheckPattern] takes, and not a topic.
func IsPattern(name string) bool {
	return name == "*" || name == ">" || strings.HasPrefix(name, "*.") || strings.HasSuffix(name, ".>") ||
		strings.HasSuffix(name, ".*") || strings.Contains(name, ".*.")
}

// matches says whether a pattern stands for a topic.
func matches(pattern, topic string) bool {
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

// Covers says whether every topic that the pattern inner stands for matches outer. Either may also be the
// name of a topic. Both have to be names that [CheckPattern] takes.
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

// overlaps reports whether there is a topic that both stand for. Either may also be the name of a topic. A client can ask
// for many names at once, each of which is compared with all others, so it takes a few nanoseconds a level.
func overlaps(a, b string) bool {
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

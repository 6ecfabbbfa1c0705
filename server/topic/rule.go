package topic

import (
	"slices"
	"time"

	"carillon/server/internal/option"
)

// Rule says what a topic keeps.
type Rule struct {
	// Match is a topic or a pattern. The first rule that matches a topic's name is the topic's; a topic
	// that none matches keeps nothing.
	Match string `yaml:"match"`

	// History is the number of the newest messages that are kept, for clients that come back. Default 0:
	// none, or 1 with Latest.
	History int `yaml:"history"`

	// MaxAge is how long they are kept at most. Default 5m; negative keeps them until newer ones take
	// their place, or the server ends.
	MaxAge time.Duration `yaml:"max_age"`

	// MaxBytes is the number of payload bytes that one topic keeps at most; the newest message is kept
	// whatever its size. Default 1 MiB; negative is no limit.
	MaxBytes option.Size `yaml:"max_bytes"`

	// Latest is for topics whose messages replace each other, such as prices. A new subscriber gets the
	// newest message at once, and one that reads too slowly gets the newest one when it can, instead of
	// all that came meanwhile.
	Latest bool `yaml:"latest"`
}

// RuleOf returns the rule for a topic, or nil.
func RuleOf(rules []Rule, name string) *Rule {
	if i := RuleIndex(rules, name); i >= 0 {
		return &rules[i]
	}
	return nil
}

// RuleIndex returns the index of the rule for a topic, or -1.
func RuleIndex(rules []Rule, name string) int {
	return slices.IndexFunc(rules, func(r Rule) bool { return Matches(r.Match, name) })
}

// HasHistory reports whether topics with this rule keep messages, so that they are persistent in a cluster. It may be
// called on nil.
func (r *Rule) HasHistory() bool { return r != nil && r.History > 0 }

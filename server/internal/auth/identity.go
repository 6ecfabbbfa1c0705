package auth

import (
	"slices"
	"strings"
	"time"

	"carillon/server/topic"
)

// Identity is what package server documents as its Identity.
type Identity struct {
	Subject            string
	Subscribe, Publish []string
	Expires            time.Time
}

// IsUnknown reports whether an identity is the zero value: an unknown client.
func IsUnknown(id *Identity) bool {
	return id.Subject == "" && id.Subscribe == nil && id.Publish == nil && id.Expires.IsZero()
}

// ExpiryMillis returns when an identity expires, in milliseconds since 1970, and 0 for never: that includes what is
// beyond the year 9999, which JSON's readers, and far beyond that 64 bits, cannot hold. What was before 1970 is long
// over: 1.
func ExpiryMillis(id *Identity) int64 {
	const year10000 = 253_402_300_800 // in seconds
	switch at := id.Expires.Unix(); {
	case id.Expires.IsZero() || at >= year10000:
		return 0
	case at <= 0:
		return 1
	}
	return id.Expires.UnixMilli()
}

// CheckIdentity reports an entry of an identity that is neither a topic nor a pattern, as a *[topic.NameError].
func CheckIdentity(id *Identity) error {
	for _, list := range [][]string{id.Subscribe, id.Publish} {
		for _, p := range list {
			if err := topic.CheckPattern(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Intersect returns what two identities both allow. The subject is id's if it has one.
func Intersect(id, other Identity) Identity {
	if id.Subject == "" {
		id.Subject = other.Subject
	}
	id.Subscribe = intersectLists(id.Subscribe, other.Subscribe)
	id.Publish = intersectLists(id.Publish, other.Publish)
	if id.Expires.IsZero() || !other.Expires.IsZero() && other.Expires.Before(id.Expires) {
		id.Expires = other.Expires
	}
	return id
}

// intersectLists lists what two lists of patterns both allow; a nil one allows everything.
func intersectLists(a, b []string) []string {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	list := []string{}
	for _, x := range a {
		for _, y := range b {
			if p, ok := intersectPatterns(x, y); ok && !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	return list
}

// intersectPatterns returns the pattern for the topics that both stand for. Either may also be the name of a topic.
func intersectPatterns(a, b string) (string, bool) {
	var levels []string
	for {
		x, restA, moreA := strings.Cut(a, ".")
		y, restB, moreB := strings.Cut(b, ".")
		switch {
		case x == ">":
			return strings.Join(append(levels, b), "."), true
		case y == ">":
			return strings.Join(append(levels, a), "."), true
		case x != y && x != "*" && y != "*" || moreA != moreB:
			return "", false
		case x == "*":
			levels = append(levels, y)
		default:
			levels = append(levels, x)
		}
		if !moreA {
			return strings.Join(levels, "."), true
		}
		a, b = restA, restB
	}
}

// Allows reports whether a list of patterns, of which a nil one allows everything, allows a topic or pattern.
func Allows(list []string, name string) bool {
	return list == nil || slices.ContainsFunc(list, func(p string) bool { return topic.Covers(p, name) })
}

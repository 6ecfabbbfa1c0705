// Package redact hides passwords, tokens and other secrets in what is logged or shown: in URLs, and in the errors of
// what is done with them.
package redact

import (
	"errors"
	"net/url"
	"slices"
	"strings"
)

// Hidden stands for what is not shown.
const Hidden = "(set)"

// URL returns a URL as it may be shown, in a log or to an operator. "(set)" stands for its user and password, and
// for every part of its query but the parameters that are named. A fragment is shown unless it follows something hidden
// in the query, or has parameters itself. URL also hides secrets in what is no URL, but was meant as one:
// everything before the last @ counts as the user. The text may list several URLs, separated by commas.
func URL(text string, parameters ...string) string {
	list := strings.Split(text, ",")
	for i, one := range list {
		if u, err := url.Parse(strings.TrimSpace(one)); err != nil || u.Host == "" {
			return redactOne(text, parameters)
		}
		list[i] = redactOne(one, parameters)
	}
	return strings.Join(list, ",")
}

func redactOne(text string, parameters []string) string {
	scheme, rest, found := strings.Cut(text, "://")
	if scheme += "://"; !found || strings.ContainsAny(scheme, "@?#") {
		scheme, rest = "", text
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = Hidden + rest[at:]
	}
	rest, fragment, found := strings.Cut(rest, "#")
	path, query, asked := strings.Cut(rest, "?")
	if query != "" {
		query = redactQuery(query, parameters)
	}
	if asked {
		path += "?" + query
	}
	switch {
	case !found:
	case strings.Contains(query, Hidden): // the fragment may be the rest of a secret with a #
		if !strings.HasSuffix(query, Hidden) {
			path += "&" + Hidden
		}
	case strings.ContainsAny(fragment, "?&="): // it has parameters of its own
		path += "#" + Hidden
	default:
		path += "#" + fragment
	}
	return scheme + path
}

func redactQuery(query string, parameters []string) string {
	parts := strings.FieldsFunc(query, func(r rune) bool { return r == '&' })
	for i, part := range parts {
		if name, _, _ := strings.Cut(part, "="); !slices.Contains(parameters, name) {
			parts[i] = Hidden
		}
	}
	return strings.Join(slices.Compact(parts), "&")
}

// Error returns an error whose text has none of some secrets, as the errors of net/http have them. A secret may be a
// URL, which stands for what URL hides of it. The error wraps err; it is nil if err is.
func Error(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	inner := err
	if e, ok := errors.AsType[*url.Error](err); ok {
		inner = e.Err
	}
	var pairs []string
	for _, one := range secrets {
		for _, secret := range secretsOf(one) {
			pairs = append(pairs, secret, Hidden)
		}
	}
	return &redactedError{strings.NewReplacer(pairs...).Replace(inner.Error()), err}
}

type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

// secretsOf lists what URL hides of a URL, as it may appear in an error, or else the text itself. What is shorter
// than leastSecret is left out: it would be found in words.
func secretsOf(text string) []string {
	list := []string{text}
	if strings.Contains(text, "://") {
		if URL(text) == text {
			return nil
		}
		if u, err := url.Parse(text); err == nil {
			list = append(list, u.String(), u.Redacted(), u.RawQuery)
			if u.User != nil {
				password, _ := u.User.Password()
				list = append(list, u.User.String(), password, u.User.Username())
			}
			for _, values := range u.Query() {
				list = append(list, values...)
			}
		}
	}
	return slices.DeleteFunc(list, func(s string) bool { return len(s) < leastSecret })
}

const leastSecret = 4

// Check reports a URL that comes from URL, and so lacks what that has hidden.
func Check(text string) error {
	if strings.Contains(text, Hidden) {
		return errors.New(Hidden + " is a placeholder for a hidden part: expected the URL itself")
	}
	return nil
}

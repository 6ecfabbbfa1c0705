package main

import (
	"net/url"
	"strings"

	"carillon/internal/redact"
)

// shownURL is a URL as messages and results have it: without its user and password, and without any parameter but those that
// name topics. A token may be one, and results are kept and shown to others.
func shownURL(text string) string { return redact.URL(text, "topic", "envelope", "last") }

func shownURLs(list []string) string {
	var shown []string
	for _, one := range list {
		shown = append(shown, shownURL(one))
	}
	return strings.Join(shown, " ")
}

// withoutURL is the part of an error of net/http that does not repeat the URL.
func withoutURL(err error) error {
	if e, ok := err.(*url.Error); ok {
		return e.Err
	}
	return err
}

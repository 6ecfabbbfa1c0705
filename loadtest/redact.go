package main

import (
	"strings"

	"carillon/internal/redact"
)

// redactURL is a URL as messages and results have it: without its user and password, and without any parameter but those that
// name topics. A token may be one, and results are kept and shown to others.
func redactURL(text string) string { return redact.URL(text, "topic", "envelope", "last") }

func redactURLs(list []string) string {
	var shown []string
	for _, one := range list {
		shown = append(shown, redactURL(one))
	}
	return strings.Join(shown, " ")
}

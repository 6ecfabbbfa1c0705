package main

import (
	"strings"

	"carillon/internal/redact"
)

// redactURL removes user, password and parameters from a URL for messages and results, since any parameter
// may be a token. It keeps the parameters that name topics.
func redactURL(text string) string { return redact.URL(text, "topic", "envelope", "last") }

func redactURLs(list []string) string {
	var shown []string
	for _, one := range list {
		shown = append(shown, redactURL(one))
	}
	return strings.Join(shown, " ")
}

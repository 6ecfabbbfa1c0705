package logs

import "unicode/utf8"

// MaxText is how many bytes of a client's text get into one line of the log. Escaping is left to the handler; those of
// log/slog do it.
const MaxText = 200

// Shorten cuts a text to MaxText bytes.
func Shorten(s string) string { return ShortenTo(s, MaxText) }

// ShortenTo cuts a text to a number of bytes, between characters.
func ShortenTo(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + "..."
}

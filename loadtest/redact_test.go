package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestURLsAreShownWithoutSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"ws://h:1/p":                               "ws://h:1/p",
		"ws://h/p?topic=a&topic=b":                 "ws://h/p?topic=a&topic=b",
		"ws://h/p?token=sesame":                    "ws://h/p?(set)",
		"ws://h/p?topic=a&token=sesame&x=sesame":   "ws://h/p?topic=a&(set)",
		"http://user:sesame@h/p":                   "http://(set)@h/p",
		"http://user:sesame/x@h/p?token=sesame#se": "http://(set)@h/p?(set)",
		"user:sesame@h":                            "(set)@h",
		"ws://h/p?topic=a#token=sesame":            "ws://h/p?topic=a#(set)",
	} {
		if got := redactURL(text); got != want {
			t.Errorf("%s is shown as %s, want %s", text, got, want)
		}
	}
}

// Neither results nor errors contain a token of a URL.
func TestSecretsAreNeitherInResultsNorInErrors(t *testing.T) {
	for _, url := range []string{"ftp://h/?token=sesame", "ws://u:sesame@h/", "ws://u:sesame@h:x/?token=sesame", "ws://h/%zz?token=sesame", "ws://127.0.0.1:1/?token=sesame"} {
		for _, more := range []string{"", "ws://127.0.0.1:1/?key=sesame"} {
			o := small("echo", url, nil)
			if more != "" {
				o.URLs = append(o.URLs, more)
			}
			r := measure(t.Context(), o, nil)
			if text := fmt.Sprintf("%+v", r); r.Error == "" || strings.Contains(text, "sesame") {
				t.Errorf("%s: %s", url, text)
			}
		}
	}
	o := small("fanout", "ws://h/", func(o *options) { o.Headers = []string{"Authorization Bearer sesame"} })
	if err := o.check(); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Error(err)
	}
}

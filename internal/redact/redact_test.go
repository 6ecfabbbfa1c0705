package redact

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestURL(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "",
		"https://auth.example.com/hook":          "https://auth.example.com/hook",
		"https://me:pw@host:1/p":                 "https://(set)@host:1/p",
		"https://pw@host/p?token=pw#pw":          "https://(set)@host/p?(set)",
		"https://host/p?pw":                      "https://host/p?(set)",
		"https://host/p?":                        "https://host/p?",
		"https://host/p#part":                    "https://host/p#part",
		"https://host/p#":                        "https://host/p#",
		"https://host/p#/ws?token=pw":            "https://host/p#(set)",
		"https://host/p#access_token=pw":         "https://host/p#(set)",
		"ws://host/ws?token=pw&topic=a#pw":       "ws://host/ws?(set)&topic=a&(set)",
		"ws://host/ws?topic=a&token=pw&topic=b":  "ws://host/ws?topic=a&(set)&topic=b",
		"https://me:p/w@host/":                   "https://(set)@host/",
		"https://me:1/pw@host/":                  "https://(set)@host/",
		"https://me:p#w@host/":                   "https://(set)@host/",
		"https://me:p@w@host/":                   "https://(set)@host/",
		"https://me:p w@host/":                   "https://(set)@host/",
		"me:pw@host:4222":                        "(set)@host:4222",
		"nats:me:pw@host":                        "(set)@host",
		"nats://a:1,nats://me:pw@b:2, tls://c":   "nats://a:1,nats://(set)@b:2, tls://c",
		"nats://me:p,w@b:2":                      "nats://(set)@b:2",
		"nats://a:1,nats://b:2":                  "nats://a:1,nats://b:2",
		"https://host/a,b?token=pw,https://me@x": "https://(set)@x",
	} {
		if got := URL(text, "topic"); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
		if got := URL(text); strings.Contains(got, "pw") {
			t.Errorf("%s: %s", text, got)
		}
		if err := Check(URL(text)); (err != nil) != strings.Contains(want, "(set)") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestError(t *testing.T) {
	const secret = "https://me:sesame-1@host/p?token=sesame-2"
	cause := errors.New("dial sesame-1, sesame-2, " + secret + " and token-3 for me")
	err := Error(fmt.Errorf("ask: %w", &url.Error{Op: "Get", URL: secret, Err: cause}), secret, "token-3", "nats://host")
	if text := err.Error(); text != "dial (set), (set), (set) and (set) for me" || !errors.Is(err, cause) {
		t.Error(text)
	}
	if Error(nil, secret) != nil {
		t.Error("nil is an error")
	}
}

// Whatever stands where a user, a password or a query does is not shown.
func FuzzURL(f *testing.F) {
	f.Add("me", "pa/ss")
	f.Add("", "a,nats://b")
	f.Add("?", "#")
	f.Fuzz(func(t *testing.T, user, password string) {
		const mark = "SESAME"
		if strings.ContainsAny(user+password, ",@") {
			return // of a list, what looks like a URL is one
		}
		for _, text := range []string{
			"https://" + user + ":" + password + mark + "@host/p", "https://" + mark + password + "@host", "https://host/?" + user + "=" + password + mark,
			user + ":" + mark + "@host:1",
		} {
			if shown := URL(text); strings.Contains(shown, mark) {
				t.Errorf("%q is shown as %q", text, shown)
			}
		}
	})
}

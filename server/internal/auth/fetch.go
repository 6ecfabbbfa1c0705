package auth

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"carillon/internal/redact"
	"carillon/server/internal/option"
)

// fetchBody sends a request and returns the body of an answer that is 200 and not larger than limit. Its error shows
// nothing of the URL, which may hold a password.
func fetchBody(client *http.Client, r *http.Request, limit int64) ([]byte, error) {
	resp, err := client.Do(r)
	if err != nil {
		return nil, redact.Error(err, r.URL.String())
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, redact.Error(err, r.URL.String())
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the response is %s", resp.Status)
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("the response is larger than %v", option.Size(limit))
	}
	return text, nil
}

var errDowngrade = errors.New("refused a redirect from https to http")

// secureRedirects follows redirects as net/http does, but none that gives up TLS. The next server is not told the URL,
// which may hold a token.
func secureRedirects(next *http.Request, before []*http.Request) error {
	if next.URL.Scheme != "https" && before[len(before)-1].URL.Scheme == "https" {
		return errDowngrade
	}
	if len(before) >= 10 {
		return errors.New("more than 10 redirects")
	}
	next.Header.Del("Referer")
	return nil
}

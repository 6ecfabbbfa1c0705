package cli

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// The page is there with the demo. The JavaScript client is there with it, and without it for topics.
func TestPages(t *testing.T) {
	for _, test := range []struct {
		sentence, text string
		page, client   int
	}{
		{"the built-in file has a demo", "", 200, 200},
		{"topics without a demo need the client", "endpoints: [{path: /a, mode: topics}]\n", 404, 200},
		{"an echo needs nothing", minimal, 404, 404},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			text := []byte(test.text)
			if len(text) == 0 {
				text = builtIn
			}
			c, err := parseConfig("FILE", text, []string{"CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=off"})
			if err != nil {
				t.Fatal(err)
			}
			c.Logger = slog.New(slog.DiscardHandler)
			srv, pages, err := newServer(c)
			if err != nil {
				t.Fatal(err)
			}
			defer pages.close()
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- srv.Run(ctx) }()
			defer func() {
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			<-srv.Started()
			for path, want := range map[string]int{"/": test.page, "/carillon.js": test.client} {
				resp, err := http.Get("http" + strings.TrimPrefix(srv.URL(path), "ws"))
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if cors := resp.Header.Get("Access-Control-Allow-Origin"); (cors == "*") != (path == "/carillon.js" && want == 200) {
					t.Errorf("%s: pages of other origins: %q", path, cors)
				}
				if resp.StatusCode != want || want == 200 && len(body) < 1000 {
					t.Errorf("%s: %s, %d bytes; want %d", path, resp.Status, len(body), want)
				}
			}
		})
	}
}

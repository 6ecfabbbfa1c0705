package cli

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCommandLinesThatMakeNoSense(t *testing.T) {
	const see = "carillon: run carillon --help for usage\n"
	for _, test := range []struct{ sentence, args, problem string }{
		{"connect needs a URL", "connect", "accepts 1 arg(s), received 0"},
		{"of a known scheme", "connect ftp://x", `URL "ftp://x": unknown scheme "ftp": expected ws or wss`},
		{"a header has a colon", "connect x -H nonsense", `invalid argument for "-H, --header" flag: expected 'Name: value'`},
		{"a header's name is a token", "connect x -H a@b:c", `invalid argument for "-H, --header" flag: expected 'Name: value'`},
		{"the handshake's own headers are not ours", "connect x -H Upgrade:h2c", `invalid argument for "-H, --header" flag: the handshake sets this header itself`},
		{"subprotocols have a flag", "connect x -H Sec-WebSocket-Protocol:a", `invalid argument for "-H, --header" flag: use --subprotocol for this header`},
		{"a wait is a time", "connect x --wait long", `invalid argument "long" for "--wait" flag: expected a duration such as 500ms, or off`},
		{"a wait is not negative", "connect x --wait=-1s", `invalid argument "-1s" for "--wait" flag: expected a duration such as 500ms, or off`},
		{"a handshake takes time", "connect x --timeout 0", "--timeout must be greater than 0"},
		{"JSON is not binary", "connect x --json --binary", "if any flags in the group [json binary] are set none of the others can be; [binary json] were all set"},
		{"publish needs a topic", "publish", "accepts between 1 and 2 arg(s), received 0"},
		{"lines come from the input", "publish a b --lines", "--lines reads standard input: omit MESSAGE"},
		{"the interface is HTTP", "publish a b --api ws://x", `URL "ws://x": unknown scheme "ws": expected http or https`},
		{"formats are known", "publish a b --output xml", `invalid argument "xml" for "--output" flag: expected text or json`},
		{"a key is for one message", "publish a --lines --key b", "if any flags in the group [lines key] are set none of the others can be; [key lines] were all set"},
		{"tail needs a topic", "tail", "requires at least 1 arg(s), only received 0"},
		{"a position has an epoch", "tail a --since 4", "if any flags in the group [since epoch] are set they must all be set; missing [epoch]"},
		{"a position is of one topic", "tail a b --since 4 --epoch e", "--since needs exactly one topic"},
		{"a pattern has no position", "tail a.* --since 4 --epoch e", "--since and --last need topics: a.* is a pattern"},
		{"a pattern has no last messages", "tail a b.> --last 4", "--since and --last need topics: b.> is a pattern"},
		{"a history has an end", "tail a --last 10001", "--last 10001 is out of range: expected 0 to 10000"},
		{"a count is not negative", "tail a --count -1", "--count -1 is out of range: expected 1 or more"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			seat{}.begin(t, strings.Fields(test.args)...).end(2, "", "carillon: "+test.problem+"\n"+see)
		})
	}
}

func TestAFailedHandshakeIsOneLine(t *testing.T) {
	answer := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = nil
	secure.StartTLS()
	t.Cleanup(secure.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })

	forbidden, missing, page, plain := answer(403, "topic: not yours\nsecond line\n"), answer(404, ""), answer(200, "<html>\x1b[2J"), answer(200, "")
	none := closedPort(t)
	for _, test := range []struct{ sentence, url, problem string }{
		{"nothing listens", none, "connection refused"},
		{"the server forbids it", forbidden, "HTTP 403 Forbidden: topic: not yours"},
		{"the path is not served", missing, "HTTP 404 Not Found"},
		{"it is no WebSocket", page, `HTTP 200 OK: <html>\u001b[2J`},
		{"the certificate is unknown", "wss://" + secure.Listener.Addr().String(), "the server's certificate is not trusted: x509: certificate signed by unknown authority: see --ca"},
		{"the server knows no TLS", "wss://" + plain, "http: server gave HTTP response to HTTPS client"},
		{"no answer comes", silent.Addr().String(), "no answer within 1s"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			full := test.url
			if !strings.Contains(full, "://") {
				full = "ws://" + full
			}
			timeout := "20s"
			if test.sentence == "no answer comes" {
				timeout = "1s"
			}
			want := "carillon: connect to " + full + ": " + test.problem + "\n"
			seat{}.begin(t, "connect", test.url, "--timeout", timeout).end(1, "", want)
			seat{}.begin(t, "tail", "a", "--url", test.url, "--timeout", timeout).end(1, "", want)
		})
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		seat{}.begin(t, "completion", shell).end(0, "...", "")
	}
	const noFiles = ":4\n"
	for _, test := range []struct{ sentence, args, want string }{
		{"a URL is not a file", "connect|", noFiles},
		{"a topic is not a file", "publish|", noFiles},
		{"a message is not a file", "publish|a|", noFiles},
		{"nor are topics", "tail|a|", noFiles},
		{"a header is not a file", "connect|x|--header|", noFiles},
		{"formats are offered", "tail|a|--output|", "text\njson\n" + noFiles},
		{"a configuration is a file", "--config|", "yaml\nyml\n:8\n"},
		{"commands are offered", "tai", "tail\tPrint the messages of topics as they arrive\n:4\n"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			args := append([]string{"__complete"}, strings.Split(test.args, "|")...)
			seat{}.begin(t, args...).end(0, test.want, "...")
		})
	}
}

func TestHelpHasExamplesAndStatuses(t *testing.T) {
	for _, name := range []string{"connect", "publish", "tail"} {
		j := seat{}.begin(t, name, "--help")
		j.end(0, "...", "")
		for _, words := range []string{"Exit status: 0", "Examples:\n  carillon " + name} {
			if !strings.Contains(j.out.String(), words) {
				t.Errorf("the help of %s does not say %q", name, words)
			}
		}
	}
}

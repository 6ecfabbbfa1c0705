package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"carillon/internal/redact"

	"github.com/spf13/cobra"
)

const publishHelp = `Publishes over the server's internal HTTP interface. Without MESSAGE, or with -,
the message is read from standard input. Unless it is binary, one trailing line
feed (or CR LF) and a leading byte order mark are removed. With --lines each
line is a message, published within 100 ms of being read, so the input may be a
pipe from tail -f. A line that cannot be published is reported by number, and
the rest are still published.

For each message one line is printed: its offset, its epoch, and how many
subscribers it was sent to.

Environment: CARILLON_API and CARILLON_TOKEN are the defaults of --api and --token. A
token on the command line is visible to every user of the machine.

Exit status: 0 if every message was published, 1 if any was not, 2 on a usage
error.`

const publishExamples = `  carillon publish prices.eu 'AAPL 187.20'
  carillon publish prices.eu --json '{"AAPL":187.2}'
  carillon publish images.eu --binary <photo.jpeg
  tail -f access.log | carillon publish logs.web --lines
  carillon publish orders '17 paid' --key order-17    # published once, however often it is run`

type publishOptions struct {
	api     *neturl.URL
	socket  string // the path of a unix socket, or none
	token   string
	topic   string
	key     string
	json    bool
	binary  bool
	lines   bool
	output  string // json or text
	timeout time.Duration
	trust   trust
	tls     *tls.Config // nil for the usual
}

func publishCommand(std streams) *cobra.Command {
	o := publishOptions{output: "text"}
	var api string
	cmd := &cobra.Command{
		Use: "publish TOPIC [MESSAGE|-]", Short: "Publish messages over the internal HTTP interface",
		Long: publishHelp, Example: publishExamples,
		Args: cobra.RangeArgs(1, 2),
		PreRunE: func(_ *cobra.Command, args []string) error {
			o.topic = args[0]
			return o.resolve(api, len(args) == 2 && args[1] != "-")
		},
		RunE: understood(func(_ *cobra.Command, args []string) error {
			p := &publisher{publishOptions: o, client: o.httpClient(), streams: std}
			if !o.lines {
				return p.publishOne(args[1:]) // Ctrl-C just ends it
			}
			ctx, stop := interruptible()
			defer stop()
			return p.publishLines(ctx)
		}),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&api, "api", "", "the internal HTTP interface, `URL` or unix:/path (default $CARILLON_API or http://127.0.0.1:8081)")
	f.StringVar(&o.token, "token", "", "send 'Authorization: Bearer `TOKEN`' (default $CARILLON_TOKEN)")
	o.trust.flags(cmd)
	f.BoolVar(&o.json, "json", false, "the message is JSON; it is checked before it is sent")
	f.BoolVar(&o.binary, "binary", false, "the message is binary")
	f.BoolVar(&o.lines, "lines", false, "publish each line of standard input")
	f.StringVar(&o.key, "key", "", "publish only once for the same `KEY` (Idempotency-Key)")
	choiceFlag(cmd, &o.output, "output", "print `FORMAT`: text, or json as the server returns it (default text)", "text", "json")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "limit each request to `TIME`")
	noCompletion(cmd)
	noCompletion(cmd, "api", "token", "key", "timeout")
	cmd.MarkFlagsMutuallyExclusive("json", "binary")
	cmd.MarkFlagsMutuallyExclusive("lines", "binary")
	cmd.MarkFlagsMutuallyExclusive("lines", "key")
	return cmd
}

// resolve fills in the environment and checks what can be wrong with the command line.
func (o *publishOptions) resolve(api string, message bool) error {
	if err := o.resolveAPI(api); err != nil {
		return err
	}
	if err := checkTopicArgument(o.topic, "api"); err != nil {
		return err
	}
	switch {
	case o.lines && message:
		return errors.New("--lines reads standard input: omit MESSAGE")
	}
	return nil
}

// resolveAPI is resolve for what concerns every request to the interface.
func (o *publishOptions) resolveAPI(api string) (err error) {
	if api == "" {
		api = os.Getenv(apiVariable)
	}
	if api == "" {
		api = "http://127.0.0.1:8081"
	}
	if o.token == "" {
		o.token = os.Getenv(tokenVariable)
	}
	if path, ok := strings.CutPrefix(api, "unix:"); ok {
		o.socket, api = path, "http://localhost"
	}
	if !strings.Contains(api, "://") {
		api = "http://" + api
	}
	if o.api, err = parseURL(api); err != nil {
		return err
	}
	if o.tls, err = o.trust.config(); err != nil {
		return err
	}
	switch {
	case o.api.Scheme != "http" && o.api.Scheme != "https":
		return fmt.Errorf("URL %q: unknown scheme %q: expected http or https", shownURL(api), o.api.Scheme)
	case o.timeout <= 0:
		return errors.New("--timeout must be greater than 0")
	}
	return nil
}

// httpClient follows no redirect: it would turn a POST into a GET and publish nothing.
func (o *publishOptions) httpClient() *http.Client {
	t := transport(o.tls)
	if o.socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", o.socket)
		}
	}
	return &http.Client{
		Transport:     t,
		Timeout:       o.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type publisher struct {
	publishOptions
	streams
	client *http.Client
}

func (p *publisher) publishOne(args []string) error {
	message, err := p.message(args)
	if err != nil {
		return err
	}
	kind := "text/plain; charset=utf-8"
	switch {
	case p.binary:
		kind = "application/octet-stream"
	case p.json:
		kind = "application/json"
	}
	answer, err := p.post(context.Background(), "/v1/topics/"+neturl.PathEscape(p.topic)+"/messages", kind, message)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", harmlessLine(p.topic), err)
	}
	return p.print(answer)
}

func (p *publisher) message(args []string) (message []byte, err error) {
	if len(args) == 1 && args[0] != "-" {
		message = []byte(args[0])
	} else {
		if p.inTerminal {
			fmt.Fprintln(p.err, "type the message, then Ctrl-D")
		}
		if message, err = io.ReadAll(p.in); err != nil {
			return nil, fmt.Errorf("read the message: %w", err)
		}
		if !p.binary {
			message = trimNewline(bytes.TrimPrefix(message, []byte(byteOrderMark)), true)
		}
	}
	if p.json {
		message = bytes.TrimPrefix(message, []byte(byteOrderMark))
	}
	return message, p.check(message)
}

// check finds here what the server would refuse, or worse, what would be changed on the way.
func (p *publisher) check(message []byte) error {
	if p.json {
		var value json.RawMessage
		if err := json.Unmarshal(message, &value); err != nil {
			return fmt.Errorf("the message is not valid JSON: %w", err)
		}
	}
	if !p.binary && !utf8.Valid(message) {
		return errors.New("the message is not valid UTF-8; use --binary to publish any bytes")
	}
	return nil
}

// post sends a request and returns the body of an answer that says it worked.
func (p *publisher) post(ctx context.Context, path, kind string, body []byte) ([]byte, error) {
	url := strings.TrimSuffix(p.api.String(), "/") + path
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, redact.Error(err, url)
	}
	request.Header.Set("Content-Type", kind)
	request.Header.Set("User-Agent", userAgent)
	if p.token != "" {
		request.Header.Set("Authorization", "Bearer "+p.token)
	}
	if p.key != "" {
		request.Header.Set("Idempotency-Key", p.key)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", shownURL(p.api.String()), cause(ctx, err, p.timeout))
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return nil, complaint(response)
	}
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxIncoming))
	if err != nil {
		return nil, fmt.Errorf("read the response: %w", cause(ctx, err, p.timeout))
	}
	return answer, nil
}

// problemDocument is an error as RFC 9457 writes it.
type problemDocument struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (d *problemDocument) Error() string {
	switch {
	case d.Title == "":
		return harmlessLine(d.Detail)
	case d.Detail == "":
		return harmlessLine(d.Title)
	}
	return harmlessLine(d.Title + ": " + d.Detail)
}

func complaint(response *http.Response) error {
	if kind, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";"); kind != "application/problem+json" {
		return refusal(response)
	}
	var d problemDocument
	err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&d)
	if err != nil || d.Title+d.Detail == "" {
		return fmt.Errorf("HTTP %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	}
	return &d
}

// published is what the server says about a message.
type published struct {
	Offset      *uint64          `json:"offset"`
	Epoch       string           `json:"epoch"`
	Subscribers int              `json:"subscribers"`
	Error       *problemDocument `json:"error"`
}

// print shows the server's answer about one message.
func (p *publisher) print(answer []byte) error {
	var result published
	if err := json.Unmarshal(answer, &result); err != nil || result.Offset == nil {
		return fmt.Errorf("unexpected response from the server: %s", harmlessLine(firstBytes(answer, 200)))
	}
	if p.output == "json" {
		_, err := fmt.Fprintf(p.out, "%s\n", compact(answer))
		return err
	}
	noun := "subscribers"
	if result.Subscribers == 1 {
		noun = "subscriber"
	}
	_, err := fmt.Fprintf(p.out, "offset %d, epoch %s, %d %s\n", *result.Offset, harmlessLine(result.Epoch), result.Subscribers, noun)
	return err
}

func firstBytes(text []byte, n int) string { return string(text[:min(n, len(text))]) }

package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	neturl "net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"carillon/codec"
	"carillon/internal/redact"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
)

// jsonSubprotocol is that of docs/protocol.md.
const jsonSubprotocol = "carillon.v1.json"

// maxIncoming bounds the memory that one message of a server can take.
const maxIncoming = 64 << 20

// userAgent tells an operator who reads a log what this was.
const userAgent = "carillon-cli"

// webSocketURL completes what a person types for a URL: "localhost:8080/echo" is ws://, and so is what
// was copied from a browser's address bar.
func webSocketURL(text string, topics []string) (*neturl.URL, error) {
	full := text
	if !strings.Contains(text, "://") {
		full = "ws://" + text
	}
	u, err := parseURL(full)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "ws", "wss":
	case "http":
		u.Scheme = "ws"
	case "https":
		u.Scheme = "wss"
	default:
		return nil, fmt.Errorf("URL %q: unknown scheme %q: expected ws or wss", shownURL(text), u.Scheme)
	}
	if u.Fragment != "" {
		return nil, fmt.Errorf("URL %q: a WebSocket URL has no #fragment: write %%23 for a # in a name", shownURL(text))
	}
	for _, topic := range topics {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "topic=" + neturl.QueryEscape(topic)
	}
	return u, nil
}

// shownURL is a URL without a password, and without any parameter but those of docs/protocol.md: "token" may be one.
func shownURL(text string) string {
	return redact.URL(text, "topic", "since", "epoch", "last", "envelope")
}

// parseURL is for any URL that has a host. ":8080" is a host too, as it is in the server's configuration.
func parseURL(text string) (*neturl.URL, error) {
	u, err := neturl.Parse(text)
	if e, ok := errors.AsType[*neturl.Error](err); ok {
		err = e.Err
	}
	if err != nil && shownURL(text) != text {
		err = errors.New("not a URL") // what is wrong may be a part of the password
	}
	if err != nil {
		return nil, fmt.Errorf("URL %q: %w", shownURL(text), err)
	}
	if u.Host == "" {
		return nil, fmt.Errorf("URL %q: no host: expected one such as localhost:8080", shownURL(text))
	}
	if u.Hostname() == "" {
		u.Host = "localhost" + u.Host
	}
	return u, nil
}

// checkTopicArgument reports a URL in the place of a topic, before it is repeated with what it has of a secret.
func checkTopicArgument(topic, flag string) error {
	switch {
	case topic == "":
		return errors.New("empty topic")
	case strings.Contains(topic, "://") && shownURL(topic) != topic:
		return fmt.Errorf("topic %q is a URL: expected a topic name; pass the URL as --%s", shownURL(topic), flag)
	}
	return nil
}

// headerFlag offers --header.
func headerFlag(cmd *cobra.Command, header http.Header) {
	cmd.Flags().FuncP("header", "H", "add a `HEADER` (Name: value) to the handshake; repeatable", func(text string) error {
		name, value, found := strings.Cut(text, ":")
		value = strings.TrimSpace(value)
		if !found || !codec.IsToken(name) {
			return errors.New("expected 'Name: value'")
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return errors.New("control character in the value")
		}
		switch name = http.CanonicalHeaderKey(name); {
		case name == "Sec-Websocket-Protocol":
			return errors.New("use --subprotocol for this header")
		case name == "Connection", name == "Upgrade", strings.HasPrefix(name, "Sec-Websocket-"):
			return errors.New("the handshake sets this header itself")
		}
		header.Add(name, value)
		return nil
	})
	noCompletion(cmd, "header")
}

// noCompletion keeps a shell from offering the names of files as the value of a flag, or as an argument
// if no flag is named.
func noCompletion(cmd *cobra.Command, flags ...string) {
	if len(flags) == 0 {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, name := range flags {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// choiceFlag offers a flag that is one of a few words.
func choiceFlag(cmd *cobra.Command, to *string, name, usage string, words ...string) {
	cmd.Flags().Func(name, usage, func(word string) error {
		if !slices.Contains(words, word) {
			return fmt.Errorf("expected %s", strings.Join(words, " or "))
		}
		*to = word
		return nil
	})
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// handshake is what a client asks for.
type handshake struct {
	url          *neturl.URL
	header       http.Header
	subprotocols []string
	compression  bool
	timeout      time.Duration
	ping, pong   func(payload []byte) // shows one that came; may be nil
	trust        trust
	tls          *tls.Config // nil for the usual
}

// refused is the error for an HTTP answer that was not the one hoped for.
type refused struct {
	status     int
	text       string
	retryAfter time.Duration // from Retry-After; 0 without one
}

func (r *refused) Error() string { return r.text }

func (h handshake) dial(ctx context.Context) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	header := maps.Clone(h.header)
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", userAgent)
	}
	options := &websocket.DialOptions{
		HTTPClient:     &http.Client{Transport: transport(h.tls)},
		HTTPHeader:     header,
		Host:           header.Get("Host"),
		Subprotocols:   h.subprotocols,
		OnPingReceived: func(_ context.Context, payload []byte) bool { call(h.ping, payload); return true },
		OnPongReceived: func(_ context.Context, payload []byte) { call(h.pong, payload) },
	}
	if h.compression {
		options.CompressionMode = websocket.CompressionNoContextTakeover
	}
	conn, response, err := websocket.Dial(ctx, h.url.String(), options)
	if err != nil {
		if response != nil && response.StatusCode != http.StatusSwitchingProtocols {
			err = refusal(response)
		} else {
			err = cause(ctx, err, h.timeout)
		}
		return nil, fmt.Errorf("connect to %s: %w", shownURL(h.url.String()), err)
	}
	conn.SetReadLimit(maxIncoming)
	return conn, nil
}

func call(f func([]byte), payload []byte) {
	if f != nil {
		f(payload)
	}
}

// transport asks the kernel to find out within about 30 s that the other end is gone. Pings of our own would be
// mistaken when our output is not read, since then we do not read their pongs either.
func transport(trusted *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = trusted
	t.TLSHandshakeTimeout = 0 // ours bounds the whole handshake
	t.DialContext = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}).DialContext
	return t
}

// refusal tells an HTTP answer by its status and the first line of its body.
func refusal(response *http.Response) *refused {
	text := fmt.Sprintf("HTTP %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
	if line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n"); line != "" {
		text += ": " + harmlessLine(strings.TrimSpace(line))
	}
	return &refused{response.StatusCode, text, retryAfter(response)}
}

// longestRetry bounds what a client lets a server, or a proxy before it, ask for.
const longestRetry = time.Hour

// retryAfter reads Retry-After (RFC 9110, 10.2.3), which is a number of seconds or a date.
func retryAfter(response *http.Response) time.Duration {
	text := response.Header.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = time.Until(at)
	}
	return min(max(wait, 0), longestRetry)
}

// cause is the part of an error before an HTTP answer that says something to a person.
func cause(ctx context.Context, err error, timeout time.Duration) error {
	if e, ok := errors.AsType[*neturl.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("the server's certificate is not trusted: %w: see --ca", e.Err)
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted")
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer within %s", shortDuration(timeout))
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused")
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Err
	}
	return errors.New(strings.TrimPrefix(err.Error(), "failed to WebSocket dial: "))
}

// closing is how the server's close frame is told.
func closing(frame websocket.CloseError) string {
	text := "closed by the server: " + codec.CloseCode(frame.Code).String()
	if frame.Reason != "" {
		text += ": " + harmlessLine(frame.Reason)
	}
	return text
}

// lost says why a connection ended without a close frame.
func lost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("connection lost: no close frame")
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("connection lost: %w", e.Err)
	}
	return fmt.Errorf("connection lost: %s", strings.TrimPrefix(err.Error(), "failed to get reader: "))
}

// byteOrderMark is U+FEFF in UTF-8, with which some programs begin a text file. It is no part of the text.
const byteOrderMark = "\ufeff"

// lines calls do with each line of the input and its number. The line has no line feed; a last line needs none. In text
// a carriage return before the line feed, and a byte order mark before the first line, are left out as well. A line may
// be as long as memory allows.
func lines(r io.Reader, isText bool, do func(number int, line []byte) error) error {
	for input, number := bufio.NewReader(r), 1; ; number++ {
		line, err := input.ReadBytes('\n')
		if len(line) > 0 {
			if isText && number == 1 {
				line = bytes.TrimPrefix(line, []byte(byteOrderMark))
			}
			if err := do(number, trimNewline(line, isText)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read line %d of the input: %w", number, err)
		}
	}
}

// trimNewline returns a line without its line feed, and in text without the carriage return before that.
func trimNewline(line []byte, isText bool) []byte {
	line, found := bytes.CutSuffix(line, []byte("\n"))
	if found && isText {
		line = bytes.TrimSuffix(line, []byte("\r"))
	}
	return line
}

package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"carillon/codec"
	"carillon/internal/redact"
	"carillon/server/internal/logs"
	"carillon/server/internal/strictjson"
	"carillon/server/stats"
)

// hook asks an HTTP server about handshakes.
type hook struct {
	opts    *Hook
	log     *slog.Logger
	client  http.Client
	slots   chan struct{} // has a value for each question that is open; nil without a limit
	failing atomic.Bool   // the last answer was none
}

// maxHookResponse bounds an answer.
const maxHookResponse = 64 << 10

var (
	rejectHookBusy   = &codec.Rejection{Status: 503, Reason: "too many pending authorization requests", Header: [][2]string{{"Retry-After", "1"}}}
	rejectHookFailed = &codec.Rejection{Status: 503, Reason: "the request could not be authorized", Header: [][2]string{{"Retry-After", "5"}}}
)

func newHook(opts *Hook, log *slog.Logger) *hook {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 32 // the default of 2 would open a connection for nearly each question
	h := &hook{opts: opts, log: log}
	h.client = http.Client{
		Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // cookies and tokens go only to the configured server
		},
	}
	if opts.MaxInFlight > 0 {
		h.slots = make(chan struct{}, opts.MaxInFlight)
	}
	return h
}

// hookRequest is what the hook is asked.
type hookRequest struct {
	Path    string            `json:"path"`
	Query   string            `json:"query"`
	Remote  string            `json:"remote"`
	Subject string            `json:"subject,omitempty"` // of the token
	Headers map[string]string `json:"headers"`
}

// hookResponse is what it answers.
type hookResponse struct {
	Allow     *bool           `json:"allow"`
	Subject   *string         `json:"subject"`
	Subscribe []string        `json:"subscribe"`
	Publish   []string        `json:"publish"`
	Expires   json.RawMessage `json:"expires"` // seconds since 1970; 0 is never
	Status    int             `json:"status"`
	Reason    string          `json:"reason"`
}

var hookResponseShape = strictjson.ShapeOf[hookResponse](strictjson.Rules{})

// parseHookResponse reads an answer and what it says of a client that is let in. Everything that is no clear answer is
// an error, whose text is for the log.
func parseHookResponse(text []byte) (v hookResponse, id Identity, err error) {
	err = hookResponseShape.Unmarshal(text, &v)
	var kind *json.UnmarshalTypeError
	var member *strictjson.Error
	switch {
	case errors.As(err, &member):
		return v, id, fmt.Errorf("the response: %w", err)
	case errors.As(err, &kind) && kind.Field != "":
		return v, id, fmt.Errorf("the response: %s must not be a JSON %.20s", kind.Field, kind.Value)
	case err != nil:
		return v, id, errors.New("the response is not exactly one JSON object")
	case v.Allow == nil:
		return v, id, errors.New(`the response has no "allow"`)
	case *v.Allow && v.Status >= 400:
		return v, id, fmt.Errorf("the response both allows the client and has status %d: expected one of them", v.Status)
	}
	id = Identity{Subscribe: v.Subscribe, Publish: v.Publish}
	if v.Subject != nil {
		id.Subject = *v.Subject
		if err := checkSubject("subject", id.Subject); err != nil {
			return v, id, fmt.Errorf("the response: %w", err)
		}
	}
	if v.Expires != nil && string(v.Expires) != "0" {
		if id.Expires, err = parseSecond("expires", v.Expires, math.Floor); err != nil {
			return v, id, fmt.Errorf("the response: %w", err)
		}
		if *v.Allow && !time.Now().Before(id.Expires) {
			return v, id, errors.New("the response has already expired")
		}
	}
	return v, id, CheckIdentity(&id)
}

// decide asks, and takes everything that is no clear answer for a no.
func (h *hook) decide(ctx context.Context, r *codec.Request, remote, subject string) (id Identity, err error) {
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			return id, &Refusal{Why: stats.RefuseHookBusy, Rejection: rejectHookBusy}
		}
	}
	gone := ctx
	ctx, cancel := context.WithTimeout(ctx, h.opts.Timeout)
	defer cancel()
	v, id, err := h.post(ctx, r, remote, subject)
	if err != nil {
		if gone.Err() == nil && !h.failing.Swap(true) {
			h.log.Warn("connect hook failing; refusing handshakes", "url", redact.URL(h.opts.URL), "error", err)
		}
		return Identity{}, &Refusal{Why: stats.RefuseHookFailed, Rejection: rejectHookFailed}
	}
	if h.failing.Swap(false) {
		h.log.Info("connect hook is answering again", "url", redact.URL(h.opts.URL))
	}
	if !*v.Allow {
		return Identity{}, &Refusal{Why: stats.RefuseHook, Rejection: v.rejection()}
	}
	return id, nil
}

func (h *hook) post(ctx context.Context, r *codec.Request, remote, subject string) (v hookResponse, id Identity, err error) {
	q := hookRequest{Path: string(r.Path), Query: string(r.Query), Remote: remote, Subject: subject, Headers: map[string]string{}}
	for _, name := range h.opts.Headers {
		if value := JoinedHeader(r, name); value != "" {
			q.Headers[name] = value
		}
	}
	body, err := json.Marshal(q)
	if err != nil {
		return v, id, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, h.opts.URL, bytes.NewReader(body))
	if err != nil {
		return v, id, redact.Error(err, h.opts.URL)
	}
	post.Header.Set("Content-Type", "application/json")
	text, err := fetchBody(&h.client, post, maxHookResponse)
	if err != nil {
		return v, id, err
	}
	return parseHookResponse(text)
}

// JoinedHeader returns all values of a header as one (RFC 9110, section 5.3; RFC 6265, section 4.2.1).
func JoinedHeader(r *codec.Request, name string) string {
	var values []string
	for n, value := range r.Headers() {
		if strings.EqualFold(string(n), name) {
			values = append(values, string(value))
		}
	}
	separator := ", "
	if strings.EqualFold(name, "Cookie") {
		separator = "; "
	}
	return strings.Join(values, separator)
}

// rejection is what the client gets: the hook's words, as far as they make an answer.
func (v *hookResponse) rejection() *codec.Rejection {
	r := &codec.Rejection{Status: v.Status, Reason: logs.ShortenTo(v.Reason, 256)}
	if r.Status < 400 || r.Status > 599 {
		r.Status = 403
	}
	if r.Reason == "" {
		r.Reason = "forbidden"
	}
	return r
}

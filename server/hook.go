package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"carillon/codec"
)

// hook asks an HTTP server about handshakes. It is built on [Request.Defer].
type hook struct {
	opts    *Hook
	log     *slog.Logger
	client  http.Client
	slots   chan struct{} // has a value for each question that is open; nil without a limit
	failing atomic.Bool   // the last answer was none
}

// hookMostSize bounds an answer.
const hookMostSize = 64 << 10

var (
	rejectHookBusy   = &codec.Rejection{Status: 503, Reason: "too many requests are being checked", Header: [][2]string{{"Retry-After", "1"}}}
	rejectHookFailed = &codec.Rejection{Status: 503, Reason: "the request could not be checked", Header: [][2]string{{"Retry-After", "5"}}}
)

func newHook(opts *Hook, log *slog.Logger) *hook {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 32 // the default of 2 would open a connection for nearly each question
	h := &hook{opts: opts, log: log}
	h.client = http.Client{
		Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // cookies and tokens go to nobody but the one who is named
		},
	}
	if opts.MaxInFlight > 0 {
		h.slots = make(chan struct{}, opts.MaxInFlight)
	}
	return h
}

// ask defers the decision until the hook has answered. Then it is the application's turn.
func (h *hook) ask(r *Request) {
	r.Defer(h.decide)
	r.deferred.why = RefuseHookFailed
	r.deferred.then = (*Conn).askUpgrade
}

// question is what the hook is asked.
type question struct {
	Path    string            `json:"path"`
	Query   string            `json:"query"`
	Remote  string            `json:"remote"`
	Subject string            `json:"subject,omitempty"` // of the token
	Headers map[string]string `json:"headers"`
}

// verdict is what it answers.
type verdict struct {
	Allow     *bool    `json:"allow"`
	Subject   string   `json:"subject"`
	Subscribe []string `json:"subscribe"`
	Publish   []string `json:"publish"`
	Expires   int64    `json:"expires"` // seconds since 1970; 0 is never
	Status    int      `json:"status"`
	Reason    string   `json:"reason"`
}

// decide asks, and takes everything that is no clear answer for a no.
func (h *hook) decide(ctx context.Context, r *Request) error {
	if h.slots != nil {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			return &denial{RefuseHookBusy, rejectHookBusy}
		}
	}
	gone := ctx
	ctx, cancel := context.WithTimeout(ctx, h.opts.Timeout)
	defer cancel()
	v, err := h.post(ctx, r)
	if err == nil {
		err = v.check()
	}
	if err != nil {
		if gone.Err() == nil && !h.failing.Swap(true) {
			h.log.Warn("the connect hook fails, handshakes are refused", "url", h.opts.URL, "error", err)
		}
		return &denial{RefuseHookFailed, rejectHookFailed}
	}
	if h.failing.Swap(false) {
		h.log.Info("the connect hook answers again", "url", h.opts.URL)
	}
	if !*v.Allow {
		return &denial{RefuseHook, v.rejection()}
	}
	return r.Identify(v.identity())
}

func (h *hook) post(ctx context.Context, r *Request) (*verdict, error) {
	q := question{Path: string(r.Path), Query: string(r.Query), Remote: addressText(r.RemoteAddr),
		Subject: r.token.Subject, Headers: map[string]string{}}
	for _, name := range h.opts.Headers {
		if value := joinedHeader(&r.Request, name); value != "" {
			q.Headers[name] = value
		}
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, h.opts.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", "application/json")
	resp, err := h.client.Do(post)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, hookMostSize+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the answer is %s", resp.Status)
	case len(text) > hookMostSize:
		return nil, fmt.Errorf("the answer is larger than %v", Size(hookMostSize))
	}
	v := &verdict{}
	if json.Unmarshal(text, v) != nil {
		return nil, errors.New("the answer is not the JSON object that is expected")
	}
	return v, nil
}

// joinedHeader returns all values of a header as one (RFC 9110, section 5.3; RFC 6265, section 4.2.1).
func joinedHeader(r *codec.Request, name string) string {
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

func (v *verdict) identity() Identity {
	id := Identity{Subject: v.Subject, Subscribe: v.Subscribe, Publish: v.Publish}
	if v.Expires != 0 {
		id.Expires = time.Unix(v.Expires, 0)
	}
	return id
}

func (v *verdict) check() error {
	if v.Allow == nil {
		return errors.New(`the answer has no "allow"`)
	}
	id := v.identity()
	if err := id.check(); err != nil {
		return err
	}
	if *v.Allow && v.Expires != 0 && !time.Now().Before(id.Expires) {
		return errors.New("the answer has expired already")
	}
	return nil
}

// rejection is what the client gets: the hook's words, as far as they make an answer.
func (v *verdict) rejection() *codec.Rejection {
	r := &codec.Rejection{Status: v.Status, Reason: v.Reason[:min(len(v.Reason), 256)]}
	if r.Status < 400 || r.Status > 599 {
		r.Status = 403
	}
	if r.Reason == "" {
		r.Reason = "forbidden"
	}
	return r
}

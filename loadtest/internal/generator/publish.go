package generator

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"carillon/loadtest/internal/wsclient"
)

// publishers send messages by HTTP POST, as an application behind the server would. Each is a goroutine
// with one request in flight.
type publishers struct {
	spec    *Spec
	client  *http.Client
	stopped chan struct{}
	began   int64

	mu       sync.Mutex
	working  int
	sentBy   []uint32 // by publisher of this worker
	unsent   int64
	maxLate  int64
	failedBy map[string]int
}

func newPublishers(s *Spec) *publishers {
	n := s.mine(s.Senders)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = n
	return &publishers{
		spec:     s,
		client:   &http.Client{Transport: transport, Timeout: DialTimeout},
		stopped:  make(chan struct{}),
		sentBy:   make([]uint32, n),
		failedBy: map[string]int{},
	}
}

func (p *publishers) start(at int64) {
	p.began, p.working = at, len(p.sentBy)
	for i := range p.sentBy {
		go p.publish(i)
	}
}

func (p *publishers) stop() { close(p.stopped) }

func (p *publishers) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.working == 0
}

// publish runs one publisher. A failed message is not sent again, and the next one reuses its sequence
// number, so that receivers do not count it as missing.
func (p *publishers) publish(i int) {
	id := i*p.spec.Count + p.spec.Index
	payloads := newPayloads(p.spec.Run, p.spec.Text, p.spec.Size)
	body := payloads.blank()
	sequence := uint32(0)
	index := int64(id)
	total := int64(-1)
	if p.spec.Rate > 0 {
		total = dueWithin(p.spec.Duration, p.spec.Rate)
	}
	for ; total < 0 || index < total; index += int64(p.spec.Senders) {
		at := Monotonic()
		if total >= 0 {
			at = p.began + int64(due(index, p.spec.Rate))
		}
		if !p.await(at) {
			break
		}
		payloads.put(body, stamp{uint32(id), sequence, at})
		late := Monotonic() - at
		err := p.post(body)

		p.mu.Lock()
		p.maxLate = max(p.maxLate, late)
		if err != nil {
			count(p.failedBy, err.Error())
		} else {
			sequence++
			p.sentBy[i] = sequence
		}
		p.mu.Unlock()
		if err != nil && total < 0 && !p.await(Monotonic()+int64(100*time.Millisecond)) {
			break
		}
	}
	missed := int64(0)
	if end := min(total, dueWithin(time.Duration(Monotonic()-p.began), p.spec.Rate)); index < end {
		missed = (end - index + int64(p.spec.Senders) - 1) / int64(p.spec.Senders)
	}
	p.mu.Lock()
	p.unsent += missed
	p.working--
	p.mu.Unlock()
}

// await waits until a given time. It returns false when the window is over.
func (p *publishers) await(at int64) bool {
	select {
	case <-p.stopped:
		return false
	default:
	}
	wait := time.Duration(at - Monotonic())
	if wait <= 0 {
		return true
	}
	select {
	case <-p.stopped:
		return false
	case <-time.After(wait):
		return true
	}
}

func (p *publishers) post(body []byte) error {
	request, err := http.NewRequest(http.MethodPost, p.spec.PublishURL, bytes.NewReader(body))
	if err != nil {
		return errors.New("--publish-url: not a valid URL")
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	if p.spec.Text {
		request.Header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	for _, h := range p.spec.PublishHeader {
		name, value, _ := strings.Cut(h, ":")
		request.Header.Set(name, strings.TrimSpace(value))
	}
	response, err := p.client.Do(request)
	if err != nil {
		return stripURL(err)
	}
	defer response.Body.Close()
	words, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	if response.StatusCode/100 != 2 {
		return wsclient.Refusal(response.Status, words)
	}
	return nil
}

func (p *publishers) report(r *Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.Sent = 0
	for _, n := range p.sentBy {
		r.Sent += int64(n)
	}
	r.Unsent, r.MaxLate = p.unsent, p.maxLate
	r.PublishFailedBy = maps.Clone(p.failedBy)
	if r.Event == EventEnded {
		r.SentBy = append(r.SentBy, p.sentBy...)
	}
}

// stripURL returns an error of net/http without its URL, which may hold secrets.
func stripURL(err error) error {
	if e, ok := err.(*url.Error); ok {
		return e.Err
	}
	return err
}

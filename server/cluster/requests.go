package cluster

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"carillon/internal/shrink"

	"github.com/nats-io/nats.go"
)

var errTimeout = errors.New("no response in time")

// calls are requests whose answers have not all come. All answers come by one subscription.
type calls struct {
	prefix string // immutable

	mu      sync.Mutex
	next    uint64                    // guarded by mu
	pending shrink.Map[uint64, *call] // guarded by mu
}

// call is a request. answer gets each answer, or an error and nothing after it, and reports whether more are
// expected.
type call struct {
	timer *time.Timer

	mu     sync.Mutex
	answer func(*nats.Msg, error) bool // guarded by mu; nil when the request is over
}

// deliver hands over an answer, unless the request is over.
func (c *call) deliver(m *nats.Msg, err error) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer == nil {
		return false
	}
	if more = c.answer(m, err) && err == nil; !more {
		c.answer = nil
	}
	return more
}

// end ends the request without an answer, and reports whether it was not over before.
func (c *call) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.answer != nil
	c.answer = nil
	return was
}

func (c *calls) init() {
	c.prefix = nats.NewInbox() + "."
}

func (c *calls) listen(nc *nats.Conn) error {
	sub, err := nc.Subscribe(c.prefix+"*", c.answered)
	if err == nil {
		err = sub.SetPendingLimits(1<<20, 512<<20)
	}
	return err
}

// open begins a request; the answers have to go to the subject reply. A request that is not over in time
// ends with errTimeout.
func (c *calls) open(timeout time.Duration, answer func(*nats.Msg, error) bool) (reply, token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	n := c.next
	c.pending.Set(n, &call{answer: answer, timer: time.AfterFunc(timeout, func() {
		if one := c.remove(n); one != nil {
			one.deliver(nil, errTimeout)
		}
	})})
	token = strconv.FormatUint(n, 36)
	return c.prefix + token, token
}

func (c *calls) remove(n uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.pending.Get(n)
	if one != nil {
		c.pending.Delete(n)
		one.timer.Stop()
	}
	return one
}

// close ends a request, and reports whether it had not ended before.
func (c *calls) close(token string) bool {
	n, _ := strconv.ParseUint(token, 36, 64)
	one := c.remove(n)
	return one != nil && one.end()
}

func (c *calls) answered(m *nats.Msg) {
	n, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, c.prefix), 36, 64)
	if err != nil {
		return
	}
	c.mu.Lock()
	one := c.pending.Get(n)
	c.mu.Unlock()
	if one != nil && !one.deliver(m, nil) {
		c.remove(n)
	}
}

// failAll ends all requests, since their answers cannot come any more.
func (c *calls) failAll(err error) {
	c.mu.Lock()
	all := c.pending
	c.pending = shrink.Map[uint64, *call]{}
	c.mu.Unlock()
	for _, one := range all.All() {
		one.timer.Stop()
		one.deliver(nil, err)
	}
}

// exchange sends a question. take gets each answer, or an error and nothing after it, and reports whether more are
// expected.
func (b *Broker) exchange(subject string, body []byte, timeout time.Duration, take func(*nats.Msg, error) (more bool)) {
	reply, token := b.calls.open(timeout, take)
	if err := b.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: body}); err != nil && b.calls.close(token) {
		take(nil, b.publishError(err))
	}
}

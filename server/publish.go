package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

func (f *follower) keeps(name string) bool {
	return topic.RuleOf(f.hub.settings().rules, name).HasHistory()
}

// sureTime is how long a publisher waits at most until the broker has its message.
const sureTime = 15 * time.Second

// published is what became of a message.
type published struct {
	receipt topic.Receipt
	err     error
}

// publishAndWait waits until the broker has the message, if there is one.
func (h *hub) publishAndWait(ctx context.Context, p topic.Publication) (topic.Receipt, error) {
	sent := make(chan published, 1)
	receipt, ready, err := h.remote.publish(publication{Publication: p}, nothing, func(r topic.Receipt, err error) { sent <- published{r, err} })
	if ready {
		return receipt, err
	}
	ctx, cancel := context.WithTimeout(ctx, sureTime)
	defer cancel()
	select {
	case got := <-sent:
		return got.receipt, got.err
	case <-ctx.Done():
	}
	select { // it may have come at the same time
	case got := <-sent:
		return got.receipt, got.err
	default:
		return topic.Receipt{}, fmt.Errorf("%w: no response in time", topic.ErrUncertain)
	}
}

func (f *follower) publish(p publication, wait func(), done func(topic.Receipt, error)) (topic.Receipt, bool, error) {
	wait()
	if rules := f.hub.settings().rules; topic.RuleOf(rules, p.Topic).HasHistory() {
		f.publishPersistent(&p, topic.RuleIndex(rules, p.Topic), done)
	} else {
		f.publishTransient(&p, done)
	}
	return topic.Receipt{}, false, nil
}

func (f *follower) publishTransient(p *publication, done func(topic.Receipt, error)) {
	var receipt topic.Receipt
	h := &relayAck{done: func(err error) {
		if err != nil {
			err = uncertain(err)
		}
		done(receipt, err)
	}}
	var err error
	if receipt, err = f.hub.publish(p, h.end); err != nil {
		done(topic.Receipt{}, err)
		return
	}
	h.returns()
}

func (f *follower) publishPersistent(p *publication, rule int, done func(topic.Receipt, error)) {
	err := f.hub.check(p)
	if err == nil {
		err = f.awayFor(rule)
	}
	if err != nil {
		done(topic.Receipt{}, err)
		return
	}
	name := string([]byte(p.Topic)) // which may be a part of something large
	out := topic.Publication{Topic: name, Format: p.Format, Payload: bytes.Clone(p.Payload), Key: p.Key, Publisher: p.Publisher}
	f.stats.persistentOut.Add(1)
	f.broker.PublishPersistent(out, rule, func(at topic.Position, err error) {
		f.failed(err)
		switch {
		case err == nil:
			f.hub.published.Add(1)
			done(topic.Receipt{Offset: at.Offset, Epoch: at.Epoch, Subscribers: f.audienceOf(name)}, nil)
		case errors.Is(err, topic.ErrNoCluster), errors.Is(err, topic.ErrOverloaded), errors.Is(err, topic.ErrTooLarge):
			done(topic.Receipt{}, err)
		default:
			done(topic.Receipt{}, uncertain(err))
		}
	})
}

// audienceOf is how many connections of this server a message for a topic is for.
func (f *follower) audienceOf(topic string) (n int) {
	if t := f.hub.find(topic); t != nil {
		n = int(t.subscribers)
		t.mu.Unlock()
	}
	var some [8]*source
	f.hub.mu.RLock()
	defer f.hub.mu.RUnlock()
	for _, p := range f.hub.patterns.match(topic, some[:0]) {
		p.mu.Lock()
		n += int(p.subscribers)
		p.mu.Unlock()
	}
	return n
}

// flightOf is what a publication counts as in the line.
func (h *hub) flightOf(p *publication) reactor.Flight {
	return reactor.Flight{Bytes: reactor.FlightCost + len(p.Topic) + len(p.Payload), Transient: !h.remote.keeps(p.Topic)}
}

package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

func (f *Follower) Keeps(name string) bool {
	return topic.RuleOf(f.hub.settings().Rules, name).HasHistory()
}

// SureTime is how long a publisher waits at most until the broker has its message.
const SureTime = 15 * time.Second

// Published is what became of a message.
type Published struct {
	Receipt topic.Receipt
	Err     error
}

// PublishAndWait waits until the broker has the message, if there is one.
func (h *Hub) PublishAndWait(ctx context.Context, p topic.Publication) (topic.Receipt, error) {
	sent := make(chan Published, 1)
	receipt, ready, err := h.Remote.Publish(Publication{Publication: p}, Nothing, func(r topic.Receipt, err error) { sent <- Published{r, err} })
	if ready {
		return receipt, err
	}
	ctx, cancel := context.WithTimeout(ctx, SureTime)
	defer cancel()
	select {
	case got := <-sent:
		return got.Receipt, got.Err
	case <-ctx.Done():
	}
	select { // it may have come at the same time
	case got := <-sent:
		return got.Receipt, got.Err
	default:
		return topic.Receipt{}, fmt.Errorf("%w: no response in time", topic.ErrUncertain)
	}
}

func (f *Follower) Publish(p Publication, wait func(), done func(topic.Receipt, error)) (topic.Receipt, bool, error) {
	wait()
	if rules := f.hub.settings().Rules; topic.RuleOf(rules, p.Topic).HasHistory() {
		f.publishPersistent(&p, topic.RuleIndex(rules, p.Topic), done)
	} else {
		f.publishTransient(&p, done)
	}
	return topic.Receipt{}, false, nil
}

func (f *Follower) publishTransient(p *Publication, done func(topic.Receipt, error)) {
	var receipt topic.Receipt
	h := &relayAck{done: func(err error) {
		if err != nil {
			err = Uncertain(err)
		}
		done(receipt, err)
	}}
	var err error
	if receipt, err = f.hub.Publish(p, h.end); err != nil {
		done(topic.Receipt{}, err)
		return
	}
	h.returns()
}

func (f *Follower) publishPersistent(p *Publication, rule int, done func(topic.Receipt, error)) {
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
	f.stats.PersistentOut.Add(1)
	f.broker.PublishPersistent(out, rule, func(at topic.Position, err error) {
		f.failed(err)
		switch {
		case err == nil:
			f.hub.Published.Add(1)
			done(topic.Receipt{Offset: at.Offset, Epoch: at.Epoch, Subscribers: f.audienceOf(name)}, nil)
		case errors.Is(err, topic.ErrNoCluster), errors.Is(err, topic.ErrOverloaded), errors.Is(err, topic.ErrTooLarge):
			done(topic.Receipt{}, err)
		default:
			done(topic.Receipt{}, Uncertain(err))
		}
	})
}

// audienceOf is how many connections of this server a message for a topic is for.
func (f *Follower) audienceOf(topic string) (n int) {
	if t := f.hub.Find(topic); t != nil {
		n = int(t.Subscribers)
		t.Mu.Unlock()
	}
	var some [8]*Source
	f.hub.Mu.RLock()
	defer f.hub.Mu.RUnlock()
	for _, p := range f.hub.Patterns.match(topic, some[:0]) {
		p.Mu.Lock()
		n += int(p.Subscribers)
		p.Mu.Unlock()
	}
	return n
}

// FlightOf is what a publication counts as in the line.
func (h *Hub) FlightOf(p *Publication) reactor.Flight {
	return reactor.Flight{Bytes: reactor.FlightCost + len(p.Topic) + len(p.Payload), Transient: !h.Remote.Keeps(p.Topic)}
}

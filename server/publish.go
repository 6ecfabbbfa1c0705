package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"carillon/server/topic"
)

// PublishFunc publishes as [Server.Publish] does, and may be called on an event loop: it does not wait. done is
// called once, from any goroutine and perhaps before PublishFunc returns, with what Publish would return, and must
// not block. With [Options.Broker] that is when the broker has the message, for all topics: an error is then
// [ErrUncertain] where this server's subscribers have got it. To publish the message again with its key is safe: for a
// topic with history that goes to the broker again, and for others done gets what the first one came to.
//
// What one goroutine publishes to a topic gets its place in that order.
func (s *Server) PublishFunc(p Publication, done func(Receipt, error)) {
	s.publishFunc(&publication{Publication: p}, done)
}

func (s *Server) publishFunc(p *publication, done func(Receipt, error)) {
	if s.hub.cluster != nil {
		s.hub.cluster.publishFunc(p, done)
		return
	}
	done(s.hub.publish(p, nil))
}

// keeps says whether the broker keeps a topic's messages. It may be called on nil.
func (cl *cluster) keeps(name string) bool {
	if cl == nil {
		return false
	}
	return topic.RuleOf(cl.srv.opts().Topics, name).HasHistory()
}

func (cl *cluster) publish(p *publication) (Receipt, error) {
	if cl.keeps(p.Topic) {
		return cl.publishAndWait(context.Background(), p)
	}
	return cl.hub.publish(p, nil)
}

// sureTime is how long a publisher waits at most until the broker has its message.
const sureTime = 15 * time.Second

// publishAndWait waits until the broker has the message.
func (cl *cluster) publishAndWait(ctx context.Context, p *publication) (Receipt, error) {
	if cl.onLoop() {
		return Receipt{}, fmt.Errorf("publish: %w", ErrOnLoop)
	}
	ctx, cancel := context.WithTimeout(ctx, sureTime)
	defer cancel()
	sent := make(publishing, 1)
	cl.publishFunc(p, func(r Receipt, err error) { sent <- published{r, err} })
	got := sent.wait(ctx)
	return got.receipt, got.err
}

// onLoop says whether it is called on an event loop.
func (cl *cluster) onLoop() bool {
	now := currentGoroutine()
	for _, sh := range cl.srv.allShards() {
		if sh.goroutine == now {
			return true
		}
	}
	return false
}

func (cl *cluster) publishFunc(p *publication, done func(Receipt, error)) {
	if rules := cl.srv.opts().Topics; topic.RuleOf(rules, p.Topic).HasHistory() {
		cl.publishKept(p, topic.RuleIndex(rules, p.Topic), done)
		return
	}
	var receipt Receipt
	h := &handover{done: func(err error) {
		if err != nil {
			err = uncertain(err)
		}
		done(receipt, err)
	}}
	var err error
	if receipt, err = cl.hub.publish(p, h.end); err != nil {
		done(Receipt{}, err)
		return
	}
	h.returns()
}

func (cl *cluster) publishKept(p *publication, rule int, done func(Receipt, error)) {
	err := cl.hub.check(p)
	if err == nil {
		err = cl.awayFor(rule)
	}
	if err != nil {
		done(Receipt{}, err)
		return
	}
	topic := string([]byte(p.Topic)) // which may be a part of something large
	out := Publication{Topic: topic, Format: p.Format, Payload: bytes.Clone(p.Payload), Key: p.Key, Publisher: p.Publisher}
	cl.stats.keptOut.Add(1)
	cl.broker.PublishPersistent(out, rule, func(at Position, err error) {
		cl.failed(err)
		switch {
		case err == nil:
			cl.hub.published.Add(1)
			done(Receipt{Offset: at.Offset, Epoch: at.Epoch, Subscribers: cl.audienceOf(topic)}, nil)
		case errors.Is(err, ErrNoCluster), errors.Is(err, ErrOverloaded), errors.Is(err, ErrTooLarge):
			done(Receipt{}, err)
		default:
			done(Receipt{}, uncertain(err))
		}
	})
}

// audienceOf is how many connections of this server a message for a topic is for.
func (cl *cluster) audienceOf(topic string) (n int) {
	if t := cl.hub.find(topic); t != nil {
		n = int(t.subscribers)
		t.mu.Unlock()
	}
	var some [8]*source
	cl.hub.mu.RLock()
	defer cl.hub.mu.RUnlock()
	for _, p := range cl.hub.patterns.match(topic, some[:0]) {
		p.mu.Lock()
		n += int(p.subscribers)
		p.mu.Unlock()
	}
	return n
}

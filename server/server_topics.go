package server

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"carillon/server/internal/hub"
	"carillon/server/topic"
)

// Publish sends a message to the subscribers of a topic, on whatever endpoints they are. All of them get
// the topic's messages in one order, that of their offsets.
//
// What one goroutine publishes to a topic and sends to a connection arrives there in that order, unless the
// connection is too slow for a topic with [TopicRule.Latest]. Different topics do not wait for each other.
//
// Publish does not wait for delivery. It fails with a *[TopicError], [ErrTooLarge], [ErrNotText], [ErrNotJSON],
// [ErrKey], [ErrTooManyTopics] or [ErrOverloaded]; then no subscriber gets the message.
//
// With [Options.Broker] it also fails with [ErrNoCluster]. A message for a topic that a [TopicRule] with history
// matches then gets its place from the broker, and Publish waits for that, at most 15 seconds. So it must not be
// called on an event loop, as handlers are, and returns [ErrOnLoop] there: see [Server.PublishFunc]. If it returns
// [ErrUncertain], the message may have been published or not. Subscribers of this server, too, get it when it comes
// back from the broker. To any other topic it does not wait, nor say whether other servers get the message.
func (s *Server) Publish(p Publication) (Receipt, error) {
	if !s.hub.Remote.Keeps(p.Topic) {
		return s.hub.Publish(&hub.Publication{Publication: p}, nil)
	}
	if s.engine.OnLoop() {
		return Receipt{}, fmt.Errorf("publish: %w", ErrOnLoop)
	}
	return s.hub.PublishAndWait(context.Background(), p)
}

// PublishFunc publishes as [Server.Publish] does, and may be called on an event loop: it does not wait. done is
// called once, from any goroutine and perhaps before PublishFunc returns, with what Publish would return, and must
// not block. With [Options.Broker] that is when the broker has the message, for all topics: an error is then
// [ErrUncertain] where this server's subscribers have got it. To publish the message again with its key is safe: for a
// topic with history that goes to the broker again, and for others done gets what the first one came to.
//
// What one goroutine publishes to a topic gets its place in that order.
func (s *Server) PublishFunc(p Publication, done func(Receipt, error)) {
	if receipt, ready, err := s.hub.Remote.Publish(hub.Publication{Publication: p}, hub.Nothing, done); ready {
		done(receipt, err)
	}
}

// Topics lists the topics whose names match a pattern, by name. They are as many as Limits.MaxTopics
// allows, so this may take long.
func (s *Server) Topics(pattern string) ([]TopicInfo, error) {
	if err := CheckPattern(pattern); err != nil {
		return nil, err
	}
	var list []TopicInfo
	for i := range s.hub.Parts {
		for t := range s.hub.Parts[i].All() {
			if !topic.Matches(pattern, t.Name) {
				continue
			}
			t.Mu.Lock()
			if !t.Forgotten {
				list = append(list, t.Info(s.engine.AgeMillis()))
			}
			t.Mu.Unlock()
		}
	}
	slices.SortFunc(list, func(a, b TopicInfo) int { return cmp.Compare(a.Topic, b.Topic) })
	return list, nil
}

// Topic describes one topic, and reports whether it exists.
func (s *Server) Topic(name string) (TopicInfo, bool) {
	t := s.hub.Find(name)
	if t == nil {
		return TopicInfo{}, false
	}
	defer t.Mu.Unlock()
	return t.Info(s.engine.AgeMillis()), true
}

// History returns messages that a topic keeps, at most limit of them: the first ones after from.Since, or
// the newest from.Last ones. A topic that does not exist has none. It fails with a *[TopicError].
//
// With [Options.Broker] it waits for the messages of a topic that the broker keeps, at most 10 seconds. Then it also
// fails with [ErrNoCluster], and with [ErrOnLoop] on an event loop.
func (s *Server) History(name string, from Start, limit int) (Past, error) {
	if err := s.hub.WaitFor(name, from); err != nil {
		return Past{}, err
	}
	past, list, err := s.hub.Past(name, from, limit)
	for _, m := range list {
		past.Messages = append(past.Messages, Message{Topic: m.Topic.Name, Offset: m.Offset, Time: time.UnixMilli(m.Time), Format: m.Format, Payload: m.Raw().Payload()})
	}
	return past, err
}

// Subscribers lists the connections that are subscribed to exactly this topic or pattern, in no order.
func (s *Server) Subscribers(topic string) []*Conn {
	found, _ := s.hub.Subscribers(topic, math.MaxInt)
	var list []*Conn
	for _, c := range found {
		list = append(list, (*Conn)(c))
	}
	return list
}

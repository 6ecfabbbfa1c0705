package server

import (
	"context"
	"encoding/json"
	"fmt"

	"carillon/codec"
	"carillon/server/internal/admin"
	"carillon/server/internal/hub"
	"carillon/server/internal/protocol"
)

func (b backend) Publish(ctx context.Context, p Publication) (Receipt, error) {
	return b.srv.hub.PublishAndWait(ctx, p)
}

func (b backend) PublishFunc(p Publication, done func(Receipt, error)) { b.srv.PublishFunc(p, done) }

func (b backend) HasEndpoint(path string) bool { return b.srv.byPath[path] != nil }

func (b backend) Broadcast(ctx context.Context, path string, f *codec.Frame) (connections int, err error) {
	to := b.srv.endpoints
	if path != "" {
		ep := b.srv.byPath[path]
		if ep == nil {
			return 0, fmt.Errorf("%w: %.100q", ErrNoEndpoint, path)
		}
		to = []*endpoint{ep}
	}
	sent := make(chan error, len(to))
	connections, err = b.srv.broadcast(f, func(err error) { sent <- err }, to...)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, hub.SureTime)
	defer cancel()
	for range to {
		select {
		case wrong := <-sent:
			if wrong != nil {
				err = hub.Uncertain(wrong)
			}
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: no response in time", ErrUncertain)
		}
	}
	return connections, err
}

func (b backend) Topics(pattern, after string, limit int) (list []TopicInfo, next string) {
	names, more := b.srv.hub.Names(pattern, after, limit)
	for _, name := range names {
		if info, exists := b.srv.Topic(name); exists {
			list = append(list, info)
		}
	}
	if more {
		next = names[len(names)-1]
	}
	return list, next
}

// Topic adds up the subscribers of all servers. What else is known of the topic is this server's, if it
// has the topic. That a topic is not there is said only when all servers have said so, and the broker, if it keeps it.
func (b backend) Topic(ctx context.Context, name string) (t admin.Topic, err error) {
	keeps := b.srv.hub.Remote.Keeps(name)
	notLoaded := b.srv.hub.WaitFor(name, Start{}) // what the broker keeps; else what is known here
	known, exists := b.srv.Topic(name)
	exists = exists && (!keeps || known.Subscribers > 0 || known.History > 0) // and not only because it was asked for
	t.Info = known
	answers, all := b.srv.hub.AskAndWait(ctx, hub.AskAboutTopic, hub.AskTopic{Topic: name})
	for _, one := range answers {
		if len(one.Body) == 0 { // it does not have the topic
			continue
		}
		var info TopicInfo
		if json.Unmarshal(one.Body, &info) != nil {
			*all = false
			continue
		}
		n := t.Subscribers + info.Subscribers
		if !exists && (n > 0 || info.History > 0 || !keeps) {
			t.Info, exists = info, true
		}
		t.Subscribers = n
	}
	t.Complete = all
	switch {
	case exists:
		return t, nil
	case notLoaded != nil:
		return t, notLoaded
	case all != nil && !*all:
		return t, fmt.Errorf("%w: %q is unknown here, and not every server answered", ErrNoCluster, name)
	}
	return t, fmt.Errorf("%w: %q has no subscribers, and nothing was published to it recently", admin.ErrNoTopic, name)
}

func (b backend) History(name string, since *Position, limit int) (json.Marshaler, error) {
	if err := b.srv.hub.WaitFor(name, Start{Since: since}); err != nil {
		return nil, err
	}
	return protocol.NewHistory(b.srv.hub, name, since, limit)
}

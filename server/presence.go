package server

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"carillon/internal/shrink"
	"carillon/server/internal/envelope"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// presence lists the subscribers of a topic.
type presence struct {
	Topic       string      `json:"topic"`
	Count       int         `json:"count"`
	Connections []presentee `json:"connections"`
	Complete    *bool       `json:"complete,omitempty"` // in a cluster: whether all servers have told of theirs
	bytes       int         // of Connections in JSON, about
}

type presentee struct {
	ID      string `json:"id"`
	Subject string `json:"subject,omitempty"`
}

// What a reply about presence lists at most: so many connections, and about so many bytes of JSON. A loop encodes them
// in one step, and one server's answer to another has to fit into a message.
const (
	maxPresent      = 1000
	maxPresentBytes = 256 << 10
)

// subscribers lists subscribers, up to a limit, and counts all of them.
func (h *hub) subscribers(topic string, limit int) (list []*reactor.Conn, count int) {
	var src *source
	if t := h.find(topic); t != nil {
		src = &t.source
	} else if src = h.findPattern(topic); src == nil {
		return nil, 0
	}
	defer src.mu.Unlock()
	for _, l := range src.locals {
		l.sh.Mu.Lock()
		for _, a := range l.audiences {
			if a == nil {
				continue
			}
			n := 0
			list, n = a.AppendMembers(list, limit)
			count += n
		}
		l.sh.Mu.Unlock()
	}
	return list, count
}

// presentHere lists this server's subscribers.
func (h *hub) presentHere(topic string) *presence {
	some, count := h.subscribers(topic, maxPresent)
	p := &presence{Topic: topic, Count: count, Connections: []presentee{}}
	for _, c := range some {
		if !p.add(presentee{strconv.FormatUint(c.ID(), 10), h.owner.subject(c)}) {
			break
		}
	}
	return p
}

// add puts a subscriber on the list, unless that is long enough.
func (p *presence) add(one presentee) bool {
	const around = len(`{"id":"","subject":""},`)
	p.bytes += around + len(one.ID) + envelope.TextSize(one.Subject)
	if len(p.Connections) == maxPresent || p.bytes > maxPresentBytes {
		return false
	}
	p.Connections = append(p.Connections, one)
	return true
}

// appendTo appends the list as JSON, as encoding/json would in more time.
func (p *presence) AppendTo(b []byte) []byte {
	b = append(envelope.AppendText(append(b, `{"topic":`...), p.Topic), `,"count":`...)
	b = append(strconv.AppendInt(b, int64(p.Count), 10), `,"connections":[`...)
	for i, one := range p.Connections {
		if i > 0 {
			b = append(b, ',')
		}
		b = envelope.AppendText(append(b, `{"id":`...), one.ID)
		if one.Subject != "" {
			b = envelope.AppendText(append(b, `,"subject":`...), one.Subject)
		}
		b = append(b, '}')
	}
	b = append(b, ']')
	if p.Complete != nil {
		b = strconv.AppendBool(append(b, `,"complete":`...), *p.Complete)
	}
	return append(b, '}')
}

// presenceQueries are the questions to the other servers about who is subscribed to a topic. There is one at a time
// about each topic: whoever asks meanwhile shares the next one, so that everybody's answer was given after they asked,
// and many who ask cost no more than one. Its zero value is ready.
type presenceQueries struct {
	mu      sync.Mutex
	waiting shrink.Map[string, []func(*presence)] // guarded by mu: by topic, while a question is under way
}

// enter has done wait for the next answer about a topic, or returns false when none is under way: then the caller asks.
func (q *presenceQueries) enter(topic string, done func(*presence)) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, underWay := q.waiting.Lookup(topic)
	if !underWay {
		q.waiting.Set(topic, nil)
		return false
	}
	q.waiting.Set(topic, append(list, done))
	return true
}

// next ends a query and returns those that wait for another one. Without any, none is under way.
func (q *presenceQueries) next(topic string) []func(*presence) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.waiting.Get(topic)
	if len(list) == 0 {
		q.waiting.Delete(topic)
	} else {
		q.waiting.Set(topic, nil)
	}
	return list
}

func (f *follower) present(topic string, wait func(), done func(*presence)) (*presence, bool) {
	wait()
	if !f.presence.enter(topic, done) {
		f.askPresence(topic, []func(*presence){done})
	}
	return nil, false
}

// askPresence asks for all who wait. The answers are large, and the goroutine on which they come has those to
// everything else that this server waits for, so they are read on another one, with the large requests.
func (f *follower) askPresence(name string, list []func(*presence)) {
	f.ask(askAboutPresence, askTopic{name}, func(answers []topic.Answer, all *bool) {
		size := 0
		for _, one := range answers {
			size += len(one.Body)
		}
		read := func() {
			p := f.hub.presentWith(name, answers, all)
			for _, done := range list {
				done(p)
			}
			if more := f.presence.next(name); len(more) > 0 {
				f.askPresence(name, more)
			}
		}
		f.hub.engine.Offload.Add(new(reactor.Usage), f.hub.engine.Uptime(), time.Duration(size)*reactor.ParseByte, &reactor.OffloadJob{Size: size, Do: read})
	})
}

// presentWith lists this server's subscribers, and those in the answers of others.
func (h *hub) presentWith(topic string, answers []topic.Answer, all *bool) *presence {
	p := h.presentHere(topic)
	p.Complete = all
	for _, one := range answers {
		var more presence
		if json.Unmarshal(one.Body, &more) != nil {
			*all = false
			continue
		}
		p.Count += more.Count
		for _, one := range more.Connections {
			if !p.add(one) {
				break
			}
		}
	}
	return p
}

package hub

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"carillon/internal/shrink"
	"carillon/server/internal/envelope"
	"carillon/server/internal/fair"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// Presence lists the subscribers of a topic.
type Presence struct {
	Topic       string      `json:"topic"`
	Count       int         `json:"count"`
	Connections []Presentee `json:"connections"`
	Complete    *bool       `json:"complete,omitempty"` // in a cluster: whether all servers have told of theirs
	bytes       int         // of Connections in JSON, about
}

// Presentee is a subscriber on the list.
type Presentee struct {
	ID      string `json:"id"`
	Subject string `json:"subject,omitempty"`
}

// What a reply about presence lists at most: so many connections, and about so many bytes of JSON. A loop encodes them
// in one step, and one server's answer to another has to fit into a message.
const (
	maxPresent      = 1000
	maxPresentBytes = 256 << 10
)

// Subscribers lists subscribers, up to a limit, and counts all of them.
func (h *Hub) Subscribers(topic string, limit int) (list []*reactor.Conn, count int) {
	var src *Source
	if t := h.Find(topic); t != nil {
		src = &t.Source
	} else if src = h.findPattern(topic); src == nil {
		return nil, 0
	}
	defer src.Mu.Unlock()
	for _, l := range src.Locals {
		l.Shard.Mu.Lock()
		for _, a := range l.Audiences {
			if a == nil {
				continue
			}
			n := 0
			list, n = a.AppendMembers(list, limit)
			count += n
		}
		l.Shard.Mu.Unlock()
	}
	return list, count
}

// PresentHere lists this server's subscribers.
func (h *Hub) PresentHere(topic string) *Presence {
	some, count := h.Subscribers(topic, maxPresent)
	p := &Presence{Topic: topic, Count: count, Connections: []Presentee{}}
	for _, c := range some {
		if !p.add(Presentee{strconv.FormatUint(c.ID(), 10), h.owner.Subject(c)}) {
			break
		}
	}
	return p
}

// add puts a subscriber on the list, unless that is long enough.
func (p *Presence) add(one Presentee) bool {
	const around = len(`{"id":"","subject":""},`)
	p.bytes += around + len(one.ID) + envelope.TextSize(one.Subject)
	if len(p.Connections) == maxPresent || p.bytes > maxPresentBytes {
		return false
	}
	p.Connections = append(p.Connections, one)
	return true
}

// AppendTo appends the list as JSON, as encoding/json would in more time.
func (p *Presence) AppendTo(b []byte) []byte {
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
// about each topic: callers that ask meanwhile share the next one, so that every answer was given after its caller
// asked, and many callers cost no more than one. Its zero value is ready.
type presenceQueries struct {
	Mu      sync.Mutex
	Waiting shrink.Map[string, []func(*Presence)] // guarded by mu: by topic, while a question is under way
}

// enter has done wait for the next answer about a topic, or returns false when none is under way: then the caller asks.
func (q *presenceQueries) enter(topic string, done func(*Presence)) bool {
	q.Mu.Lock()
	defer q.Mu.Unlock()
	list, underWay := q.Waiting.Lookup(topic)
	if !underWay {
		q.Waiting.Set(topic, nil)
		return false
	}
	q.Waiting.Set(topic, append(list, done))
	return true
}

// next ends a query and returns those that wait for another one. Without any, none is under way.
func (q *presenceQueries) next(topic string) []func(*Presence) {
	q.Mu.Lock()
	defer q.Mu.Unlock()
	list := q.Waiting.Get(topic)
	if len(list) == 0 {
		q.Waiting.Delete(topic)
	} else {
		q.Waiting.Set(topic, nil)
	}
	return list
}

func (f *Follower) Present(topic string, wait func(), done func(*Presence)) (*Presence, bool) {
	wait()
	if !f.Presence.enter(topic, done) {
		f.askPresence(topic, []func(*Presence){done})
	}
	return nil, false
}

// askPresence asks for all who wait. The answers are large, and the goroutine on which they come has those to
// everything else that this server waits for, so they are read on another one, with the large requests.
func (f *Follower) askPresence(name string, list []func(*Presence)) {
	f.ask(AskAboutPresence, AskTopic{name}, func(answers []topic.Answer, all *bool) {
		size := 0
		for _, one := range answers {
			size += len(one.Body)
		}
		read := func() {
			p := f.hub.presentWith(name, answers, all)
			for _, done := range list {
				done(p)
			}
			if more := f.Presence.next(name); len(more) > 0 {
				f.askPresence(name, more)
			}
		}
		f.hub.engine.Offload.Add(new(fair.Usage), f.hub.engine.Uptime(), time.Duration(size)*reactor.ParseByte, &fair.Job{Size: size, Do: read})
	})
}

// presentWith lists this server's subscribers, and those in the answers of others.
func (h *Hub) presentWith(topic string, answers []topic.Answer, all *bool) *Presence {
	p := h.PresentHere(topic)
	p.Complete = all
	for _, one := range answers {
		var more Presence
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

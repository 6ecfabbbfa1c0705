// Package demo is what carillon shows at /: a group chat, a board of what the server does, and how to try
// the endpoints. It uses nothing of the server that an application could not.
//
//	d := demo.New(demo.Options{})
//	options.Endpoints = append(options.Endpoints, d.Endpoints()...)
//	options.Topics = append(d.Topics(), options.Topics...)
//	s, err := server.New(options) // and serve d.Handler() at /
//	d.Attach(s)
//	defer d.Close()
package demo

import (
	"sync"
	"sync/atomic"
	"time"

	"carillon/server"
)

// Options are what can be set. The zero value is good.
type Options struct {
	// Idle is how long a guest of the chat may say nothing before the connection is closed. Default 5m.
	Idle time.Duration
}

// Demo is the pages and what they need of a server. Its methods may be called from any goroutine.
type Demo struct {
	pages *pages
	room  *room
	board board

	server atomic.Pointer[server.Server]
	close  sync.Once
	closed chan struct{}
	ended  sync.WaitGroup
}

// New makes a demo that belongs to no server yet.
func New(o Options) *Demo {
	if o.Idle <= 0 {
		o.Idle = 5 * time.Minute
	}
	d := &Demo{pages: newPages(), closed: make(chan struct{})}
	d.room = newRoom(&d.server, o.Idle)
	return d
}

// Endpoints are the ones that the pages talk to: the chat's, and that of the board's topics.
func (d *Demo) Endpoints() []server.Endpoint {
	return []server.Endpoint{
		{Path: "/demo/chat", Handler: d.room.handler()},
		{Path: "/demo/live", Mode: server.ModeTopics, Topics: server.TopicAccess{
			Subscribe:        []string{boardTopic, probeTopics},
			Publish:          []string{probeTopics},
			MaxSubscriptions: 4,
		}},
	}
}

// Topics are the rules for the topics of the chat and the board. They must come before any other rule
// that matches them, such as one for all topics.
func (d *Demo) Topics() []server.TopicRule {
	return []server.TopicRule{
		{Match: chatTopic, History: 500, MaxAge: time.Hour},
		{Match: boardTopic, History: boardSeconds, MaxAge: boardSeconds * time.Second},
		{Match: probeTopics}, // a probe needs no history
	}
}

// Attach begins the work for a server that was made with the endpoints and the topics. It may be called
// once, before or after the server runs.
func (d *Demo) Attach(s *server.Server) {
	d.server.Store(s)
	d.ended.Go(func() { d.every(min(time.Second, d.room.idle/4), d.room.sweep) })
	d.ended.Go(func() { d.every(time.Second, func(time.Time) { d.board.tick(s) }) })
}

func (d *Demo) every(interval time.Duration, do func(now time.Time)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-d.closed:
			return
		case now := <-ticker.C:
			do(now)
		}
	}
}

// Close ends that work. The connections are the server's.
func (d *Demo) Close() {
	d.close.Do(func() { close(d.closed) })
	d.ended.Wait()
}

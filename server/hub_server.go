package server

import (
	"encoding/json"

	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// hubServer is the server as its hub sees it: see [hub.Owner].
type hubServer Server

func (o *hubServer) server() *Server { return (*Server)(o) }

func (o *hubServer) NodeInfo() topic.NodeInfo {
	s := o.server()
	state := "ready"
	switch {
	case s.drainState.current() != nil:
		state = "draining"
	case len(s.unready()) > 0:
		state = "unready"
	}
	return topic.NodeInfo{Version: BuildInfo().Version, Started: s.engine.Begin, Connections: s.Count(), State: state}
}

// Answer answers a question of another server.
func (o *hubServer) Answer(subject string, question []byte) []byte {
	s := o.server()
	var topic hub.AskTopic
	var conn hub.AskConnection
	switch subject {
	case hub.AskAboutTopic:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		if info, exists := s.Topic(topic.Topic); exists {
			return envelope.AppendJSON(nil, info)
		}
	case hub.AskAboutPresence:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		return s.hub.PresentHere(topic.Topic).AppendTo(nil)
	case hub.AskAboutConnection, hub.AskToClose:
		if json.Unmarshal(question, &conn) != nil {
			return nil
		}
		c := s.index.find(s, conn.ID)
		switch {
		case c == nil:
		case subject == hub.AskAboutConnection:
			return envelope.AppendJSON(nil, c.fullInfo())
		case c.Close(conn.Code, conn.Reason) == nil:
			return []byte("{}")
		}
	}
	return nil
}

func (o *hubServer) EndpointSource(path string) *hub.EndpointSource {
	if ep := o.byPath[path]; ep != nil {
		return &ep.EndpointSource
	}
	return nil
}

func (o *hubServer) Subject(c *reactor.Conn) string { return (*Conn)(c).Subject() }

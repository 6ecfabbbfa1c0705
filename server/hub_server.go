package server

import (
	"encoding/json"

	"carillon/server/internal/envelope"
	"carillon/server/internal/reactor"
	"carillon/server/topic"
)

// hubServer is the server as its hub sees it: see hubOwner.
type hubServer Server

func (o *hubServer) server() *Server { return (*Server)(o) }

func (o *hubServer) nodeInfo() topic.NodeInfo {
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

// answer answers a question of another server.
func (o *hubServer) answer(subject string, question []byte) []byte {
	s := o.server()
	var topic askTopic
	var conn askConnection
	switch subject {
	case askAboutTopic:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		if info, exists := s.Topic(topic.Topic); exists {
			return envelope.AppendJSON(nil, info)
		}
	case askAboutPresence:
		if json.Unmarshal(question, &topic) != nil {
			return nil
		}
		return s.hub.presentHere(topic.Topic).AppendTo(nil)
	case askAboutConnection, askToClose:
		if json.Unmarshal(question, &conn) != nil {
			return nil
		}
		c := s.index.find(s, conn.ID)
		switch {
		case c == nil:
		case subject == askAboutConnection:
			return envelope.AppendJSON(nil, c.fullInfo())
		case c.Close(conn.Code, conn.Reason) == nil:
			return []byte("{}")
		}
	}
	return nil
}

func (o *hubServer) endpointSource(path string) *endpointSource {
	if ep := o.byPath[path]; ep != nil {
		return &ep.endpointSource
	}
	return nil
}

func (o *hubServer) subject(c *reactor.Conn) string { return (*Conn)(c).Subject() }

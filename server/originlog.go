package server

import (
	"log/slog"

	"carillon/server/internal/auth"
	"carillon/server/internal/logs"
	"carillon/server/internal/reactor"
)

// logOrigin logs that a page was refused because of its origin, and which settings would let it in.
func (s *Server) logOrigin(path string, r *Request) {
	text, _ := auth.OriginHeader(&r.Request)
	origin := logs.Shorten(string(text))
	ok, silent := s.ops.origins.Take(origin, s.engine.Uptime())
	if !ok {
		return
	}
	args := []any{"origin", origin, "path", path, "host", logs.Shorten(string(r.Host)), "remote", reactor.ShownAddr(r.RemoteAddr)}
	s.engine.LogSampled(slog.LevelInfo, "origin refused: add it to endpoints[].origins to allow it, or set public_url if it is this server's own", args, silent)
}

// omitted is how many lines were left out.
func (s *Server) omitted() uint64 {
	return s.engine.Events.Omitted() + s.engine.Grave.Omitted() + s.ops.origins.Omitted()
}

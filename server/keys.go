package server

import (
	"context"
	"sync"
	"time"

	"carillon/server/internal/auth"
)

// firstKeys is how long the start waits for keys that have to be fetched.
const firstKeys = 3 * time.Second

// watchKeys has keys fetched, or read again, until ctx ends. It waits for the first ones, but neither for
// long nor beyond the end of patience: a server that is started while the issuer is away serves what needs
// no keys, and answers 503 to those who need them.
func (s *Server) watchKeys(ctx, patience context.Context) {
	patience, cancel := context.WithTimeout(patience, firstKeys)
	defer cancel()
	r := &s.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	var first sync.WaitGroup
	for _, e := range s.settings().endpoints {
		if k := e.auth.Keys(); k != nil {
			first.Go(func() { k.Refresh(patience) })
		}
	}
	first.Wait()
	r.alive, r.watched = ctx, map[*auth.Keyring]context.CancelFunc{}
	s.watchNow(s.settings())
}

package tlstable

import (
	"container/list"
	"time"

	"carillon/server/internal/limit"
)

// suspects are the addresses whose last TLS handshake ended while it waited for its client: evicted, timed out, or
// left. While the table is full, they come behind the others, which they could otherwise keep out by coming back. It
// holds an address for suspectFor, until a handshake of it succeeds, or until there are too many. The zero value is
// empty; its methods are not safe for concurrent use.
type suspects struct {
	order list.List // of suspect, the oldest first
	at    map[limit.Key]*list.Element
}

type suspect struct {
	key   limit.Key
	until time.Duration // after the server was made
}

const (
	suspectFor  = 30 * time.Second
	maxSuspects = 16 << 10 // 150 B each
)

// add makes an address a suspect for suspectFor from now on.
func (s *suspects) add(key limit.Key, now time.Duration) {
	if s.at == nil {
		s.at = map[limit.Key]*list.Element{}
	}
	s.remove(key)
	if len(s.at) == maxSuspects {
		s.remove(s.order.Front().Value.(suspect).key)
	}
	s.at[key] = s.order.PushBack(suspect{key, now + suspectFor})
}

// remove clears an address.
func (s *suspects) remove(key limit.Key) {
	if e, ok := s.at[key]; ok {
		s.order.Remove(e)
		delete(s.at, key)
	}
}

// has reports whether an address is one of them, and drops those whose time is over.
func (s *suspects) has(key limit.Key, now time.Duration) bool {
	for first := s.order.Front(); first != nil && first.Value.(suspect).until <= now; first = s.order.Front() {
		s.remove(first.Value.(suspect).key)
	}
	_, ok := s.at[key]
	return ok
}

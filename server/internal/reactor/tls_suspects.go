package reactor

import (
	"container/list"
	"time"

	"carillon/server/internal/limit"
)

// TLSSuspects are the addresses whose last TLS handshake ended while it waited for its client: evicted, timed out, or
// left. While the table is full, they come behind the others, which they could otherwise keep out by coming back. It
// holds an address for SuspectFor, until a handshake of it succeeds, or until there are too many. The zero value is
// empty; its methods are not safe for concurrent use.
type TLSSuspects struct {
	Order list.List // of suspect, the oldest first
	At    map[limit.Key]*list.Element
}

type suspect struct {
	key   limit.Key
	until time.Duration // after the server was made
}

const (
	SuspectFor  = 30 * time.Second
	MaxSuspects = 16 << 10 // 150 B each
)

// Add makes an address a suspect for SuspectFor from now on.
func (s *TLSSuspects) Add(key limit.Key, now time.Duration) {
	if s.At == nil {
		s.At = map[limit.Key]*list.Element{}
	}
	s.Remove(key)
	if len(s.At) == MaxSuspects {
		s.Remove(s.Order.Front().Value.(suspect).key)
	}
	s.At[key] = s.Order.PushBack(suspect{key, now + SuspectFor})
}

// Remove clears an address.
func (s *TLSSuspects) Remove(key limit.Key) {
	if e, ok := s.At[key]; ok {
		s.Order.Remove(e)
		delete(s.At, key)
	}
}

// Has reports whether an address is one of them, and drops those whose time is over.
func (s *TLSSuspects) Has(key limit.Key, now time.Duration) bool {
	for first := s.Order.Front(); first != nil && first.Value.(suspect).until <= now; first = s.Order.Front() {
		s.Remove(first.Value.(suspect).key)
	}
	_, ok := s.At[key]
	return ok
}

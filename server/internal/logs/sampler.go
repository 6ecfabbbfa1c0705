// Package logs keeps clients from filling the log.
package logs

import (
	"sync"
	"sync/atomic"
	"time"
)

// Sampler lets some lines of each second through.
type Sampler struct {
	max     int
	omitted atomic.Uint64

	mu     sync.Mutex
	second time.Duration
	lines  int
	silent uint64 // omitted since the last line
}

// NewSampler returns a sampler for at most max lines a second.
func NewSampler(max int) *Sampler { return &Sampler{max: max} }

// Take reports whether a line may be written, and how many before it were omitted.
func (s *Sampler) Take(now time.Duration) (ok bool, silent uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second := now / time.Second; second != s.second {
		s.second, s.lines = second, 0
	}
	if s.lines == s.max {
		s.silent++
		s.omitted.Add(1)
		return false, 0
	}
	s.lines++
	silent, s.silent = s.silent, 0
	return true, silent
}

// Omitted returns the number of lines that were omitted.
func (s *Sampler) Omitted() uint64 { return s.omitted.Load() }

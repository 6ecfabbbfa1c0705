package hub

// PatternCount is how many patterns have subscribers.
func (h *Hub) PatternCount() int {
	h.Mu.RLock()
	defer h.Mu.RUnlock()
	n := 0
	for _, p := range h.Patterns.Names.All() { // in a cluster they linger
		p.Mu.Lock()
		if p.Subscribers > 0 {
			n++
		}
		p.Mu.Unlock()
	}
	return n
}

// MessageCount is what all topics keep, in messages and in bytes of payload.
func (h *Hub) MessageCount() (messages, bytes int64) { return h.Messages.Load(), h.Bytes.Load() }

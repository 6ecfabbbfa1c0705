package testenv

import (
	"bytes"
	"sync"
)

// Recording is an output that may be read while it is written to.
type Recording struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *Recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *Recording) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

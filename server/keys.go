package server

import (
	"sync"
	"time"
)

// The idempotency keys of publications are remembered for at least this long, and for at most twice as
// long, but never more than this many for each half.
const (
	keyLife = 5 * time.Minute
	maxKey  = 128
	maxKeys = 500_000
)

// keys remembers receipts by topic and key, in two generations.
type keys struct {
	mu      sync.Mutex
	young   map[[2]string]*keyed
	old     map[[2]string]*keyed
	changed time.Time
}

// keyed is a publication with a key; mu is held while it is made, so that one that comes twice at once
// waits for the first.
type keyed struct {
	mu      sync.Mutex
	done    bool
	receipt Receipt
}

// once publishes unless that was done before.
func (k *keys) once(topic, key string, publish func() (Receipt, error)) (Receipt, error) {
	id := [2]string{topic, key}
	k.mu.Lock()
	one := k.young[id]
	if one == nil {
		one = k.old[id]
	}
	if one == nil {
		one = &keyed{}
		if k.young == nil || len(k.young) >= maxKeys {
			k.turn(time.Now())
		}
		k.young[id] = one
	}
	k.mu.Unlock()

	one.mu.Lock()
	defer one.mu.Unlock()
	if one.done {
		return one.receipt, nil
	}
	var err error
	one.receipt, err = publish()
	one.done = err == nil
	return one.receipt, err
}

// turn begins a new generation. The caller holds mu.
func (k *keys) turn(now time.Time) {
	k.old, k.young, k.changed = k.young, map[[2]string]*keyed{}, now
}

func (k *keys) expire(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.young)+len(k.old) > 0 && now.Sub(k.changed) > keyLife {
		k.turn(now)
	}
}

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
	relay   *relay // nil without a cluster, and when the broker has the message
}

// relay is what is known of a publication that was handed to the broker. Guarded by the mu of its keyed.
type relay struct {
	err     error         // what it came to; nil while that is not known
	waiting []func(error) // who wants to know
}

// of returns what is known of a key, which is made if need be.
func (k *keys) of(topic, key string) *keyed {
	id := [2]string{topic, key}
	k.mu.Lock()
	defer k.mu.Unlock()
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
	return one
}

// once publishes unless that was done before.
func (one *keyed) once(publish func() (Receipt, error)) (Receipt, error) {
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

// onceRelayed does the same for a message that is handed to the broker as well, which publish does, with what to call
// when the end of that is known. sent learns the end too, if it is not nil and there is no error; of a message that was
// published before, the end of that one. It is called with nothing locked.
func (one *keyed) onceRelayed(sent func(error), publish func(ended func(error)) (Receipt, error)) (Receipt, error) {
	h := &handover{done: one.relayed}
	receipt, err := one.once(func() (Receipt, error) {
		receipt, err := publish(h.end)
		if err == nil {
			one.relay = &relay{}
		}
		return receipt, err
	})
	if err == nil {
		h.returns()
		one.tell(sent)
	}
	return receipt, err
}

// relayed notes what a message that was handed to the broker has come to, and tells all who want to know.
func (one *keyed) relayed(err error) {
	one.mu.Lock()
	waiting := one.relay.waiting
	one.relay = nil
	if err != nil {
		one.relay = &relay{err: err}
	}
	one.mu.Unlock()
	for _, sent := range waiting {
		sent(err)
	}
}

// tell calls sent, which may be nil, when it is known what became of the message, which may be at once.
func (one *keyed) tell(sent func(error)) {
	if sent == nil {
		return
	}
	one.mu.Lock()
	var err error
	if r := one.relay; r != nil && r.err == nil {
		r.waiting = append(r.waiting, sent)
		one.mu.Unlock()
		return
	} else if r != nil {
		err = r.err
	}
	one.mu.Unlock()
	sent(err)
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

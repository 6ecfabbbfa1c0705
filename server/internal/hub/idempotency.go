package hub

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"carillon/internal/shrink"
	"carillon/server/internal/limit"
	"carillon/server/topic"
)

// keyLife is how long an idempotency key is remembered, unless Limits.MaxKeyMemory is reached.
const keyLife = 5 * time.Minute

// idempotency remembers the receipts of publications that have a key.
type idempotency struct {
	secret  [32]byte // immutable; keeps clients from making two keys that are taken for one
	seed    maphash.Seed
	now     func() time.Duration // since the server was made
	most    func() int64         // Limits.MaxKeyMemory, negative for no limit
	Evicted atomic.Uint64        // keys that were forgotten before their time

	mu       sync.Mutex
	Attempts shrink.Map[keyID, *attempt] // guarded by mu: publications that are under way
	table    keyTable                    // guarded by mu
}

// keyID stands for a publisher, a topic and a key.
type keyID [16]byte

// init prepares the keys of a hub.
func (k *idempotency) init(h *Hub) {
	_, _ = rand.Read(k.secret[:]) // it never fails
	k.seed, k.now = maphash.MakeSeed(), h.engine.Uptime
	k.most = func() int64 { return h.settings().MaxKeyMemory }
}

func (k *idempotency) idOf(p *Publication) (id keyID) {
	b := make([]byte, 0, 512)
	b = append(b, k.secret[:]...)
	for _, part := range [...]string{p.Publisher, p.Topic, p.Key} {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	sum := sha256.Sum256(b)
	return keyID(sum[:])
}

// accountOf is what the memory for a publication's key is charged to.
func (k *idempotency) accountOf(p *Publication) uint64 {
	return maphash.Comparable(k.seed, struct {
		publisher string
		address   limit.Key
	}{p.Publisher, p.Address})
}

// attempt is a publication with a key that is under way, or whose end at the broker is not known yet.
type attempt struct {
	keys    *idempotency
	id      keyID
	account uint64
	users   int // guarded by keys.mu

	mu      sync.Mutex // held while it is published, so that one that comes twice at once waits for the first
	done    bool
	receipt topic.Receipt
	relay   *relay // nil when the broker has the message
}

// relay is what is known of a publication that was handed to the broker. Guarded by the mu of its attempt.
type relay struct {
	err     error         // what it came to; nil while that is not known
	waiting []func(error) // for that
}

// errRelay is what the relay of an earlier publication came to.
var errRelay = errors.New("the cluster did not acknowledge the first message with this key")

// begin returns the receipt of an earlier publication and what its relay came to, or an attempt, which the caller
// leaves.
func (k *idempotency) begin(p *Publication) (a *attempt, known topic.Receipt, relayed error) {
	id, account, second := k.idOf(p), k.accountOf(p), k.second()
	k.mu.Lock()
	defer k.mu.Unlock()
	a = k.Attempts.Get(id)
	if a == nil {
		if e := k.table.find(id); e != nil && !e.isOld(second) {
			return nil, e.receipt(), e.relayed()
		}
		a = &attempt{keys: k, id: id, account: account}
		k.Attempts.Set(id, a)
	}
	a.users++
	return a, topic.Receipt{}, nil
}

// Leave ends the use of an attempt that Begin has returned.
func (a *attempt) Leave() {
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	if a.users--; a.users == 0 {
		a.keys.Attempts.Delete(a.id)
	}
}

// once publishes unless that was done before.
func (a *attempt) once(publish func() (topic.Receipt, error)) (topic.Receipt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return a.receipt, nil
	}
	receipt, err := publish()
	if err == nil {
		a.done, a.receipt = true, receipt
		a.keys.put(a.id, a.account, receipt)
	}
	return receipt, err
}

// publishOnce publishes a message with a key, unless that was done before. sent, which may be nil, is told what became
// of it, or of the first one, at the broker, if there is no error. It is called with nothing locked.
func (h *Hub) publishOnce(p *Publication, sent func(error)) (topic.Receipt, error) {
	a, receipt, relayed := h.Keys.begin(p)
	if a == nil {
		if sent != nil {
			sent(relayed)
		}
		return receipt, nil
	}
	defer a.Leave()
	over := &relayAck{done: a.relayed}
	receipt, err := a.once(func() (topic.Receipt, error) {
		receipt, err := h.enter(p, over.end)
		if err == nil {
			a.relay = &relay{}
			a.keys.join(a)
		}
		return receipt, err
	})
	if err == nil {
		over.returns()
		a.tell(sent)
	}
	return receipt, err
}

// join keeps an attempt until its relay has ended.
func (k *idempotency) join(a *attempt) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a.users++
}

// relayed notes what a message that was handed to the broker has come to, and tells all who want to know.
func (a *attempt) relayed(err error) {
	a.mu.Lock()
	waiting := a.relay.waiting
	a.relay = nil
	if err != nil {
		a.relay = &relay{err: err}
		a.keys.failed(a.id)
	}
	a.mu.Unlock()
	for _, sent := range waiting {
		sent(err)
	}
	a.Leave()
}

// tell calls sent, which may be nil, when it is known what became of the message, which may be at once.
func (a *attempt) tell(sent func(error)) {
	if sent == nil {
		return
	}
	a.mu.Lock()
	var err error
	if r := a.relay; r != nil && r.err == nil {
		r.waiting = append(r.waiting, sent)
		a.mu.Unlock()
		return
	} else if r != nil {
		err = r.err
	}
	a.mu.Unlock()
	sent(err)
}

// second is the time in the table's unit.
func (k *idempotency) second() uint32 { return uint32(k.now() / time.Second) }

// put remembers a receipt, and forgets others if there is no room for it.
func (k *idempotency) put(id keyID, account uint64, r topic.Receipt) {
	epoch, _ := strconv.ParseUint(r.Epoch, 36, 64) // as ownEpoch wrote it
	e := keyEntry{ID: id, account: account, offset: r.Offset, epoch: epoch, subscribers: uint32(r.Subscribers), second: k.second()}
	most := k.most()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.table.remove(k.table.index(id)) // one that is old
	if most >= 0 {
		k.shorten(most-keyCost-publisherCost, account)
	}
	k.table.add(e)
}

// shorten forgets keys until the others take up no more than so many bytes, and reports whether that is still to be
// done after a slice of them. The caller holds mu.
func (k *idempotency) shorten(bytes int64, account uint64) (more bool) {
	for range lookSlice {
		if k.table.bytes() <= bytes || k.table.n == 0 {
			return false
		}
		k.table.evict(account)
		k.Evicted.Add(1)
	}
	return true
}

// failed notes that a message was relayed without success.
func (k *idempotency) failed(id keyID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.table.find(id); e != nil {
		e.subscribers |= keyFailed
	}
}

// expire forgets keys whose time is over, a slice of them at a time.
func (k *idempotency) expire() {
	for k.expireSome() {
	}
}

func (k *idempotency) expireSome() (more bool) {
	second, most := k.second(), k.most()
	k.mu.Lock()
	defer k.mu.Unlock()
	for range lookSlice {
		if k.table.n == 0 || !k.table.at(k.table.oldest).isOld(second) {
			return most >= 0 && k.shorten(most, 0)
		}
		k.table.remove(k.table.oldest)
	}
	return true
}

// Count is how many keys are remembered.
func (k *idempotency) Count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return int(k.table.n)
}

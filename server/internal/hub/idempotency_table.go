package hub

import (
	"strconv"
	"time"

	"carillon/internal/indexheap"
	"carillon/internal/shrink"
	"carillon/server/topic"
)

// What the table takes up, in bytes: for a key, its part of the index included, and for an account.
const (
	KeyCost       = 112
	PublisherCost = 128
)

// KeyTable has receipts by key. It has no pointers for the garbage collector to follow but those of accounts, and no
// more memory than it needs. Its zero value is empty.
//
// When it is full the oldest key of the account goes that has most of them. So one publisher that uses very many keys
// loses its own, and others keep theirs.
type KeyTable struct {
	places   [64]shrink.Map[KeyID, uint32] // by the first bits of the id: where entries are
	chunks   []*[chunkKeys]KeyEntry        // places 1 to n
	N        uint32
	Oldest   uint32
	newest   uint32
	Accounts shrink.Map[uint64, *keyAccount]
	Largest  indexheap.Heap[*keyAccount]
}

const chunkKeys = 256

// KeyEntry is a receipt. Entries are linked by their places, 0 being none: all of them and those of each account, in
// the order of time.
type KeyEntry struct {
	ID                 KeyID
	Account            uint64
	Offset, epoch      uint64
	older, Newer       uint32
	ownOlder, ownNewer uint32
	second             uint32 // when it was published
	subscribers        uint32 // and keyFailed
}

// keyFailed is set when it is not known whether other servers got the message.
const keyFailed = 1 << 31

type keyAccount struct {
	id             uint64
	oldest, newest uint32
	Count          uint32
	Slot           int // in KeyTable.largest
}

func (a *keyAccount) Before(other *keyAccount) bool { return a.Count > other.Count }
func (a *keyAccount) Place() *int                   { return &a.Slot }

func (e *KeyEntry) isOld(second uint32) bool { return second-e.second > uint32(KeyLife/time.Second) }

func (e *KeyEntry) receipt() topic.Receipt {
	return topic.Receipt{Offset: e.Offset, Epoch: strconv.FormatUint(e.epoch, 36), Subscribers: int(e.subscribers &^ keyFailed)}
}

func (e *KeyEntry) relayed() error {
	if e.subscribers&keyFailed != 0 {
		return errRelay
	}
	return nil
}

func (t *KeyTable) bytes() int64 {
	return int64(t.N)*KeyCost + int64(t.Accounts.Len())*PublisherCost
}

// At is the entry at a place.
func (t *KeyTable) At(place uint32) *KeyEntry {
	return &t.chunks[(place-1)/chunkKeys][(place-1)%chunkKeys]
}

func (t *KeyTable) part(id KeyID) *shrink.Map[KeyID, uint32] { return &t.places[id[0]%64] }

// Index is the place of a key, or 0.
func (t *KeyTable) Index(id KeyID) uint32 { return t.part(id).Get(id) }

// Find returns the entry of a key, or nil.
func (t *KeyTable) Find(id KeyID) *KeyEntry {
	if place := t.Index(id); place > 0 {
		return t.At(place)
	}
	return nil
}

// Add appends an entry as the newest one. Its key must not be there.
func (t *KeyTable) Add(e KeyEntry) {
	a := t.Accounts.Get(e.Account)
	if a == nil {
		a = &keyAccount{id: e.Account}
		t.Accounts.Set(e.Account, a)
		t.Largest.Insert(a)
	}
	t.N++
	if int(t.N) > len(t.chunks)*chunkKeys {
		t.chunks = append(t.chunks, new([chunkKeys]KeyEntry))
	}
	place := t.N
	e.older, e.Newer, e.ownOlder, e.ownNewer = t.newest, 0, a.newest, 0
	*t.At(place) = e
	t.part(e.ID).Set(e.ID, place)
	t.relink(place, a)
	a.Count++
	t.Largest.Moved(a)
}

// relink has the neighbours of an entry point to its place.
func (t *KeyTable) relink(place uint32, a *keyAccount) {
	e := t.At(place)
	*t.newerOf(e.older) = place
	*t.olderOf(e.Newer) = place
	if e.ownOlder > 0 {
		t.At(e.ownOlder).ownNewer = place
	} else {
		a.oldest = place
	}
	if e.ownNewer > 0 {
		t.At(e.ownNewer).ownOlder = place
	} else {
		a.newest = place
	}
}

// newerOf is what points from a place to the next newer one; from 0, to the oldest.
func (t *KeyTable) newerOf(place uint32) *uint32 {
	if place == 0 {
		return &t.Oldest
	}
	return &t.At(place).Newer
}

func (t *KeyTable) olderOf(place uint32) *uint32 {
	if place == 0 {
		return &t.newest
	}
	return &t.At(place).older
}

// Remove takes out what is at a place; 0 is nothing. The last entry moves to its place.
func (t *KeyTable) Remove(place uint32) {
	if place == 0 {
		return
	}
	e := *t.At(place)
	a := t.Accounts.Get(e.Account)
	*t.newerOf(e.older), *t.olderOf(e.Newer) = e.Newer, e.older
	if e.ownOlder > 0 {
		t.At(e.ownOlder).ownNewer = e.ownNewer
	} else {
		a.oldest = e.ownNewer
	}
	if e.ownNewer > 0 {
		t.At(e.ownNewer).ownOlder = e.ownOlder
	} else {
		a.newest = e.ownOlder
	}
	t.part(e.ID).Delete(e.ID)
	if a.Count--; a.Count == 0 {
		t.Largest.Remove(a)
		t.Accounts.Delete(a.id)
	} else {
		t.Largest.Moved(a)
	}
	if place != t.N {
		last := *t.At(t.N)
		*t.At(place) = last
		t.part(last.ID).Set(last.ID, place)
		t.relink(place, t.Accounts.Get(last.Account))
	}
	t.N--
	if spare := len(t.chunks) - 1; spare > 0 && int(t.N) <= (spare-1)*chunkKeys {
		t.chunks[spare] = nil
		t.chunks = shrink.Slice(t.chunks[:spare])
	}
}

// evict takes out the oldest key of the account that has most, which is the one given if others have no more.
func (t *KeyTable) evict(account uint64) {
	most := t.Largest[0]
	if own := t.Accounts.Get(account); own != nil && own.Count == most.Count {
		most = own
	}
	t.Remove(most.oldest)
}

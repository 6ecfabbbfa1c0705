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
	keyCost       = 112
	publisherCost = 128
)

// keyTable has receipts by key. It has no pointers for the garbage collector to follow but those of accounts, and no
// more memory than it needs. Its zero value is empty.
//
// When it is full the oldest key of the account goes that has most of them. So one publisher that uses very many keys
// loses its own, and others keep theirs.
type keyTable struct {
	places   [64]shrink.Map[keyID, uint32] // by the first bits of the id: where entries are
	chunks   []*[chunkKeys]keyEntry        // places 1 to n
	n        uint32
	oldest   uint32
	newest   uint32
	accounts shrink.Map[uint64, *keyAccount]
	largest  indexheap.Heap[*keyAccount]
}

const chunkKeys = 256

// keyEntry is a receipt. Entries are linked by their places, 0 being none: all of them and those of each account, in
// the order of time.
type keyEntry struct {
	ID                 keyID
	account            uint64
	offset, epoch      uint64
	older, newer       uint32
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
	slot           int // in keyTable.largest
}

func (a *keyAccount) Before(other *keyAccount) bool { return a.Count > other.Count }
func (a *keyAccount) Place() *int                   { return &a.slot }

func (e *keyEntry) isOld(second uint32) bool { return second-e.second > uint32(keyLife/time.Second) }

func (e *keyEntry) receipt() topic.Receipt {
	return topic.Receipt{Offset: e.offset, Epoch: strconv.FormatUint(e.epoch, 36), Subscribers: int(e.subscribers &^ keyFailed)}
}

func (e *keyEntry) relayed() error {
	if e.subscribers&keyFailed != 0 {
		return errRelay
	}
	return nil
}

func (t *keyTable) bytes() int64 {
	return int64(t.n)*keyCost + int64(t.accounts.Len())*publisherCost
}

// at is the entry at a place.
func (t *keyTable) at(place uint32) *keyEntry {
	return &t.chunks[(place-1)/chunkKeys][(place-1)%chunkKeys]
}

func (t *keyTable) part(id keyID) *shrink.Map[keyID, uint32] { return &t.places[id[0]%64] }

// index is the place of a key, or 0.
func (t *keyTable) index(id keyID) uint32 { return t.part(id).Get(id) }

// find returns the entry of a key, or nil.
func (t *keyTable) find(id keyID) *keyEntry {
	if place := t.index(id); place > 0 {
		return t.at(place)
	}
	return nil
}

// add appends an entry as the newest one. Its key must not be there.
func (t *keyTable) add(e keyEntry) {
	a := t.accounts.Get(e.account)
	if a == nil {
		a = &keyAccount{id: e.account}
		t.accounts.Set(e.account, a)
		t.largest.Insert(a)
	}
	t.n++
	if int(t.n) > len(t.chunks)*chunkKeys {
		t.chunks = append(t.chunks, new([chunkKeys]keyEntry))
	}
	place := t.n
	e.older, e.newer, e.ownOlder, e.ownNewer = t.newest, 0, a.newest, 0
	*t.at(place) = e
	t.part(e.ID).Set(e.ID, place)
	t.relink(place, a)
	a.Count++
	t.largest.Moved(a)
}

// relink has the neighbours of an entry point to its place.
func (t *keyTable) relink(place uint32, a *keyAccount) {
	e := t.at(place)
	*t.newerOf(e.older) = place
	*t.olderOf(e.newer) = place
	if e.ownOlder > 0 {
		t.at(e.ownOlder).ownNewer = place
	} else {
		a.oldest = place
	}
	if e.ownNewer > 0 {
		t.at(e.ownNewer).ownOlder = place
	} else {
		a.newest = place
	}
}

// newerOf is what points from a place to the next newer one; from 0, to the oldest.
func (t *keyTable) newerOf(place uint32) *uint32 {
	if place == 0 {
		return &t.oldest
	}
	return &t.at(place).newer
}

func (t *keyTable) olderOf(place uint32) *uint32 {
	if place == 0 {
		return &t.newest
	}
	return &t.at(place).older
}

// remove takes out what is at a place; 0 is nothing. The last entry moves to its place.
func (t *keyTable) remove(place uint32) {
	if place == 0 {
		return
	}
	e := *t.at(place)
	a := t.accounts.Get(e.account)
	*t.newerOf(e.older), *t.olderOf(e.newer) = e.newer, e.older
	if e.ownOlder > 0 {
		t.at(e.ownOlder).ownNewer = e.ownNewer
	} else {
		a.oldest = e.ownNewer
	}
	if e.ownNewer > 0 {
		t.at(e.ownNewer).ownOlder = e.ownOlder
	} else {
		a.newest = e.ownOlder
	}
	t.part(e.ID).Delete(e.ID)
	if a.Count--; a.Count == 0 {
		t.largest.Remove(a)
		t.accounts.Delete(a.id)
	} else {
		t.largest.Moved(a)
	}
	if place != t.n {
		last := *t.at(t.n)
		*t.at(place) = last
		t.part(last.ID).Set(last.ID, place)
		t.relink(place, t.accounts.Get(last.account))
	}
	t.n--
	if spare := len(t.chunks) - 1; spare > 0 && int(t.n) <= (spare-1)*chunkKeys {
		t.chunks[spare] = nil
		t.chunks = shrink.Slice(t.chunks[:spare])
	}
}

// evict takes out the oldest key of the account that has most, which is the one given if others have no more.
func (t *keyTable) evict(account uint64) {
	most := t.largest[0]
	if own := t.accounts.Get(account); own != nil && own.Count == most.Count {
		most = own
	}
	t.remove(most.oldest)
}

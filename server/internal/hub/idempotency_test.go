package hub

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"carillon/internal/testenv"
	"carillon/server/internal/limit"
	"carillon/server/topic"
)

// keysOf makes a table of keys with a clock of its own.
func keysOf(most int64) (k *idempotency, clock *time.Duration) {
	k, clock = &idempotency{seed: maphash.MakeSeed()}, new(time.Duration)
	k.now, k.most = func() time.Duration { return *clock }, func() int64 { return most }
	return k, clock
}

// use publishes with a key, and reports whether it was used before.
func use(k *idempotency, publisher, key string) (again bool) {
	a, _, _ := k.begin(&Publication{Publication: topic.Publication{Publisher: publisher, Topic: "t", Key: key}})
	if a == nil {
		return true
	}
	defer a.Leave()
	_, _ = a.once(func() (topic.Receipt, error) { return topic.Receipt{Offset: 1, Epoch: "z"}, nil })
	return false
}

// A million keys of eight publishers, fewer under the race detector, take up no more memory than the limit, the newest
// are known, and when their time is over nothing is left of them.
func TestKeysAreBoundedInBytes(t *testing.T) {
	keys := 1_000_000
	if testenv.Race {
		keys /= 8
	}
	most := int64(32 * keys)
	before := testenv.HeapInUse()
	k, clock := keysOf(most)
	for i := range keys {
		use(k, fmt.Sprint("publisher", i%8), fmt.Sprint(i))
	}
	if full := testenv.HeapInUse() - before; full > most*11/10 && !testenv.Race {
		t.Errorf("the keys take up %d B", full)
	}
	known := k.Count()
	if want := int(most / keyCost); known < want*9/10 || k.Evicted.Load() != uint64(keys-known) {
		t.Errorf("%d keys are known, want about %d, and %d were evicted", known, want, k.Evicted.Load())
	}
	for i := keys - known*9/10; i < keys; i += 997 {
		if !use(k, fmt.Sprint("publisher", i%8), fmt.Sprint(i)) {
			t.Fatalf("key %d is forgotten", i)
		}
	}
	*clock += keyLife + 2*time.Second
	k.expire()
	if left := testenv.HeapInUse() - before; k.Count() != 0 || left > 200<<10 {
		t.Errorf("%d keys and %d B are left", k.Count(), left)
	}
	runtime.KeepAlive(k)
}

// One publisher that uses very many keys loses its own. Those of others stay, however many others there are.
func TestAPublishersKeysEvictItsOwn(t *testing.T) {
	k, _ := keysOf(1000 * (keyCost + publisherCost))
	for i := range 100 {
		use(k, fmt.Sprint("quiet", i), "first")
	}
	for i := range 10_000 {
		use(k, "loud", fmt.Sprint(i))
	}
	for i := range 50 {
		use(k, fmt.Sprint("late", i), "one")
	}
	for i := range 100 {
		if !use(k, fmt.Sprint("quiet", i), "first") {
			t.Fatalf("a key of publisher %d is forgotten", i)
		}
	}
	for i := range 50 {
		if !use(k, fmt.Sprint("late", i), "one") {
			t.Fatalf("a key of late publisher %d is forgotten", i)
		}
	}
	if use(k, "loud", "1") || !use(k, "loud", "9999") {
		t.Error("the loud publisher keeps the oldest keys and not the newest")
	}
}

// Anonymous clients share a namespace, and each address pays for its own keys.
func TestAnAddressEvictsItsOwnKeys(t *testing.T) {
	k, _ := keysOf(100 * (keyCost + publisherCost))
	use := func(address limit.Key, key string) (again bool) {
		a, _, _ := k.begin(&Publication{Publication: topic.Publication{Publisher: "client:/ws", Topic: "t", Key: key}, Address: address})
		if a == nil {
			return true
		}
		defer a.Leave()
		_, _ = a.once(func() (topic.Receipt, error) { return topic.Receipt{}, nil })
		return false
	}
	use(1, "mine")
	for i := range 1000 {
		use(2, fmt.Sprint(i))
	}
	if !use(3, "mine") {
		t.Error("from another address the key is not known any more")
	}
}

// The table is what a map and a list would be, whatever is done to it.
func TestKeyTableAgainstAMap(t *testing.T) {
	var table keyTable
	r := rand.New(rand.NewPCG(1, 2))
	var order []keyID // the oldest first
	known := map[keyID]keyEntry{}
	drop := func(i int) {
		delete(known, order[i])
		order = append(order[:i], order[i+1:]...)
	}
	for step := range 20_000 {
		grows := step/4000%2 == 0
		switch {
		case len(order) == 0 || r.IntN(3) > 0 == grows:
			id := keyID{byte(r.IntN(256)), byte(step), byte(step >> 8), byte(step >> 16)}
			e := keyEntry{ID: id, account: uint64(r.IntN(5)), offset: uint64(step)}
			table.add(e)
			known[id] = e
			order = append(order, id)
		case r.IntN(2) == 0:
			table.remove(table.oldest)
			drop(0)
		default:
			i := r.IntN(len(order))
			table.remove(table.index(order[i]))
			drop(i)
		}
		if step%500 != 0 {
			continue
		}
		counts := map[uint64]uint32{}
		place := table.oldest
		for i, id := range order {
			e := table.at(place)
			if e.ID != id || e.offset != known[id].offset || table.find(id) != e {
				t.Fatalf("step %d: entry %d is %v, want %v", step, i, e.ID, id)
			}
			counts[e.account]++
			place = e.newer
		}
		if place != 0 || int(table.n) != len(order) || table.accounts.Len() != len(counts) {
			t.Fatalf("step %d: %d entries of %d accounts, want %d of %d", step, table.n, table.accounts.Len(), len(order), len(counts))
		}
		for account, n := range counts {
			if a := table.accounts.Get(account); a.Count != n || table.largest[0].Count < n || table.largest[a.slot] != a {
				t.Fatalf("step %d: account %d has %+v, want %d", step, account, a, n)
			}
		}
	}
	if size := unsafe.Sizeof(keyEntry{}); size != 64 {
		t.Errorf("an entry has %d B", size)
	}
}

func TestAKeyIsGoodForFiveMinutes(t *testing.T) {
	k, clock := keysOf(-1)
	use(k, "a", "k")
	*clock += 5 * time.Minute
	if k.expire(); !use(k, "a", "k") {
		t.Error("it is forgotten after five minutes")
	}
	*clock += 2 * time.Second
	if use(k, "a", "k") {
		t.Error("it is known after more than five minutes")
	}
	if !use(k, "a", "k") || k.Count() != 1 {
		t.Errorf("it is not known again, or there are %d", k.Count())
	}
}

func BenchmarkKeys(b *testing.B) {
	k, _ := keysOf(64 << 20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		use(k, "publisher", fmt.Sprint(i))
	}
}

package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"carillon/server/internal/limit"
)

// keysOf makes a table of keys with a clock of its own.
func keysOf(s *Server, most int64) (k *idempotency, clock *time.Duration) {
	k, clock = &idempotency{}, new(time.Duration)
	k.init(s.hub)
	k.now, k.most = func() time.Duration { return *clock }, func() int64 { return most }
	return k, clock
}

// use publishes with a key, and reports whether it was used before.
func (k *idempotency) use(publisher, key string) (again bool) {
	a, _, _ := k.begin(&publication{Publication: Publication{Publisher: publisher, Topic: "t", Key: key}})
	if a == nil {
		return true
	}
	defer a.leave()
	_, _ = a.once(func() (Receipt, error) { return Receipt{Offset: 1, Epoch: "z"}, nil })
	return false
}

// A million keys of eight publishers, fewer under the race detector, take up no more memory than the limit, the newest
// are known, and when their time is over nothing is left of them.
func TestKeysAreBoundedInBytes(t *testing.T) {
	keys := 1_000_000
	if raceEnabled {
		keys /= 8
	}
	most := int64(32 * keys)
	s := start(t, topics())
	before := heapBytes()
	k, clock := keysOf(s, most)
	for i := range keys {
		k.use(fmt.Sprint("publisher", i%8), fmt.Sprint(i))
	}
	if full := heapBytes() - before; full > most*11/10 && !raceEnabled {
		t.Errorf("the keys take up %d B", full)
	}
	known := k.count()
	if want := int(most / keyCost); known < want*9/10 || k.evicted.Load() != uint64(keys-known) {
		t.Errorf("%d keys are known, want about %d, and %d were evicted", known, want, k.evicted.Load())
	}
	for i := keys - known*9/10; i < keys; i += 997 {
		if !k.use(fmt.Sprint("publisher", i%8), fmt.Sprint(i)) {
			t.Fatalf("key %d is forgotten", i)
		}
	}
	*clock += keyLife + 2*time.Second
	k.expire()
	if left := heapBytes() - before; k.count() != 0 || left > 200<<10 {
		t.Errorf("%d keys and %d B are left", k.count(), left)
	}
	runtime.KeepAlive(k)
}

// One publisher that uses very many keys loses its own. Those of others stay, however many others there are.
func TestAPublishersKeysEvictItsOwn(t *testing.T) {
	k, _ := keysOf(start(t, topics()), 1000*(keyCost+publisherCost))
	for i := range 100 {
		k.use(fmt.Sprint("quiet", i), "first")
	}
	for i := range 10_000 {
		k.use("loud", fmt.Sprint(i))
	}
	for i := range 50 {
		k.use(fmt.Sprint("late", i), "one")
	}
	for i := range 100 {
		if !k.use(fmt.Sprint("quiet", i), "first") {
			t.Fatalf("a key of publisher %d is forgotten", i)
		}
	}
	for i := range 50 {
		if !k.use(fmt.Sprint("late", i), "one") {
			t.Fatalf("a key of late publisher %d is forgotten", i)
		}
	}
	if k.use("loud", "1") || !k.use("loud", "9999") {
		t.Error("the loud publisher keeps the oldest keys and not the newest")
	}
}

// Anonymous clients share a namespace, and each address pays for its own keys.
func TestAnAddressEvictsItsOwnKeys(t *testing.T) {
	k, _ := keysOf(start(t, topics()), 100*(keyCost+publisherCost))
	use := func(address limit.Key, key string) (again bool) {
		a, _, _ := k.begin(&publication{Publication: Publication{Publisher: "client:/ws", Topic: "t", Key: key}, address: address})
		if a == nil {
			return true
		}
		defer a.leave()
		_, _ = a.once(func() (Receipt, error) { return Receipt{}, nil })
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
			e := keyEntry{id: id, account: uint64(r.IntN(5)), offset: uint64(step)}
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
			if e.id != id || e.offset != known[id].offset || table.find(id) != e {
				t.Fatalf("step %d: entry %d is %v, want %v", step, i, e.id, id)
			}
			counts[e.account]++
			place = e.newer
		}
		if place != 0 || int(table.n) != len(order) || table.accounts.Len() != len(counts) {
			t.Fatalf("step %d: %d entries of %d accounts, want %d of %d", step, table.n, table.accounts.Len(), len(order), len(counts))
		}
		for account, n := range counts {
			if a := table.accounts.Get(account); a.count != n || table.largest[0].count < n || table.largest[a.slot] != a {
				t.Fatalf("step %d: account %d has %+v, want %d", step, account, a, n)
			}
		}
	}
	if size := unsafe.Sizeof(keyEntry{}); size != 64 {
		t.Errorf("an entry has %d B", size)
	}
}

func TestAKeyIsGoodForFiveMinutes(t *testing.T) {
	k, clock := keysOf(start(t, topics()), -1)
	k.use("a", "k")
	*clock += 5 * time.Minute
	if k.expire(); !k.use("a", "k") {
		t.Error("it is forgotten after five minutes")
	}
	*clock += 2 * time.Second
	if k.use("a", "k") {
		t.Error("it is known after more than five minutes")
	}
	if !k.use("a", "k") || k.count() != 1 {
		t.Errorf("it is not known again, or there are %d", k.count())
	}
}

// A client cannot use up a key of the application, nor of a client with another subject. The same client is known when
// it comes back, and so is one without a subject.
func TestKeysBelongToThePublisher(t *testing.T) {
	opts := topics(TopicRule{Match: "orders", History: 100})
	opts.Endpoints[0].Handler.Upgrade = func(r *Request) error {
		return r.Identify(Identity{Subject: string(r.Header("X-Subject"))})
	}
	s := start(t, opts)
	publish := func(subject string) uint64 {
		t.Helper()
		c := dial(t, s, "/ws", speakJSON, "X-Subject: "+subject)
		defer func() { _ = c.conn.Close() }()
		got := c.ask(`{"id":1,"publish":{"topic":"orders","data":%q,"key":"order-18"}}`, subject)
		if got.Published == nil {
			t.Fatal(got.text)
		}
		return got.Published.Offset
	}
	application := func(publisher string) uint64 {
		t.Helper()
		r, err := s.Publish(Publication{Topic: "orders", Payload: []byte("x"), Key: "order-18", Publisher: publisher})
		if err != nil {
			t.Fatal(err)
		}
		return r.Offset
	}
	for range 2 { // the second time each gets its own receipt
		for i, offset := range []uint64{publish("alice"), publish("bob"), publish(""), application(""), application("billing")} {
			if offset != uint64(i+1) {
				t.Errorf("publisher %d got offset %d", i, offset)
			}
		}
	}
}

// "\ud800" and "\udfff" are two keys until JSON is decoded.
func TestKeysWithHalfACharacterAreRefused(t *testing.T) {
	s := withAPI(t, topics())
	c := dial(t, s, "/ws", speakJSON)
	for _, key := range []string{`\ud800`, `\udfffx`, `order\ud83d-1`, `\ude00\ud83d`, `\ufffd`} {
		got := c.ask(`{"id":1,"publish":{"topic":"a","data":1,"key":"%s"}}`, key)
		if errorCodeOf(got) != "bad_request" || !strings.Contains(got.Error.Message, "surrogate") {
			t.Errorf("%s: %s", key, got.text)
		}
		batch := call(t, s, "POST", "/v1/messages", `{"topic":"a","data":1,"key":"`+key+`"}`, "Content-Type: application/x-ndjson").is(t, 200)
		if !strings.Contains(string(batch.body), "surrogate") {
			t.Errorf("%s: %s", key, batch.body)
		}
	}
	for _, key := range []string{`\ud83d\ude00`, `ü`, `\u00fc-`} {
		if got := c.ask(`{"id":1,"publish":{"topic":"a","data":1,"key":"%s"}}`, key); got.Published == nil {
			t.Errorf("%s: %s", key, got.text)
		}
	}
}

// What fails at the broker fails for all who use the key, also when the attempt itself is over.
func TestAKeyWhoseRelayFailed(t *testing.T) {
	opts := topics()
	b := &silentBroker{newFakeNet(1).newBroker(), make(chan func(error), 10)}
	opts.Broker = b
	s, _ := startChanged(t, opts, unchanged)
	ends := make(chan error, 2)
	p := Publication{Topic: "room", Key: "k"}
	s.PublishFunc(p, func(_ Receipt, err error) { ends <- err })
	(<-b.ends)(errors.New("the connection was lost"))
	if err := <-ends; !errors.Is(err, ErrUncertain) {
		t.Fatal(err)
	}
	if n := s.hub.keys.attempts.Len(); n != 0 {
		t.Fatalf("%d attempts are left", n)
	}
	s.PublishFunc(p, func(_ Receipt, err error) { ends <- err })
	if err := <-ends; !errors.Is(err, ErrUncertain) || len(b.ends) > 0 {
		t.Error(err)
	}
}

func BenchmarkKeys(b *testing.B) {
	s, err := New(Options{})
	if err != nil {
		b.Fatal(err)
	}
	k, _ := keysOf(s, 64<<20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		k.use("publisher", fmt.Sprint(i))
	}
}

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

	"carillon/server/internal/hub"
	"carillon/server/internal/limit"
)

// keysOf makes a table of keys with a clock of its own.
func keysOf(s *Server, most int64) (k *hub.Idempotency, clock *time.Duration) {
	k, clock = &hub.Idempotency{}, new(time.Duration)
	k.Init(s.hub)
	k.Now, k.Most = func() time.Duration { return *clock }, func() int64 { return most }
	return k, clock
}

// use publishes with a key, and reports whether it was used before.
func use(k *hub.Idempotency, publisher, key string) (again bool) {
	a, _, _ := k.Begin(&hub.Publication{Publication: Publication{Publisher: publisher, Topic: "t", Key: key}})
	if a == nil {
		return true
	}
	defer a.Leave()
	_, _ = a.Once(func() (Receipt, error) { return Receipt{Offset: 1, Epoch: "z"}, nil })
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
		use(k, fmt.Sprint("publisher", i%8), fmt.Sprint(i))
	}
	if full := heapBytes() - before; full > most*11/10 && !raceEnabled {
		t.Errorf("the keys take up %d B", full)
	}
	known := k.Count()
	if want := int(most / hub.KeyCost); known < want*9/10 || k.Evicted.Load() != uint64(keys-known) {
		t.Errorf("%d keys are known, want about %d, and %d were evicted", known, want, k.Evicted.Load())
	}
	for i := keys - known*9/10; i < keys; i += 997 {
		if !use(k, fmt.Sprint("publisher", i%8), fmt.Sprint(i)) {
			t.Fatalf("key %d is forgotten", i)
		}
	}
	*clock += hub.KeyLife + 2*time.Second
	k.Expire()
	if left := heapBytes() - before; k.Count() != 0 || left > 200<<10 {
		t.Errorf("%d keys and %d B are left", k.Count(), left)
	}
	runtime.KeepAlive(k)
}

// One publisher that uses very many keys loses its own. Those of others stay, however many others there are.
func TestAPublishersKeysEvictItsOwn(t *testing.T) {
	k, _ := keysOf(start(t, topics()), 1000*(hub.KeyCost+hub.PublisherCost))
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
	k, _ := keysOf(start(t, topics()), 100*(hub.KeyCost+hub.PublisherCost))
	use := func(address limit.Key, key string) (again bool) {
		a, _, _ := k.Begin(&hub.Publication{Publication: Publication{Publisher: "client:/ws", Topic: "t", Key: key}, Address: address})
		if a == nil {
			return true
		}
		defer a.Leave()
		_, _ = a.Once(func() (Receipt, error) { return Receipt{}, nil })
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
	var table hub.KeyTable
	r := rand.New(rand.NewPCG(1, 2))
	var order []hub.KeyID // the oldest first
	known := map[hub.KeyID]hub.KeyEntry{}
	drop := func(i int) {
		delete(known, order[i])
		order = append(order[:i], order[i+1:]...)
	}
	for step := range 20_000 {
		grows := step/4000%2 == 0
		switch {
		case len(order) == 0 || r.IntN(3) > 0 == grows:
			id := hub.KeyID{byte(r.IntN(256)), byte(step), byte(step >> 8), byte(step >> 16)}
			e := hub.KeyEntry{ID: id, Account: uint64(r.IntN(5)), Offset: uint64(step)}
			table.Add(e)
			known[id] = e
			order = append(order, id)
		case r.IntN(2) == 0:
			table.Remove(table.Oldest)
			drop(0)
		default:
			i := r.IntN(len(order))
			table.Remove(table.Index(order[i]))
			drop(i)
		}
		if step%500 != 0 {
			continue
		}
		counts := map[uint64]uint32{}
		place := table.Oldest
		for i, id := range order {
			e := table.At(place)
			if e.ID != id || e.Offset != known[id].Offset || table.Find(id) != e {
				t.Fatalf("step %d: entry %d is %v, want %v", step, i, e.ID, id)
			}
			counts[e.Account]++
			place = e.Newer
		}
		if place != 0 || int(table.N) != len(order) || table.Accounts.Len() != len(counts) {
			t.Fatalf("step %d: %d entries of %d accounts, want %d of %d", step, table.N, table.Accounts.Len(), len(order), len(counts))
		}
		for account, n := range counts {
			if a := table.Accounts.Get(account); a.Count != n || table.Largest[0].Count < n || table.Largest[a.Slot] != a {
				t.Fatalf("step %d: account %d has %+v, want %d", step, account, a, n)
			}
		}
	}
	if size := unsafe.Sizeof(hub.KeyEntry{}); size != 64 {
		t.Errorf("an entry has %d B", size)
	}
}

func TestAKeyIsGoodForFiveMinutes(t *testing.T) {
	k, clock := keysOf(start(t, topics()), -1)
	use(k, "a", "k")
	*clock += 5 * time.Minute
	if k.Expire(); !use(k, "a", "k") {
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
	if n := s.hub.Keys.Attempts.Len(); n != 0 {
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
		use(k, "publisher", fmt.Sprint(i))
	}
}

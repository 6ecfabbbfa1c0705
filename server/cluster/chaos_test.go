package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"carillon/server/topic"
)

// Publishers publish at all nodes all the time, each message with a key until it is acknowledged. Subscribers go
// from node to node, and one node after another is killed and comes back. In the end each subscriber's log is the
// topic's: every message that was acknowledged, once, and in the order of the offsets.
func TestASubscribersLogIsTheTopicsWhileNodesAreKilled(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	x := newTrio(t, topic.Rule{Match: ">", History: 1_000_000, MaxAge: -1})
	var mu sync.Mutex
	alive := slices.Clone(x.nodes[:])
	pick := func() *testNode {
		mu.Lock()
		defer mu.Unlock()
		return alive[rand.N(len(alive))]
	}

	stop := make(chan struct{})
	var publishers sync.WaitGroup
	acknowledged := map[string]bool{} // guarded by mu
	for p := range 3 {
		publishers.Go(func() {
			for i := 0; ; i++ {
				text := fmt.Sprintf("%d-%d", p, i)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := pick().store("a.b", text, text); err == nil {
						mu.Lock()
						acknowledged[text] = true
						mu.Unlock()
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(rand.N(5 * time.Millisecond))
			}
		})
	}

	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for i := range 3 {
			mu.Lock()
			alive = slices.DeleteFunc(alive, func(n *testNode) bool { return n == x.nodes[i] })
			mu.Unlock()
			x.kill(i)
			time.Sleep(time.Second)
			x.start(i)
			mu.Lock()
			alive = append(alive, x.nodes[i])
			mu.Unlock()
			eventually(t, "all are well", func() bool {
				return !slices.ContainsFunc(x.nodes[:], func(n *testNode) bool { return n.PersistentErr(0) != nil })
			})
		}
	}()

	var subscribers sync.WaitGroup
	models := make([]*model, 16)
	for i := range models {
		m := &model{t: t}
		models[i] = m
		subscribers.Go(func() {
			for {
				select {
				case <-killed:
					return
				default:
					m.tryVisit(pick(), []string{"a.b", "a.*", ">"}[rand.N(3)])
				}
			}
		})
	}
	subscribers.Wait()
	close(stop)
	publishers.Wait()
	var k topic.Snapshot
	eventually(t, "all can be loaded", func() bool {
		var err error
		k, err = x.nodes[0].load("a.b", 0)
		return err == nil
	})
	visits := 0
	for i, m := range models {
		for end := time.Now().Add(patience); len(m.log) < len(k.Messages) && time.Now().Before(end); {
			m.tryVisit(x.nodes[rand.N(3)], "a.b")
		}
		if !slices.Equal(m.log, payloads(k.Messages)) {
			t.Fatalf("subscriber %d has %d messages, the topic %d, and they differ", i, len(m.log), len(k.Messages))
		}
		visits += m.visits
	}
	for _, text := range models[0].log {
		delete(acknowledged, text)
	}
	if len(acknowledged) > 0 {
		t.Errorf("%d messages were acknowledged and are not there", len(acknowledged))
	}
	t.Logf("%d messages, %d visits", len(k.Messages), visits)
}

// tryVisit visits a node that may be killed meanwhile: it takes what is missing, and then what comes as long as
// one message follows the other.
func (m *model) tryVisit(n *testNode, name string) {
	n.fake.mu.Lock()
	at := len(n.fake.kept)
	n.fake.mu.Unlock()
	joined := make(chan error, 1)
	n.Follow(name, func(err error) { joined <- err })
	if <-joined != nil {
		return
	}
	defer n.Unfollow(name)
	k, err := n.load("a.b", m.last)
	if err != nil {
		return
	}
	if k.Since > m.last { // replicas that differ can look like a hole, and a gap that is told without one loses nothing
		time.Sleep(time.Second)
		if k, err = n.load("a.b", m.last); err != nil {
			return
		}
	}
	if k.Since > m.last {
		m.t.Errorf("a gap: since %d, want %d", k.Since, m.last)
		return
	}
	m.visits++
	m.take(k.Messages)
	for range 5 {
		time.Sleep(5 * time.Millisecond)
		list := n.allKept()
		for ; at < len(list); at++ {
			one := list[at]
			if one.offset <= m.last {
				continue
			}
			if one.prev > m.last {
				return // a hole shows, and is looked at next time
			}
			m.take([]topic.Message{{Offset: one.offset, Payload: []byte(one.payload)}})
		}
	}
}

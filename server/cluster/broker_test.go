package cluster

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"carillon/codec"
	"carillon/server/topic"
)

func TestAPassingMessageReachesTheNodesThatFollowItsTopicOnce(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob, cathy := join(t, o), join(t, o), join(t, o)
	for _, n := range []*testNode{alice, bob, cathy} {
		n.knows(3)
	}
	bob.follow("prices.eu", "prices.*", "*.eu", ">") // all of them match
	alice.follow("prices.eu")                        // its own messages do not come back
	cathy.follow("weather.>")
	for i := range 100 {
		if err := alice.publish("prices.eu", fmt.Sprint(i), uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := alice.publish("weather.today", "sun", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bob has all", func() bool { return len(bob.all()) == 101 })
	eventually(t, "cathy has hers", func() bool { return len(cathy.all()) == 1 })
	for i, m := range bob.all()[:100] {
		want := passed{alice.ID(), 1, uint64(i + 1), "prices.eu", fmt.Sprint(i)}
		if m != want {
			t.Fatalf("message %d is %+v, want %+v", i, m, want)
		}
	}
	if got := cathy.all()[0]; got.topic != "weather.today" {
		t.Errorf("cathy got %+v", got)
	}
	if got := alice.all(); len(got) != 0 {
		t.Errorf("alice got her own messages: %v", got)
	}
}

// Names with wildcards that overlap without one covering the other have a subscription each.
func TestOverlappingPatternsDeliverOnceUnderManyPublishers(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	bob := join(t, o)
	bob.follow("a.*", "*.b", "a.b")
	const publishers, each = 4, 500
	var wait sync.WaitGroup
	for range publishers {
		n := join(t, o)
		wait.Go(func() {
			var sent sync.WaitGroup
			for i := range each {
				sent.Add(1)
				n.PublishTransient(topic.Publication{Topic: "a.b", Payload: []byte(fmt.Sprint(i))}, 1, uint64(i+1), func(error) { sent.Done() })
			}
			sent.Wait()
		})
	}
	wait.Wait()
	eventually(t, "bob has all", func() bool { return len(bob.all()) >= publishers*each })
	next := map[string]uint64{}
	for _, m := range bob.all() {
		if next[m.from]++; m.seq != next[m.from] {
			t.Fatalf("from %s came %d, want %d", m.from, m.seq, next[m.from])
		}
	}
	if bob.Stats().Repeated == 0 {
		t.Error("no message came more than once: the test tests nothing")
	}
}

func TestAPatternThatComesAndGoesLosesAndRepeatsNothing(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob := join(t, o), join(t, o)
	bob.follow("a.b")
	stop, stopped := make(chan struct{}), make(chan uint64)
	go func() {
		seq := uint64(0)
		for {
			select {
			case <-stop:
				stopped <- seq
				return
			default:
			}
			seq++
			if err := alice.publish("a.b", "x", seq); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 50 {
		bob.follow("a.*")
		bob.Unfollow("a.*")
		bob.follow("other")
		bob.Unfollow("other")
	}
	close(stop)
	sent := <-stopped
	eventually(t, "bob has all", func() bool { return uint64(len(bob.all())) >= sent })
	for i, m := range bob.all() {
		if m.seq != uint64(i+1) {
			t.Fatalf("message %d came as number %d", m.seq, i+1)
		}
	}
}

func TestUnfollowEndsTheMessages(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob := join(t, o), join(t, o)
	bob.follow("a.b", "c")
	bob.Unfollow("a.b")
	bob.follow("d") // behind it in the same queue
	_ = alice.publish("a.b", "no", 1)
	_ = alice.publish("c", "yes", 1)
	eventually(t, "bob has the other", func() bool { return len(bob.all()) > 0 })
	if got := bob.all(); len(got) != 1 || got[0].topic != "c" {
		t.Errorf("got %v", got)
	}
}

func TestABroadcastReachesAllOtherNodes(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob := join(t, o), join(t, o)
	done := make(chan error, 1)
	alice.Broadcast("/a path/*.>", codec.OpBinary, []byte("hello"), 3, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "it comes", func() bool { return len(bob.Broadcasts()) == 1 })
	if got, want := bob.Broadcasts()[0], (passed{alice.ID(), uint64(codec.OpBinary), 3, "/a path/*.>", "hello"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := alice.Broadcasts(); len(got) != 0 {
		t.Errorf("alice got her own: %v", got)
	}
}

func TestClustersWithOtherNamesAreApart(t *testing.T) {
	url := urlOf(natsAt(t, -1, ""))
	one, two := join(t, Options{Name: "one", NATS: NATS{URL: url}}), join(t, Options{Name: "two", NATS: NATS{URL: url}})
	same := join(t, Options{Name: "one", NATS: NATS{URL: url}})
	two.follow(">")
	same.follow(">")
	if err := one.publish("a", "x", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it comes", func() bool { return len(same.all()) == 1 })
	if got := two.all(); len(got) != 0 {
		t.Errorf("the other cluster got %v", got)
	}
}

func TestQuestionsReachOneOrAllNodes(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob, cathy := join(t, o), join(t, o), join(t, o)
	alice.knows(3)
	type result struct {
		answers []topic.Answer
		all     bool
	}
	ask := func(node string) result {
		c := make(chan result, 1)
		alice.Ask(node, "count", []byte("a.b"), func(answers []topic.Answer, all bool) { c <- result{answers, all} })
		return <-c
	}
	got := ask("")
	if !got.all || len(got.answers) != 2 {
		t.Fatalf("got %v, want the answers of two nodes", got)
	}
	var from []string
	for _, a := range got.answers {
		from = append(from, a.Node)
		if string(a.Body) != "count: a.b!" {
			t.Errorf("the answer is %q", a.Body)
		}
	}
	slices.Sort(from)
	if want := slices.Sorted(slices.Values([]string{bob.ID(), cathy.ID()})); !slices.Equal(from, want) {
		t.Errorf("answers from %v, want %v", from, want)
	}
	if got := ask(bob.ID()); !got.all || len(got.answers) != 1 || got.answers[0].Node != bob.ID() {
		t.Errorf("bob's answer is %v", got)
	}
	if got := ask("0123456789abcdef"); got.all || len(got.answers) != 0 {
		t.Errorf("the answer of an unknown node is %v", got)
	}
}

func TestNodesKnowEachOtherUntilTheyLeave(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	a, b := o, o
	a.Node, b.Node = "alice", "bob"
	alice, bob := join(t, a), join(t, b)
	alice.knows(2)
	list := alice.Nodes()
	if list[0].Name != "alice" || list[0].ID != alice.ID() || list[1].Name != "bob" || list[1].ID != bob.ID() ||
		list[1].Connections != 7 || list[1].Version != "test" || list[1].Heard.IsZero() {
		t.Errorf("nodes are %+v", list)
	}
	bob.leave()
	alice.knows(1)
	eventually(t, "alice has seen bob leave, and not only that he was silent", func() bool { return alice.log.has("a node left the cluster") })
	alice.farewell()
	alice.beat(false) // which was due at the same time
	cathy := join(t, o)
	time.Sleep(100 * time.Millisecond)
	if n := len(cathy.Nodes()); n != 1 {
		t.Errorf("%d nodes are known after all others have left", n)
	}
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"no NATS":                     {Options{}, "cluster.nats.url: is missing"},
		"both ways":                   {Options{NATS: NATS{URL: "nats://a", Embedded: true}}, "cluster.nats.embedded: and nats.url"},
		"a name with a dot":           {Options{Name: "a.b", NATS: NATS{URL: "nats://a"}}, "cluster.name: \"a.b\""},
		"no URL":                      {Options{NATS: NATS{URL: "a:4222"}}, "cluster.nats.url: \"a:4222\""},
		"storage":                     {Options{Storage: "tape", NATS: NATS{URL: "nats://a"}}, "cluster.storage: \"tape\""},
		"replicas":                    {Options{Replicas: 7, NATS: NATS{URL: "nats://a"}}, "cluster.replicas: 7"},
		"two ways to log in":          {Options{NATS: NATS{URL: "nats://a", Token: "x", NKey: "y"}}, "cluster.nats: has several"},
		"a user without a password":   {Options{NATS: NATS{URL: "nats://a", User: "x"}}, "cluster.nats.user: and"},
		"a certificate without a key": {Options{NATS: NATS{URL: "nats://a", TLS: TLS{Cert: "x"}}}, "cluster.nats.tls.cert: and"},
		"routes without a server":     {Options{NATS: NATS{URL: "nats://a", Routes: []string{"b:1"}}}, "cluster.nats.routes: needs an embedded server"},
		"a route that is none":        {Options{NATS: NATS{Embedded: true, Routes: []string{"b"}}}, "cluster.nats.routes[0]: \"b\""},
		"routes one way":              {Options{NATS: NATS{Embedded: true, RoutesListen: "off", Routes: []string{"b:1"}}}, "cluster.nats.routes_listen: is off"},
		"timeout":                     {Options{Timeout: -1, NATS: NATS{URL: "nats://a"}}, "cluster.timeout: cannot be turned off"},
		"routes for everybody":        {Options{NATS: NATS{Embedded: true, Routes: []string{"b:1"}}}, "cluster.nats.routes_listen: :6222 is reachable from other machines"},
		"routes that are told":        {Options{NATS: NATS{Embedded: true, RoutesListen: "0.0.0.0:1"}}, "expected nats.user with nats.password (CARILLON_CLUSTER_NATS_PASSWORD), or nats.tls with ca, cert and key, or an address such as 127.0.0.1:6222"},
		"clients for everybody":       {Options{NATS: NATS{Embedded: true, Listen: "[::]:4222"}}, "cluster.nats.listen: [::]:4222 is reachable"},
		"TLS with any authority":      {Options{NATS: NATS{Embedded: true, RoutesListen: "10.0.0.1:1", TLS: TLS{Cert: "c", Key: "k"}}}, "cluster.nats.routes_listen: 10.0.0.1:1 is reachable"},
		"a short password":            {Options{NATS: NATS{Embedded: true, User: "u", Password: "p"}}, "cluster.nats.password: is shorter than 16 characters: generate one, for example with openssl rand -hex 16"},
		"a password in the URL":       {Options{NATS: NATS{URL: "http://me:secret@a"}}, "\"http://a\""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %s", err, c.want)
			}
		})
	}
}

func TestWhereTheEmbeddedServerMayListen(t *testing.T) {
	protected := NATS{User: "u", Password: "sixteen-or-more-x"}
	certified := NATS{TLS: TLS{CA: "a", Cert: "c", Key: "k"}}
	for name, n := range map[string]NATS{
		"nowhere":                        {},
		"on the loopback interface":      {Listen: "127.0.0.1:4222", RoutesListen: "[::1]:6222", Routes: []string{"b:1"}},
		"at localhost":                   {Listen: "localhost:4222", RoutesListen: "off"},
		"anywhere, with a password":      {Listen: ":4222", Routes: []string{"b:1"}, User: protected.User, Password: protected.Password},
		"anywhere, with certificates":    {Listen: ":4222", RoutesListen: ":1", TLS: certified.TLS},
		"a password of someone else's":   {URL: "nats://a", User: "u", Password: "p"},
		"a token that someone else made": {URL: "nats://a", Token: "t"},
	} {
		n.Embedded = n.URL == ""
		if _, err := (Options{NATS: n}).Resolve(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryNameOfATopicPasses(t *testing.T) {
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}
	rule := topic.Rule{Match: "kept.>", History: 10}
	alice, bob := join(t, o, rule), join(t, o, rule)
	odd := "a.$b-_~:@/+=,!%&'();$.ABZz09"
	for _, name := range []string{odd, "kept." + odd, "plain." + strings.Repeat("x", 249), "kept." + strings.Repeat("x.", 124) + "yz"} {
		if err := topic.Check(name); err != nil {
			t.Fatal(err)
		}
		bob.follow(name)
		if !strings.HasPrefix(name, "kept.") {
			if err := alice.publish(name, "x", 1); err != nil {
				t.Fatal(err)
			}
			eventually(t, name, func() bool { return slices.ContainsFunc(bob.all(), func(p passed) bool { return p.topic == name }) })
			continue
		}
		if _, err := alice.store(name, "x", ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, name, func() bool { return slices.ContainsFunc(bob.allKept(), func(k kept) bool { return k.topic == name }) })
		if k, err := bob.load(name, 0); err != nil || len(k.Messages) != 1 {
			t.Errorf("%s: loaded %v, %v", name, k, err)
		}
	}
}

func TestAPatternTakesThePlaceOfWhatItCovers(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}})
	before := n.nc.NumSubscriptions()
	is := func(want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d subscriptions", want), func() bool { return n.nc.NumSubscriptions()-before == want })
	}
	n.follow("a.b", "a.c", "a.b.c", "d")
	is(4)
	n.follow("a.*")
	is(3) // a.*, a.b.c and d
	n.follow("a.>")
	is(2)
	n.Unfollow("a.b")
	n.Unfollow("a.>")
	is(3)
	n.Unfollow("a.*")
	is(3) // a.c, a.b.c and d
	n.Unfollow("a.c")
	n.Unfollow("a.b.c")
	n.Unfollow("d")
	is(0)
}

// A node that has just been met is greeted while the next heartbeat may be due. None overtakes another: that would look
// as if one were missing.
func TestHeartbeatsGoOutInTheirOrder(t *testing.T) {
	t.Parallel()
	o := Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}}
	alice, bob := join(t, o), join(t, o)
	bob.knows(2)
	var greetings sync.WaitGroup
	for range 8 {
		greetings.Go(func() {
			for range 100 {
				alice.beat(false)
			}
		})
	}
	greetings.Wait()
	heard := func() uint64 {
		bob.peers.mu.Lock()
		defer bob.peers.mu.Unlock()
		if p := bob.peers.nodes[alice.id]; p != nil {
			return p.count
		}
		return 0
	}
	eventually(t, "bob has heard all", func() bool { return heard() > 800 })
	last := heard()
	eventually(t, "and another, by when he would have looked again", func() bool { return heard() > last })
	if n := bob.resynced(); n > 0 {
		t.Errorf("bob looked again %d times", n)
	}
}

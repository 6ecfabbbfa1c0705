package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// fillUp publishes until there is no room, and returns how many messages were taken.
func (n *testNode) fillUp(payload string) (taken int) {
	n.t.Helper()
	eventually(n.t, "the store is full", func() bool {
		_, err := n.store(fmt.Sprint("fill.", taken), payload, "")
		if err == nil {
			taken++
		}
		return errors.Is(err, topic.ErrStoreFull)
	})
	return taken
}

// saysFull checks all that a full store is told by.
func (n *testNode) saysFull(began time.Time) {
	n.t.Helper()
	eventually(n.t, "the node is not ready", func() bool {
		err := n.Ready()
		return errors.Is(err, topic.ErrStoreFull) && strings.Contains(err.Error(), "the cluster store is full")
	})
	if took := time.Since(began); took > 15*time.Second {
		n.t.Errorf("that took %v", took)
	}
	if n.Stats().Full == 0 || gaugeOf(n, "carillon_nats_jetstream_full") != 1 || gaugeOf(n, "carillon_nats_jetstream_up") != 0 {
		n.t.Error("the metrics do not say that the store is full")
	}
	if got := n.log.count("refusing messages for persistent topics"); got != 1 {
		n.t.Errorf("it was logged %d times", got)
	}
	if k, err := n.load("fill.0", 0); err != nil || len(k.Messages) != 1 {
		n.t.Errorf("what is kept cannot be read: %v, %v", payloads(k.Messages), err)
	}
}

// takesAgain waits until there is room, and then all must be as before.
func (n *testNode) takesAgain() {
	n.t.Helper()
	eventually(n.t, "messages are taken again", func() bool {
		_, err := n.store("fill.again", "x", "")
		return err == nil
	})
	eventually(n.t, "the node is ready", func() bool { return n.Ready() == nil })
	if gaugeOf(n, "carillon_nats_jetstream_full") != 0 || gaugeOf(n, "carillon_nats_jetstream_up") != 1 {
		n.t.Error("the metrics say that the store is full")
	}
	if k, err := n.load("fill.0", 0); err != nil || len(k.Messages) != 1 {
		n.t.Errorf("what was kept: %v, %v", payloads(k.Messages), err)
	}
}

func TestAFullJetStreamIsSaidAndGoesOnWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	n, err := tryJoinTuned(t, Options{NATS: NATS{Embedded: true, StoreDir: filepath.Join(t.TempDir(), "store")}},
		func(o *natsserver.Options) { o.JetStreamMaxStore = 1 << 20 }, topic.Rule{Match: ">", History: 100})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	taken := n.fillUp(strings.Repeat("x", 10_000))
	n.saysFull(began)
	st := n.streams[0]
	epoch := st.epochNow()
	question := `{"filter": "` + n.names.store(st.id, epoch, fmt.Sprint("fill.", taken/2)) + `"}`
	if m, err := n.nc.Request("$JS.API.STREAM.PURGE."+st.name, []byte(question), patience); err != nil || !strings.Contains(string(m.Data), `"success":true`) {
		t.Fatal(m, err)
	}
	eventually(t, "messages are taken again", func() bool { return n.Ready() == nil })
	if _, err := n.store("other", "x", ""); err != nil {
		t.Error(err)
	}
	if gaugeOf(n, "carillon_nats_jetstream_full") != 0 || gaugeOf(n, "carillon_nats_jetstream_up") != 1 {
		t.Error("the metrics say that the store is full")
	}
}

func TestAFullDiskIsSaidAndGoesOnWhenThereIsRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Skip("needs a small file system of its own, which only root may mount:", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	n := join(t, Options{Timeout: 2 * time.Second, NATS: NATS{Embedded: true, StoreDir: filepath.Join(dir, "store")}},
		topic.Rule{Match: ">", History: 100})
	if _, err := n.store("fill.0", "x", ""); err != nil {
		t.Fatal(err)
	}
	epoch := n.streams[0].epochNow()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	f.Close()
	if err := os.Truncate(ballast, func() int64 { i, _ := os.Stat(ballast); return i.Size() - 1<<20 }()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "the store is full", func() bool {
		_, err := n.store("fill.more", strings.Repeat("x", 100_000), "")
		return errors.Is(err, topic.ErrStoreFull)
	})
	n.saysFull(began)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n.takesAgain()
	if got := n.streams[0].epochNow(); got != epoch {
		t.Logf("a new epoch has begun")
	}
}

package cluster

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A store is full when JetStream has reached a limit of its server or account, or its disk has no room. Messages for
// topics with history are refused then, what is kept can still be read, and every few seconds a small message tells
// whether there is room again.

// fullness says since when there is no room for a stream's messages.
type fullness struct {
	since time.Time
	err   error
}

const (
	roomTopic    = "$room" // what is stored to see whether there is room; no client can name it
	roomInterval = 2 * time.Second

	// fullPatience is how long a store may be full until the node counts as not ready.
	fullPatience = 5 * time.Second

	// roomNeeded is how much has to be free on the disk before JetStream is started again after it was full.
	roomNeeded = 1 << 20
)

// isFull reports whether JetStream refuses a message for want of room.
func (e *apiError) isFull() bool {
	switch e.ErrCode {
	case 10002, 10023, 10028, 10047: // of the account, of the server, memory, storage
		return true
	case 10077: // a limit of the stream, where it refuses what is beyond
		return strings.Contains(e.Description, "maximum")
	}
	return false
}

// filled notes that there is no room for a stream's messages.
func (b *Broker) filled(st *stream, err error) {
	if st.full.CompareAndSwap(nil, &fullness{time.Now(), err}) {
		b.stats.full.Add(1)
		b.log.Error("the cluster store is full; refusing messages for persistent topics until there is room", "stream", st.name,
			"topics", st.match, "error", err)
	}
}

// outOfSpace takes what the embedded server logs: it says in no other way that its disk is full, and writes nothing to
// a stream any more for which a write has failed.
func (b *Broker) outOfSpace(text string) {
	if !strings.Contains(text, "no space left on device") {
		return
	}
	b.noSpace.Store(true)
	for _, st := range b.byRule {
		if st.config.Storage == storageFile {
			b.filled(st, fmt.Errorf("%w: no space left on the disk of cluster.nats.store_dir, %s", topic.ErrStoreFull, b.o.NATS.StoreDir))
		}
	}
}

// makeRoom starts the embedded JetStream again when its disk has room.
func (b *Broker) makeRoom() {
	if b.embedded == nil || !b.noSpace.Load() || !hasRoom(b.o.NATS.StoreDir) {
		return
	}
	b.noSpace.Store(false)
	b.log.Info("the disk of cluster.nats.store_dir has room again; restarting JetStream")
	b.doubtAll()
	err := b.embedded.ShutdownJetStream()
	if err == nil {
		o := b.jetStream
		err = b.embedded.EnableJetStream(&natsserver.JetStreamConfig{StoreDir: o.StoreDir, MaxMemory: o.JetStreamMaxMemory,
			MaxStore: o.JetStreamMaxStore, SyncInterval: o.SyncInterval, SyncAlways: o.SyncAlways, Strict: !o.NoJetStreamStrict})
	}
	if err != nil {
		b.noSpace.Store(true)
		b.log.Error("could not restart JetStream", "error", err)
	}
}

// hasRoom reports whether a file of some size can be written to a directory.
func hasRoom(dir string) bool {
	f, err := os.CreateTemp(dir, "carillon-room-*")
	if err != nil {
		return false
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, roomNeeded))
	return errors.Join(err, f.Sync(), f.Close()) == nil
}

// tryRoom stores a small message in a stream that was full, or did not acknowledge one in time. It takes a moment.
func (b *Broker) tryRoom(st *stream) {
	if st.full.Load() == nil && st.late.Load() == 0 || time.Since(st.tried) < roomInterval || st.isDoubtful() {
		return
	}
	st.tried = time.Now()
	epoch := st.epochNow()
	timeout, given := min(b.o.Timeout, roomInterval), st.given(epoch)
	text := sealKept(&topic.Publication{})
	b.exchange(b.names.store(st.id, epoch, roomTopic), text, timeout, func(ack *nats.Msg, err error) bool {
		p, err := st.acknowledged(ack, given, err)
		switch {
		case errors.Is(err, topic.ErrStoreFull):
			b.filled(st, err)
		case err == nil:
			b.see(st, mark{epoch, p.Offset, timeOf(b.clock()), true})
			if full := st.full.Swap(nil); full != nil {
				b.log.Info("the cluster store has room again", "topics", st.match, "after", time.Since(full.since).Round(time.Second))
			}
		}
		return false
	})
}

// fullErr says why there is no room for a stream's messages, or nil.
func (st *stream) fullErr() error {
	if full := st.full.Load(); full != nil {
		return full.err
	}
	return nil
}

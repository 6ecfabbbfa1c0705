package reactor

import (
	"os"
	"strings"
	"testing"

	"carillon/codec"
	"carillon/server/internal/outbox"
	"carillon/server/internal/sys"
)

// The newest messages that have waited for a socket leave in turns of the connection, whether they are large or have to
// be compressed.
func TestNewestMessagesLeaveInTurns(t *testing.T) {
	const topics, size = 40, 100 << 10
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	for name, window := range map[string]uint8{"plain": 0, "compressed": codec.MaxWindow} {
		t.Run(name, func(t *testing.T) {
			e := &Engine{watcher: &sys.Watcher[*Conn]{}}
			e.Current.Store(&LoopSettings{Endpoints: []LoopEndpointSettings{{Deflater: codec.NewDeflater(1, 1)}}})
			sh := &Shard{Engine: e, Clock: 1}
			c := &Conn{sh: sh, ep: &LoopEndpoint{Engine: e}, fd: int32(null.Fd()), out: &outbox.Outbox{}, window: window}
			c.state.Store(StateOpen)
			sh.Stalled = []*Conn{c}
			for range topics {
				a := &Audience{Shard: sh, Latest: true}
				c.Join(a, 0, true)
				a.Publish(codec.NewFrame(codec.OpText, []byte(strings.Repeat("v", size))), 0)
				a.catchUp(0)
			}
			if c.ext.Stale != topics {
				t.Fatalf("%d topics have messages that wait", c.ext.Stale)
			}
			turns := 0
			for ; c.ext.Stale > 0; turns++ {
				before := c.ext.Stale
				if more := c.flushSome(); !more && c.ext.Stale > 0 {
					t.Fatalf("%d messages wait for no other turn", c.ext.Stale)
				}
				if n := before - c.ext.Stale; n < 1 || n > (maxFlush+outbox.ChunkSize)/size+1 {
					t.Errorf("turn %d sent %d messages", turns, n)
				}
			}
			if turns < topics*size/(maxFlush+outbox.ChunkSize+size) {
				t.Errorf("%d turns", turns)
			}
		})
	}
}

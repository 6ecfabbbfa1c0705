package server

import (
	"fmt"
	"strings"
	"testing"

	"carillon/server/internal/reactor"
)

// Messages that wait for a connection, more than are compressed at once, come whole and before what is sent to it
// alone.
func TestCatchingUpSendsAll(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Compression = Compression{Enabled: true}
	s := start(t, opts)
	c := dial(t, s, "/ws?topic=a", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9")
	subscribers(t, s, "a", 1)
	var conn *Conn
	for conn = range s.Conns() {
	}
	const messages = 6
	text := strings.Repeat("compresses well ", reactor.CatchUpBytes/64)
	blocked, goOn := make(chan struct{}), make(chan struct{})
	_ = conn.Do(func() { close(blocked); <-goOn })
	<-blocked
	for i := range messages {
		mustPublish(t, s, "a", fmt.Sprint(i, text))
	}
	if err := conn.Send(Text, []byte("that is all")); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	for i := range messages {
		header, payload := c.rawFrame()
		got := string(payload)
		if header[0] == 0xc1 {
			got = inflated(t, payload)
		}
		if got != fmt.Sprint(i, text) {
			t.Fatalf("message %d: %x %.80q", i, header, got)
		}
	}
	c.wantFrame(0x81, "that is all")
}

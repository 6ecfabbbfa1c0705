package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/server/internal/reactor"
)

// A handler blocks its loop. The other one goes on, and so does the citizen whose connections are there.
func TestAHandlerThatBlocks(t *testing.T) {
	free := make(chan struct{})
	s, log := startLogged(t, Options{Loops: 2, Endpoints: besieged(Endpoint{Path: "/block", Handler: Handler{
		Message: func(*Conn, Opcode, []byte) { waitHere(free) },
	}})})
	// The kernel chooses the loop of each connection.
	var blocker *client
	var shard *reactor.Shard
	for shard == nil {
		blocker = dial(t, s, "/block")
		shard = onlyConn(t, s, "/block").core().Shard()
	}
	z := settleApart(t, s, shard)
	before := footprintOf(s)
	blocker.send("block")
	// A machine that stands still may block any loop, which is told too.
	told := func() []string { return log.lines("event loop is blocked", "last_called=Message path=/block") }
	eventually(t, "it is logged", func() bool { return len(told()) > 0 })
	z.serves(50)
	eventually(t, "it is counted", func() bool { return s.Stats().Blocked == uint64(len(log.lines("event loop is blocked"))) })
	for _, word := range []string{"loop=", "waitHere", "watchdog_test.go"} {
		if line := told()[0]; !strings.Contains(line, word) {
			t.Errorf("the log does not say %q but\n%s", word, line)
		}
	}
	time.Sleep(2 * reactor.BlockedLook)
	if n := len(told()); n != 1 {
		t.Errorf("it is told %d times", n)
	}
	close(free)
	eventually(t, "the end is logged", func() bool { return strings.Contains(log.String(), "event loop is running again") })
	blocker.send("again")
	before.wantBack(t, s)
	z.serves(20)
	z.leave()
}

// waitHere has a name that a stack shows.
func waitHere(free chan struct{}) { <-free }

// settleApart settles a citizen none of whose connections is on a loop.
func settleApart(t testing.TB, s *Server, apart *reactor.Shard) *citizen {
	t.Helper()
	for range 200 {
		z := settle(t, s)
		near := false
		for c := range s.Conns() {
			near = near || c.shard() == apart && c.Path() != "/block"
		}
		if !near {
			return z
		}
		z.leave()
		eventually(t, "it is gone", func() bool { return s.Count() == 1 })
	}
	t.Fatal("the kernel puts one connection of three on the same loop, always")
	return nil
}

// lines are those that have all of these words.
func (l *logBuffer) lines(words ...string) (lines []string) {
	for line := range strings.Lines(l.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// Whatever the hook is in which a handler blocks, it is named.
func TestBlockedHooksAreNamed(t *testing.T) {
	for _, hook := range []string{"Upgrade", "Open", "Message", "Error", "Close", "Done", "Do", "After"} {
		t.Run(hook, func(t *testing.T) {
			free := make(chan struct{})
			block := func(here string) {
				if here == hook {
					waitHere(free)
				}
			}
			handler := Handler{
				Upgrade: func(*Request) error { block("Upgrade"); return nil },
				Open:    func(*Conn) { block("Open") },
				Message: func(c *Conn, _ Opcode, _ []byte) {
					block("Message")
					_ = c.Subscribe("a", SubscribeOptions{Done: func(Subscribed, error) { block("Done") }})
					_ = c.Do(func() { block("Do") })
					_, _ = c.After(1, func() { block("After") })
				},
				Error: func(*Conn, error) { block("Error") },
				Close: func(*Conn, error) { block("Close") },
			}
			s, log := startChanged(t, Options{Loops: 1, Endpoints: []Endpoint{{Path: "/here", Handler: handler}}}, func(s *Server) {
				s.engine.BlockedAfter = 100 * time.Millisecond
			})
			c := dialRaw(t, s)
			c.write(append([]byte(upgradeHead("/here")), text("hello")...))
			if hook == "Error" || hook == "Close" {
				c.write([]byte{0xff, 0x80, 0, 0, 0, 0}) // breaks a rule
			}
			// A machine that stands still may block the loop in another hook before.
			told := func() []string { return log.lines("event loop is blocked", "last_called="+hook) }
			eventually(t, "it is logged", func() bool { return len(told()) > 0 })
			close(free)
			if line := told()[0]; !strings.Contains(line, "path=/here") || !strings.Contains(line, "waitHere") {
				t.Errorf("the log says\n%s", line)
			}
			eventually(t, "the loop turns again", func() bool { return strings.Contains(log.String(), "event loop is running again") })
		})
	}
}

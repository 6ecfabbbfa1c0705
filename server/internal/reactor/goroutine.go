package reactor

import (
	"bytes"
	"fmt"
	"runtime"
	"strconv"
)

// goroutine identifies the loop's goroutine, so that its stack can be found, and so that tests can find out
// who touches what the loop owns. The runtime tells the number only as text, which is too slow for the
// latter outside of tests. 0 is unknown.
type goroutine uint64

// CheckOwner is set by this package's tests, for servers that are made afterwards.
var CheckOwner = false

func currentGoroutine() goroutine {
	var buf [64]byte
	text := buf[:runtime.Stack(buf[:], false)]
	number, _, _ := bytes.Cut(bytes.TrimPrefix(text, []byte("goroutine ")), []byte(" "))
	id, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		return 0
	}
	return goroutine(id)
}

func (g goroutine) check() {
	if now := currentGoroutine(); now != g {
		panic(fmt.Sprintf("server: goroutine %d touches what the loop on goroutine %d owns", now, g))
	}
}

// OnLoop reports whether it is called on an event loop.
func (e *Engine) OnLoop() bool {
	now := currentGoroutine()
	for _, sh := range e.AllShards() {
		if sh.goroutine == now {
			return true
		}
	}
	return false
}

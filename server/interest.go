package server

import (
	"fmt"
	"reflect"

	"github.com/panjf2000/gnet/v2"
)

// interest changes what a loop waits for on its sockets, which gnet does not offer: a connection whose input waits to
// be decoded is not read.
type interest struct {
	poller int // the epoll or kqueue instance; 0 for a shard without a loop, in tests
}

// newInterest finds the poller of a loop, which gnet keeps to itself.
func newInterest(loop gnet.EventLoop) (in interest, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("find the poller of an event loop: %v", p)
		}
	}()
	fd := reflect.ValueOf(loop).Elem().FieldByName("poller").Elem().FieldByName("fd")
	return interest{int(fd.Int())}, nil
}

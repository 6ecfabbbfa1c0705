package reactor

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/panjf2000/gnet/v2"
)

// interest changes what a loop waits for on its sockets, and how much it reads of one at a time, which gnet does not
// offer: a connection whose input waits to be decoded is not read. Owned by the loop.
type interest struct {
	poller int     // the epoll or kqueue instance; 0 for a shard without a loop, in tests
	Buffer *[]byte // the loop's, which gnet passes to read(2); nil for a shard without a loop
}

// CrowdedRead is how many bytes of a socket are read at a time while sockets have been served for long enough or very
// many connections wait for their turns. What is read then only waits, and each 4 KiB of memory that it waits in may be
// a page fault.
const CrowdedRead = 8 << 10

// newInterest finds the poller and the read buffer of a loop, which gnet keeps to itself.
func newInterest(loop gnet.EventLoop) (in interest, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("find the poller of an event loop: %v", p)
		}
	}()
	el := reflect.ValueOf(loop).Elem()
	fd := el.FieldByName("poller").Elem().FieldByName("fd")
	buffer := el.FieldByName("buffer")
	if buffer.Type() != reflect.TypeFor[[]byte]() {
		return interest{}, fmt.Errorf("find the read buffer of an event loop: it is a %v", buffer.Type())
	}
	return interest{int(fd.Int()), (*[]byte)(unsafe.Pointer(buffer.UnsafeAddr()))}, nil
}

// limitReads sets how much the loop reads of a socket at a time: CrowdedRead, or all that its buffer takes.
func (in interest) limitReads(crowded bool) {
	if in.Buffer == nil {
		return
	}
	size := cap(*in.Buffer)
	if crowded {
		size = min(CrowdedRead, size)
	}
	*in.Buffer = (*in.Buffer)[:size]
}

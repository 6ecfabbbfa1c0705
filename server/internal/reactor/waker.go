package reactor

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"carillon/server/internal/sys"
)

// waker wakes a loop from any goroutine: it writes one byte to a pair of sockets, and the loop reads the other end like
// any connection. gnet's own tasks would allocate. They also run until none are left, so a loop that asked itself for
// another turn would get it before any I/O that is ready. A waker comes after that I/O.
type waker struct {
	sh *Shard
	fd int32
}

var wakeByte = []byte{0}

func newWaker(sh *Shard) (*waker, error) {
	fds, err := sys.Pair()
	if err != nil {
		return nil, err
	}
	w := &waker{sh: sh, fd: int32(fds[1])}
	go w.register(fds[0]) // the loop has a part in this, so it cannot be waited for here
	return w, nil
}

// register gives the loop its end of the pair, in which bytes that were written before wait. It needs descriptors for a
// moment, and tries again if there are none.
func (w *waker) register(fd int) {
	defer syscall.Close(fd)
	for {
		err := w.enroll(fd)
		if err == nil || err == ErrStopped || w.sh.Mail.IsClosed() {
			return
		}
		if !sys.IsExhausted(err) {
			w.sh.Engine.Fail(fmt.Errorf("register a socket pair: %w", err))
			return
		}
		time.Sleep(exhaustedPause)
	}
}

func (w *waker) enroll(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	end, err := sys.ConnOf(own, "waker")
	if err != nil {
		return err
	}
	enrolled, err := w.sh.loop.Enroll(gnet.NewContext(context.Background(), w), end)
	if err != nil {
		_ = end.Close()
		return err
	}
	return w.sh.Engine.awaitEnrolled(enrolled)
}

// wake never blocks: when the socket is full, the loop has been woken often enough.
func (w *waker) wake() { _, _ = sys.Write(w.fd, wakeByte) }

func (w *waker) close() { _ = syscall.Close(int(w.fd)) }

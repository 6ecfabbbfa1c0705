package sys

import (
	"syscall"
	"testing"

	"carillon/internal/testenv"
)

// A full socket is reported once when it takes bytes again, and not at all when it is forgotten before.
func TestWatcher(t *testing.T) {
	writable := make(chan string, 10)
	w, err := NewWatcher(func(name string) { writable <- name })
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	full := func() (fds [2]int) {
		fds, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = syscall.Close(fds[0]), syscall.Close(fds[1]) })
		for {
			switch n, errno := Write(int32(fds[0]), make([]byte, 64<<10)); {
			case errno == syscall.EAGAIN:
				return fds
			case errno != 0 || n == 0:
				t.Fatal(n, errno)
			}
		}
	}
	empty := func(fd int) {
		for n := 1; n > 0; {
			n, _ = syscall.Read(fd, make([]byte, 64<<10))
		}
	}
	forgotten, watched := full(), full()
	w.Watch(int32(forgotten[0]), "forgotten")
	w.Watch(int32(watched[0]), "watched")
	w.Forget(int32(forgotten[0]))
	select {
	case name := <-writable:
		t.Errorf("%s is full, and reported as writable", name)
	default:
	}
	empty(forgotten[1])
	empty(watched[1])
	if name := <-writable; name != "watched" {
		t.Errorf("%s is reported", name)
	}
	empty(watched[1])
	w.Watch(int32(watched[0]), "again")
	if name := <-writable; name != "again" {
		t.Errorf("%s is reported", name)
	}
	if n := len(writable); n > 0 {
		t.Errorf("%d more are reported: %s", n, <-writable)
	}
}

// The memory of sockets that were watched is given back.
func TestWatcherGivesMemoryBack(t *testing.T) {
	var w Watcher[*int]
	testenv.GivesMemoryBack(t, 12, func(i int) { w.waiting.Set(int32(i), nil) }, func(i int) { w.Forget(int32(i)) })
}

// What a socket holds that its peer has not read is known, and how far the peer has come.
func TestHeldBytes(t *testing.T) {
	fds, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = syscall.Close(fds[0]), syscall.Close(fds[1]) }()
	fd := int32(fds[0])
	if n := HeldBytes(fd); n != 0 {
		t.Errorf("an empty socket holds %d bytes", n)
	}
	if _, errno := Write(fd, make([]byte, 1000)); errno != 0 {
		t.Fatal(errno)
	}
	held := HeldBytes(fd)
	before := TakenOf(fd, held)
	if held < 1000 {
		t.Errorf("it holds %d bytes of 1000", held)
	}
	_, _ = syscall.Read(fds[1], make([]byte, 2000))
	if after := TakenOf(fd, HeldBytes(fd)); after <= before {
		t.Errorf("the peer has read, and has come from %d to %d", before, after)
	}
}

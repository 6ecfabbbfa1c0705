package listen

import "golang.org/x/sys/unix"

// dup makes descriptor old refer to the same socket as descriptor with.
func dup(with, old int) error { return unix.Dup3(with, old, unix.O_CLOEXEC) }

//go:build !linux

package listen

import "golang.org/x/sys/unix"

// dup makes descriptor old refer to the same socket as descriptor with.
func dup(with, old int) error {
	if err := unix.Dup2(with, old); err != nil {
		return err
	}
	unix.CloseOnExec(old)
	return nil
}

//go:build !linux

package server

import "golang.org/x/sys/unix"

// replace makes descriptor old refer to the same socket as descriptor with.
func replace(with, old int) error {
	if err := unix.Dup2(with, old); err != nil {
		return err
	}
	unix.CloseOnExec(old)
	return nil
}

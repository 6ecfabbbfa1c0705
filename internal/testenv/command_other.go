//go:build !linux

package testenv

import (
	"os/exec"
	"syscall"
)

// EndWithTests does nothing here: only Linux can send a program a signal when the process that started it ends.
func EndWithTests(*exec.Cmd, syscall.Signal) {}

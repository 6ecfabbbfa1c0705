package testenv

import (
	"os/exec"
	"syscall"
)

// EndWithTests has the kernel send a signal to a program, which has not been started yet, when this process ends,
// even if it is killed. A signal that was chosen before stays. On other systems than Linux it does nothing.
func EndWithTests(cmd *exec.Cmd, by syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = by
	}
}

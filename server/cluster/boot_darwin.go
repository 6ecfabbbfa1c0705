package cluster

import "syscall"

// bootID names this start of the machine; empty if that is not known.
func bootID() string {
	id, _ := syscall.Sysctl("kern.bootsessionuuid")
	return id
}

package cluster

import "os"

// bootID names this start of the machine; empty if that is not known.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(id)
}

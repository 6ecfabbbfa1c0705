package listen

import (
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// DescriptorLimit is how many descriptors this process may have.
func DescriptorLimit() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)), nil
}

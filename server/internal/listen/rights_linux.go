package listen

import "golang.org/x/sys/unix"

// soPassRights is SO_PASSRIGHTS of asm-generic/socket.h, which Linux has since version 6.16.
const soPassRights = 83

// refuseDescriptors has the kernel refuse descriptors that clients of a unix socket pass (SCM_RIGHTS). They are not
// wanted, and read(2), which drops them, may have to close the last one of a socket that lingers: for as long the loop
// would stand. It is called before the socket listens; what it accepts inherits that. Older kernels cannot do it.
func refuseDescriptors(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, soPassRights, 0) }

//go:build !linux

package listen

import (
	"log/slog"
	"net"
	"time"
)

// HandoverTime is how long the loops still accept connections.
const HandoverTime = time.Second

// ClearSteering is for Linux, too.
func ClearSteering(*net.TCPAddr) {}

// SteerAway is for Linux, where two processes can listen on a port and share what comes.
func SteerAway(*net.TCPAddr, bool, *slog.Logger) int { return 0 }

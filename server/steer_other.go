//go:build !linux

package server

import (
	"log/slog"
	"net"
	"time"
)

const handoverTime = time.Second

func steerNobody(*net.TCPAddr) {}

// steerAway is for Linux, where two processes can listen on a port and share what comes.
func steerAway(*net.TCPAddr, bool, *slog.Logger) int { return 0 }

//go:build !linux

package server

import "time"

func threadTime() (thread int, used time.Duration, known bool) { return 0, 0, false }

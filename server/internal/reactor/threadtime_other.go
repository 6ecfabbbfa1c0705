//go:build !linux

package reactor

import "time"

func threadTime() (thread int, used time.Duration, known bool) { return 0, 0, false }

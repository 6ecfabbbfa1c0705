//go:build !linux

package sys

import "time"

func ThreadTime() (thread int, used time.Duration, known bool) { return 0, 0, false }

package reactor

import (
	"fmt"
	"os"

	"carillon/server/internal/listen"
)

// Room is how many connections the descriptor limit allows. Beside them there must be some for what is
// open already at the start, for each loop's own descriptors, for the clients that are being refused, for
// the internal interface, and for the files of the application.
type Room struct{ Total, most int }

// RoomFor computes the room for connections, beside the given number of loops and of internal connections.
func RoomFor(loops, internal int) (r Room, err error) {
	if r.Total, err = listen.DescriptorLimit(); err != nil {
		return r, err
	}
	open, _ := os.ReadDir("/dev/fd")
	if r.most = r.Total - len(open) - 8*loops - refuseSlots - internal - 32; r.most < 1 {
		err = fmt.Errorf("the descriptor limit of %d leaves no room for connections: raise it, for example with ulimit -n 65536", r.Total)
	}
	return r, err
}

// Sockets is the limit that was asked for, or what the descriptor limit allows.
func (r Room) Sockets(want int) (int, error) {
	switch {
	case want > r.most:
		return 0, fmt.Errorf("limits.max_connections is %d, but the descriptor limit of %d allows only %d: lower the former or raise the latter, for example with ulimit -n %d",
			want, r.Total, r.most, want+r.Total-r.most)
	case want > 0:
		return want, nil
	}
	return r.most, nil
}

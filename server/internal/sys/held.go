package sys

// takenWhileHeld is how far the peer has come of a socket that only says what it holds. It holds what is sent later,
// too, so a peer that is sent as much as it takes seems to stand still.
func takenWhileHeld(held int) uint64 { return 1<<62 - uint64(held) }

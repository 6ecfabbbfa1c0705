//go:build race

package server

// spoiled is what an application finds in bytes that it has kept for too long.
const spoiled = "bytes kept after the handler returned; "

// spoil overwrites bytes that were lent to the application, so that a program which keeps them fails in its tests and
// not with another client's message in their place.
func spoil(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, spoiled):]
	}
}

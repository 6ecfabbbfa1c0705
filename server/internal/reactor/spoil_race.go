//go:build race

package reactor

// Spoiled is what an application finds in bytes that it has kept for too long.
const Spoiled = "bytes kept after the handler returned; "

// Spoil overwrites bytes that were lent to the application, so that a program which keeps them fails in its tests and
// not with another client's message in their place.
func Spoil(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, Spoiled):]
	}
}

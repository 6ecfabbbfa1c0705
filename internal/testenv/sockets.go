package testenv

import (
	"os"
	"testing"
)

// SocketDir makes a directory for unix sockets, which goes with the test. The name of [testing.T.TempDir] may be too
// long for a socket's.
func SocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "carillon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

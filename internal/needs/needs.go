// Package needs finds what tests need that is not in this repository: programs, and what .ci's scripts install.
// Without it a test is skipped, except where the environment variable CI is true: there everything has to be
// installed, and the test fails. Only tests import this package.
package needs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Program finds a program by its name, and returns its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name) // where Debian has servers, which is not in everybody's PATH
	}
	if err != nil {
		Missing(t, name, err)
	}
	return path
}

// NodeWS finds Node.js, version 18 or later, and the npm package ws. It returns the path of node, and of the package's
// directory for a test whose package is a directory below the repository's top.
func NodeWS(t testing.TB) (node, ws string) {
	t.Helper()
	node = Program(t, "node")
	ws, err := filepath.Abs(filepath.Join("..", ".ci", "npm", "node_modules", "ws"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ws); err != nil {
		Missing(t, "the npm package ws, which .ci/npm-install gets", err)
	}
	return node, ws
}

// Missing ends a test that lacks something.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must have %s: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}

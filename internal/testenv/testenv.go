// Package testenv has what tests of several packages need: programs and what .ci's scripts install, ports at which
// nothing listens, processes that end with the tests, certificates, issuers of tokens, and outputs that are read while
// they are written. Without a program a test is skipped, except where the environment variable CI is true: there
// everything has to be installed, and the test fails. Only tests import this package.
package testenv

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
		path, err = exec.LookPath("/usr/sbin/" + name) // where Debian has servers, which is not in every PATH
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
	return Program(t, "node"), npmPackage(t, "ws")
}

// Node finds Node.js and npm packages, which are those of .ci/npm, and returns the path of node.
func Node(t testing.TB, packages ...string) (node string) {
	t.Helper()
	for _, name := range packages {
		npmPackage(t, name)
	}
	return Program(t, "node")
}

func npmPackage(t testing.TB, name string) (dir string) {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".ci", "npm", "node_modules", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		Missing(t, "the npm package "+name+", which .ci/npm-install gets", err)
	}
	return dir
}

// Python finds a Python that has a module: the first one in PATH, or Debian's.
func Python(t testing.TB, module string) (python string) {
	t.Helper()
	var err error
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if err = exec.Command(python, "-c", "import "+module).Run(); err == nil {
			return python
		}
	}
	Missing(t, "Python's module "+module, err)
	return ""
}

// Missing ends a test that lacks something.
func Missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must have %s: %v", what, err)
	}
	t.Skipf("this test needs %s: %v", what, err)
}

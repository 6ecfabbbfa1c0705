package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// writePID writes this process's id into a file, all at once. The function that it returns removes the
// file, unless a successor has written its own id by then.
func writePID(path string) (remove func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	text := strconv.Itoa(os.Getpid()) + "\n"
	temporary, err := os.CreateTemp(filepath.Dir(path), ".carillon-pid-")
	if err != nil {
		return nil, fmt.Errorf("pid_file: %w", err)
	}
	_, err = temporary.WriteString(text)
	if err == nil {
		err = temporary.Chmod(0o644)
	}
	if closed := temporary.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
		return nil, fmt.Errorf("pid_file: %w", err)
	}
	return func() {
		if now, err := os.ReadFile(path); err == nil && string(now) == text {
			_ = os.Remove(path)
		}
	}, nil
}

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal makes one: what the person has before them, and what programs have.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// With a terminal SIGHUP reloads, too. When the terminal is closed it ends the program, as it ends others.
func TestAClosedTerminalEndsTheProgram(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	person, inside := terminal(t)
	m, variable := newManager(t)
	cmd := exec.Command(path)
	cmd.Stdin = inside
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	p := startCommand(t, []string{variable}, cmd)
	inside.Close()
	p.until("Stop with")
	m.hears(`READY=1\nSTATUS=listening on \S+`)
	m.reloads(p, "")
	person.Close()
	if status, _, stderr := p.end(); status != 0 || !strings.Contains(stderr, "reason=hangup") {
		t.Errorf("exit status %d: %s", status, stderr)
	}
}

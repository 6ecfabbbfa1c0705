package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// progressLine shows the progress of a run in one line of a terminal. It prints nothing if the output is not
// a terminal.
type progressLine struct {
	w       io.Writer
	visible bool
}

func newProgressLine(f *os.File) *progressLine {
	if !isTerminal(f) {
		return &progressLine{}
	}
	return &progressLine{w: f}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

func (p *progressLine) show(l progress) {
	if p.w == nil {
		return
	}
	p.visible = true
	fmt.Fprintf(p.w, "\r\x1b[K%s", l.line())
}

// clear erases the line.
func (p *progressLine) clear() {
	if p.visible {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.visible = false
	}
}

// line formats progress in under 100 columns.
func (l progress) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %.0f", l.phase, l.elapsed.Seconds())
	if l.limit > 0 {
		fmt.Fprintf(&b, "/%.0f", l.limit.Seconds())
	}
	fmt.Fprintf(&b, " s  %d/%d open", l.open, l.wanted)
	if l.failed > 0 {
		fmt.Fprintf(&b, ", %d failed", l.failed)
	}
	if l.received > 0 {
		fmt.Fprintf(&b, "  %.0f/s", l.received)
	}
	if l.p99 > 0 {
		fmt.Fprintf(&b, "  p50 %v p99 %v", shortMicros(l.p50), shortMicros(l.p99))
	}
	if l.serverCores > 0 {
		fmt.Fprintf(&b, "  server %.2f cores", l.serverCores)
	}
	return b.String()
}

// shortMicros rounds a time in microseconds to about three digits.
func shortMicros(v float64) time.Duration {
	d := time.Duration(v * float64(time.Microsecond))
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(10 * time.Microsecond)
}

package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// streams are the input and the outputs of the program, or those that a test has made.
type streams struct {
	in          io.Reader
	out, err    io.Writer
	inTerminal  bool // input comes from a terminal
	outTerminal bool // output goes to a terminal, not to another program
}

func standardStreams() streams {
	return streams{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		inTerminal: isTerminal(os.Stdin), outTerminal: isTerminal(os.Stdout),
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// clockLayout is how times of messages are shown.
const clockLayout = "15:04:05.000"

// harmless replaces what a terminal would take for a command: a message may come from any client, and must not be able
// to move the cursor or to rename the window. Line feeds and tabs stay.
func harmless(text string) string {
	bad := func(r rune) bool {
		return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) || r == utf8.RuneError
	}
	if strings.IndexFunc(text, bad) < 0 {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch {
		case !bad(r):
			b.WriteRune(r)
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case r == utf8.RuneError:
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// harmlessLine is harmless text without line feeds.
func harmlessLine(text string) string { return strings.ReplaceAll(harmless(text), "\n", `\n`) }

// previewed is how many bytes of a binary message are shown.
const previewed = 32

// preview shows what a binary message is.
func preview(payload []byte) string {
	begin, more := payload, ""
	if len(begin) > previewed {
		begin, more = begin[:previewed], " ..."
	}
	if len(begin) == 0 {
		return "binary, 0 bytes"
	}
	unit := "bytes"
	if len(payload) == 1 {
		unit = "byte"
	}
	return fmt.Sprintf("binary, %d %s: % x%s", len(payload), unit, begin, more)
}

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// screen shows a conversation: on a terminal with times and directions, in a pipe the payloads and
// nothing else. Any goroutine may call it.
type screen struct {
	mu       sync.Mutex // one line at a time
	out, err io.Writer

	terminal bool
	typed    bool // what is sent can be seen already
	json     bool
	times    bool
}

func newScreen(std streams, o connectOptions) *screen {
	return &screen{
		out: std.out, err: std.err, terminal: std.outTerminal, typed: std.inTerminal,
		json: o.json, times: !o.noTime,
	}
}

func (s *screen) opened(url, subprotocol string) {
	if !s.terminal {
		return
	}
	text := "connected to " + url
	if subprotocol != "" {
		text += ", subprotocol " + subprotocol
	}
	if s.typed {
		text += "; each line is a message, Ctrl-D to end"
	}
	s.note(text)
}

// note says something about the connection.
func (s *screen) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.err, "carillon: %s\n", text)
}

// control shows a ping or a pong.
func (s *screen) control(name string, payload []byte) {
	text := s.clock() + name
	if len(payload) > 0 {
		text += fmt.Sprintf(" %q", payload)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.err, text)
}

func (s *screen) clock() string {
	if !s.times {
		return ""
	}
	return time.Now().Format(clockLayout) + " "
}

func (s *screen) received(kind websocket.MessageType, payload []byte) error {
	if !s.terminal {
		return s.payload(payload)
	}
	text := string(payload)
	switch {
	case kind == websocket.MessageBinary:
		text = preview(payload)
	case s.json:
		text = indented(payload)
	}
	return s.line("< ", text)
}

// sending shows a line of a file or a pipe, since it has not been seen.
func (s *screen) sending(line []byte) error {
	if !s.terminal || s.typed {
		return nil
	}
	return s.line("> ", string(line))
}

// line shows a message. Further lines of it are indented, so that it cannot pretend to be two.
func (s *screen) line(direction, text string) error {
	begin := s.clock() + direction
	text = strings.ReplaceAll(harmless(text), "\n", "\n"+strings.Repeat(" ", len(begin)))
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := fmt.Fprintln(s.out, begin+text)
	return err
}

// payload prints a message for another program, in one write, so that it is there at once and whole.
func (s *screen) payload(payload []byte) error {
	if s.json {
		payload = compact(payload)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.out.Write(append(payload[:len(payload):len(payload)], '\n'))
	return err
}

func indented(text []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, text, "", "  ") != nil {
		return string(text)
	}
	return b.String()
}

func compact(text []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, text) != nil {
		return text
	}
	return b.Bytes()
}

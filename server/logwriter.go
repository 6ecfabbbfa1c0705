package server

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// LogWriter buffers log lines on their way to their destination, so that logging never blocks. A handler of
// log/slog writes on the goroutine that logs, which may be an event loop: a pipe that is not read would stop
// it, with all its connections. Lines wait in memory, up to 1 MiB, for one goroutine that writes them;
// what does not fit, or cannot be written because a disk is full, is lost and counted. Its methods may be
// called from any goroutine.
type LogWriter struct {
	to   io.Writer
	tell func(lost uint64)

	mu     sync.Mutex
	filled sync.Cond // lines has become longer, or closed is set
	lines  [][]byte  // guarded by mu
	bytes  int       // guarded by mu; of lines
	lost   uint64    // guarded by mu
	told   uint64    // guarded by mu; of those lost
	closed bool      // guarded by mu
	done   chan struct{}
}

const (
	maxLogBytes = 1 << 20
	maxLogLines = 8192
)

// NewLogWriter begins to write to a destination. Tell, which may be nil, is called on the writer's goroutine
// when lines can be written again after some were lost, to log how many; it may log through the same writer.
func NewLogWriter(to io.Writer, tell func(lost uint64)) *LogWriter {
	w := &LogWriter{to: to, tell: tell, done: make(chan struct{})}
	w.filled.L = &w.mu
	go w.run()
	return w
}

// Write takes one or more whole lines. It never blocks, keeps nothing of p, and never fails: what is lost is
// counted.
func (w *LogWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.bytes+len(p) > maxLogBytes || len(w.lines) == maxLogLines {
		w.lost++
		return len(p), nil
	}
	w.lines = append(w.lines, bytes.Clone(p))
	w.bytes += len(p)
	w.filled.Signal()
	return len(p), nil
}

// Lost is how many lines could not be written since the beginning.
func (w *LogWriter) Lost() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// Close takes no more lines and waits until those before are written, but no longer than the patience. It
// fails when some were not.
func (w *LogWriter) Close(patience time.Duration) error {
	w.mu.Lock()
	w.closed = true
	w.filled.Signal()
	w.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-w.done:
		return nil
	case <-late.C:
		return fmt.Errorf("the log was not written within %v", patience)
	}
}

func (w *LogWriter) run() {
	defer close(w.done)
	for {
		lines, ok := w.take()
		if !ok {
			return
		}
		for _, line := range lines {
			_, err := w.to.Write(line)
			w.wrote(len(line), err)
		}
	}
}

func (w *LogWriter) take() (lines [][]byte, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.lines) == 0 && !w.closed {
		w.filled.Wait()
	}
	lines, w.lines = w.lines, nil
	return lines, len(lines) > 0
}

// wrote accounts for a line, and tells of those that were lost before it.
func (w *LogWriter) wrote(n int, err error) {
	w.mu.Lock()
	w.bytes -= n
	if err != nil {
		w.lost++
		w.mu.Unlock()
		return
	}
	news := w.lost - w.told
	w.told = w.lost
	w.mu.Unlock()
	if news > 0 && w.tell != nil {
		w.tell(news)
	}
}

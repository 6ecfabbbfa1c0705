package server

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A pipe that is not read: loggers go on at once, what fits waits, and the rest is lost and counted. When it is read,
// all that waited comes, in order, and then how many were lost.
func TestLogWriterNeverBlocks(t *testing.T) {
	r, p := io.Pipe()
	var log *slog.Logger
	w := NewLogWriter(p, func(lost uint64) { log.Warn("log lines lost", "lines", lost) })
	log = slog.New(slog.NewTextHandler(w, nil))
	log.Info("the writer waits with this one")
	eventually(t, "it does", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.lines) == 0 })
	const lines = maxLogLines + 1000
	for i := range lines {
		log.Info("line", "i", i)
	}
	lost := w.Lost()
	if lost != lines-maxLogLines {
		t.Errorf("%d of %d lines are lost, and %d fit", lost, lines, maxLogLines)
	}
	if err := w.Close(50 * time.Millisecond); err == nil {
		t.Error("Close has not waited in vain")
	}

	var all bytes.Buffer
	read := make(chan error, 1)
	go func() { _, err := io.Copy(&all, r); read <- err }()
	if err := w.Close(patience); err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	got := strings.Count(all.String(), "msg=line")
	if uint64(got)+lost != lines || !strings.HasPrefix(all.String(), "time=") || !strings.Contains(all.String(), "i=0\n") {
		t.Errorf("%d lines came, %d are lost, of %d", got, lost, lines)
	}
	log.Info("too late")
	if w.Lost() < lost+1 {
		t.Error("what came after Close is not counted")
	}
}

// fickle fails as long as it is full.
type fickle struct {
	logBuffer
	full atomic.Bool
}

func (f *fickle) Write(p []byte) (int, error) {
	if f.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.logBuffer.Write(p)
}

// A disk is full for a while: what could not be written is counted, and told as soon as there is room.
func TestLogWriterOnAFullDisk(t *testing.T) {
	disk := &fickle{}
	var log *slog.Logger
	w := NewLogWriter(disk, func(lost uint64) { log.Warn("log lines lost", "lines", lost) })
	log = slog.New(slog.NewTextHandler(w, nil))
	log.Info("first")
	eventually(t, "the first is written", func() bool { return strings.Contains(disk.String(), "first") })
	disk.full.Store(true)
	for range 5 {
		log.Info("nowhere")
	}
	eventually(t, "five are lost", func() bool { return w.Lost() == 5 })
	disk.full.Store(false)
	log.Info("last")
	eventually(t, "the loss is told", func() bool { return strings.Contains(disk.String(), "lines=5") })
	if text := disk.String(); strings.Contains(text, "nowhere") || !strings.Contains(text, "last") {
		t.Errorf("the log has\n%s", text)
	}
	if err := w.Close(patience); err != nil {
		t.Error(err)
	}
}

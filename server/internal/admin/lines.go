package admin

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// longestLine is enough for the largest message in base64 or with what JSON escapes in usual text.
func (a *api) longestLine() int {
	limit := a.backend.MaxMessage()
	if limit < 0 || limit > maxPublishBatch/2 {
		return maxPublishBatch
	}
	return int(2*limit + 4<<10)
}

// errLongLine is returned for a line that was skipped.
var errLongLine = problemTooLarge.because("the line is longer than any valid message")

// lines reads a body line by line.
type lines struct {
	from    *bufio.Reader
	longest int
	long    []byte // a line that does not fit into the reader
	failed  error
}

func newLines(from io.Reader, longest int) *lines {
	return &lines{from: bufio.NewReaderSize(from, 16<<10), longest: longest}
}

// next returns a line without the space around it, which is good until the next call. A line whose end
// did not come is none, unless the body ends there in order.
func (l *lines) next() ([]byte, error) {
	if l.failed != nil {
		return nil, l.failed
	}
	l.long = l.long[:0]
	tooLong := false
	for {
		part, err := l.from.ReadSlice('\n')
		if err == nil && len(l.long) == 0 && !tooLong && len(part) <= l.longest {
			return bytes.TrimSpace(part), nil
		}
		if tooLong = tooLong || len(l.long)+len(part) > l.longest; !tooLong {
			l.long = append(l.long, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && len(l.long) == 0 && !tooLong:
			return nil, io.EOF
		case err == io.EOF:
			l.failed = io.EOF
		case err != nil:
			l.failed = err
			return nil, err
		}
		if tooLong {
			return nil, errLongLine
		}
		return bytes.TrimSpace(l.long), nil
	}
}

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// A batch goes out when it has so many lines or bytes, or when its first line has waited so long.
const (
	batchLines = 1000
	batchBytes = 1 << 20
	batchDelay = 100 * time.Millisecond
)

// batchMessage is one line of a batch.
type batchMessage struct {
	Topic    string `json:"topic"`
	Data     any    `json:"data"`
	Encoding string `json:"encoding,omitempty"`
}

// batch is the body of a request that is being put together, and the lines that it answers for.
type batch struct {
	body  bytes.Buffer
	lines []batchLine
	sent  int // how many lines are in the body
}

// batchLine is a line of the input, in a batch so that results are printed in the order of the lines.
type batchLine struct {
	number int
	bad    error // why it is not in the body
}

func (b *batch) add(number int, message batchMessage) error {
	encoder := json.NewEncoder(&b.body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(message); err != nil {
		return err
	}
	b.lines = append(b.lines, batchLine{number: number})
	b.sent++
	return nil
}

func (b *batch) full() bool { return len(b.lines) >= batchLines || b.body.Len() >= batchBytes }

func (b *batch) reset() {
	b.body.Reset()
	b.lines, b.sent = b.lines[:0], 0
}

// numbered is a line on its way from the reader to the publisher.
type numbered struct {
	number int
	text   []byte
}

// publishLines publishes each line of the input, in order, with one request at a time. A line that is no message, or
// that the server refuses, does not stop the others. Ctrl-C is how tail -f ends: what was read is published.
func (p *publisher) publishLines(ctx context.Context) error {
	if p.inTerminal {
		fmt.Fprintln(p.err, "each line is a message; Ctrl-D to end")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	reading := make(chan numbered)
	read := make(chan error, 1)
	go func() {
		read <- lines(p.in, true, func(number int, text []byte) error {
			select {
			case reading <- numbered{number, text}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		close(reading)
	}()

	refused, err := p.batches(ctx, reading)
	if err == nil && ctx.Err() == nil {
		err = <-read
	}
	if err == nil && refused {
		return errReported
	}
	return err
}

// batches publishes until there are no more lines. It reports whether some could not be published.
func (p *publisher) batches(ctx context.Context, reading <-chan numbered) (refused bool, err error) {
	var b batch
	due := time.NewTimer(batchDelay)
	due.Stop()
	flush := func() error {
		due.Stop()
		bad, err := p.flush(context.WithoutCancel(ctx), &b)
		refused = refused || bad
		return err
	}
	for more := true; more && err == nil; {
		var line numbered
		select {
		case line, more = <-reading:
			if !more {
				err = flush()
				break
			}
			if len(line.text) > batchBytes {
				err = flush() // it goes alone: the server may refuse a request of this size
			}
			if len(b.lines) == 0 {
				due.Reset(batchDelay)
			}
			if p.addLine(&b, line); err == nil && b.full() {
				err = flush()
			}
		case <-due.C:
			err = flush()
		case <-ctx.Done():
			more, err = false, flush()
		}
	}
	return refused, err
}

// addLine puts a line into the batch, or what is wrong with it.
func (p *publisher) addLine(b *batch, line numbered) {
	text := line.text
	message := batchMessage{Topic: p.topic, Data: string(text), Encoding: "text"}
	if p.json {
		text = bytes.TrimPrefix(text, []byte(byteOrderMark)) // files that were put together have one at each beginning
		if len(bytes.TrimSpace(text)) == 0 {
			return // as between the values of an NDJSON file
		}
		message = batchMessage{Topic: p.topic, Data: json.RawMessage(text)}
	}
	err := p.check(text)
	if err == nil {
		err = b.add(line.number, message)
	}
	if err != nil {
		b.lines = append(b.lines, batchLine{number: line.number, bad: err})
	}
}

// flush publishes a batch, shows what became of its lines, and empties it.
func (p *publisher) flush(ctx context.Context, b *batch) (refused bool, err error) {
	if len(b.lines) == 0 {
		return false, nil
	}
	defer b.reset()
	results, failed := p.postBatch(ctx, b)
	for _, line := range b.lines {
		var bad bool
		switch {
		case line.bad != nil:
			bad, err = true, p.showBad(line.number, line.bad)
		case failed == nil:
			bad, err = p.showResult(line.number, results[0])
			results = results[1:]
		}
		if err != nil {
			return refused, err
		}
		refused = refused || bad
	}
	return refused, failed
}

// postBatch returns one result for each line in the body of a batch.
func (p *publisher) postBatch(ctx context.Context, b *batch) ([]json.RawMessage, error) {
	if b.sent == 0 {
		return nil, nil
	}
	which := fmt.Sprintf("publish lines %d to %d", b.lines[0].number, b.lines[len(b.lines)-1].number)
	answer, err := p.post(ctx, "/v1/messages", "application/x-ndjson", b.body.Bytes())
	if isTooLarge(err) && len(b.lines) == 1 {
		b.lines[0].bad = err // the next lines may well be shorter
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", which, err)
	}
	var list struct {
		Results []json.RawMessage `json:"results"`
	}
	if err := json.Unmarshal(answer, &list); err != nil || len(list.Results) != b.sent {
		return nil, fmt.Errorf("%s: the server returned %d results for %d messages", which, len(list.Results), b.sent)
	}
	return list.Results, nil
}

// isTooLarge reports whether the server, or a proxy before it, refused a request for its size.
func isTooLarge(err error) bool {
	if d, ok := errors.AsType[*problemDocument](err); ok {
		return d.Status == http.StatusRequestEntityTooLarge
	}
	r, ok := errors.AsType[*refused](err)
	return ok && r.status == http.StatusRequestEntityTooLarge
}

// showResult shows the server's answer about one line.
func (p *publisher) showResult(number int, answer []byte) (refused bool, err error) {
	var result published
	if json.Unmarshal(answer, &result) != nil || result.Error == nil {
		return false, p.print(answer)
	}
	fmt.Fprintf(p.err, "carillon: line %d: %v\n", number, result.Error)
	if p.output == "json" {
		_, err = fmt.Fprintf(p.out, "%s\n", compact(answer))
	}
	return true, err
}

// showBad shows what is wrong with a line that was not sent, or whose request was refused, as showResult does.
func (p *publisher) showBad(number int, bad error) error {
	fmt.Fprintf(p.err, "carillon: line %d: %v\n", number, bad)
	if p.output != "json" {
		return nil
	}
	d, ok := errors.AsType[*problemDocument](bad)
	if !ok {
		d = &problemDocument{Title: "The line was not published", Status: http.StatusUnprocessableEntity, Detail: bad.Error()}
	}
	answer, err := json.Marshal(struct {
		Error *problemDocument `json:"error"`
	}{d})
	if err == nil {
		_, err = fmt.Fprintf(p.out, "%s\n", answer)
	}
	return err
}

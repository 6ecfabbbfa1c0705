package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// batch is the body of a request that is being put together.
type batch struct {
	body    bytes.Buffer
	numbers []int // of the lines, to tell a person which one was wrong
}

func (b *batch) add(number int, message batchMessage) error {
	encoder := json.NewEncoder(&b.body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(message); err != nil {
		return fmt.Errorf("line %d: %w", number, err)
	}
	b.numbers = append(b.numbers, number)
	return nil
}

func (b *batch) full() bool { return len(b.numbers) >= batchLines || b.body.Len() >= batchBytes }

// numbered is a line on its way from the reader to the publisher.
type numbered struct {
	number int
	text   []byte
}

// publishLines publishes each line of the input, in order, with one request at a time. A line that the
// server refuses does not stop the others. Ctrl-C is how tail -f ends: what was read is published.
func (p *publisher) publishLines(ctx context.Context) error {
	if p.inTerminal {
		fmt.Fprintln(p.err, "each line is a message; Ctrl-D ends")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	reading := make(chan numbered)
	read := make(chan error, 1)
	go func() {
		read <- lines(p.in, func(number int, text []byte) error {
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

// batches publishes until there are no more lines. It says whether the server refused any.
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
			if len(b.numbers) == 0 {
				due.Reset(batchDelay)
			}
			if bad := p.addLine(&b, line); bad != nil {
				err = errors.Join(flush(), bad) // the lines before it are good
			} else if b.full() {
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

func (p *publisher) addLine(b *batch, line numbered) error {
	if p.json && len(bytes.TrimSpace(line.text)) == 0 {
		return nil // as between the values of an NDJSON file
	}
	if err := p.check(line.text); err != nil {
		return fmt.Errorf("line %d: %w", line.number, err)
	}
	if p.json {
		return b.add(line.number, batchMessage{Topic: p.topic, Data: json.RawMessage(line.text)})
	}
	return b.add(line.number, batchMessage{Topic: p.topic, Data: string(line.text), Encoding: "text"})
}

// flush publishes a batch and empties it.
func (p *publisher) flush(ctx context.Context, b *batch) (refused bool, err error) {
	if len(b.numbers) == 0 {
		return false, nil
	}
	first, last := b.numbers[0], b.numbers[len(b.numbers)-1]
	answer, err := p.post(ctx, "/v1/messages", "application/x-ndjson", b.body.Bytes())
	if err != nil {
		return false, fmt.Errorf("publish lines %d to %d: %w", first, last, err)
	}
	var list struct {
		Results []json.RawMessage `json:"results"`
	}
	if err := json.Unmarshal(answer, &list); err != nil || len(list.Results) != len(b.numbers) {
		return false, fmt.Errorf("publish lines %d to %d: the server answered %d results for %d messages",
			first, last, len(list.Results), len(b.numbers))
	}
	for i, answer := range list.Results {
		bad, err := p.result(b.numbers[i], answer)
		if err != nil {
			return refused, err
		}
		refused = refused || bad
	}
	b.body.Reset()
	b.numbers = b.numbers[:0]
	return refused, nil
}

// result shows what became of one line.
func (p *publisher) result(number int, answer []byte) (refused bool, err error) {
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

package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"carillon/codec"
	"carillon/server/internal/envelope"
	"carillon/server/internal/logs"
	"carillon/server/internal/strictjson"
	"carillon/server/topic"
)

// buffers are for bodies and replies on their way.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// keepBuffer is the largest buffer that is kept for the next request.
const keepBuffer = 64 << 10

func giveBack(buf *[]byte) {
	if cap(*buf) <= keepBuffer {
		buffers.Put(buf)
	}
}

// publish takes one message for one topic, which is the request's body.
func (a *api) publish(w http.ResponseWriter, r *http.Request) error {
	p := topic.Publication{Key: r.Header.Get("Idempotency-Key")}
	var err error
	if p.Topic, err = topicOf(r); err != nil {
		return err
	}
	if r.URL.RawQuery != "" {
		if _, err = parameters(r); err != nil {
			return err
		}
	}
	if p.Format, err = formatOf(r); err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer giveBack(buf)
	if p.Payload, err = a.body(w, r, buf); err != nil {
		return err
	}
	p.Payload = withoutMark(p.Payload, p.Format)
	receipt, err := a.backend.Publish(r.Context(), p)
	if err != nil {
		return err
	}
	*buf = append(appendReceipt((*buf)[:0], receipt), '\n') // the payload was copied
	replyBytes(w, *buf)
	return nil
}

// withoutMark returns JSON without the byte order mark that some programs put before it, which is no part of it (RFC
// 8259, 8.1).
func withoutMark(payload []byte, f topic.Format) []byte {
	if f == topic.FormatJSON {
		return bytes.TrimPrefix(payload, []byte("\ufeff"))
	}
	return payload
}

// appendReceipt writes what json.Marshal would, without what that costs.
func appendReceipt(b []byte, r topic.Receipt) []byte {
	b = strconv.AppendUint(append(b, `{"offset":`...), r.Offset, 10)
	b = append(append(append(b, `,"epoch":"`...), r.Epoch...), `","subscribers":`...)
	return append(strconv.AppendInt(b, int64(r.Subscribers), 10), '}')
}

// formatOf reads the Content-Type.
func formatOf(r *http.Request) (topic.Format, error) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return 0, problemMediaType.because("Content-Encoding is %.40q: expected none", encoding)
	}
	kind := r.Header.Get("Content-Type")
	switch kind {
	case "application/json":
		return topic.FormatJSON, nil
	case "", "text/plain":
		return topic.FormatText, nil
	}
	media, parameters, err := mime.ParseMediaType(kind)
	if err != nil {
		return 0, problemMediaType.because("Content-Type is %.40q: expected one such as application/json", kind)
	}
	charset := strings.ToLower(parameters["charset"])
	switch {
	case media == "application/x-www-form-urlencoded", media == "multipart/form-data":
		// What curl says of -d where it is not told, and of -F, whose body has a message only between other things.
		return 0, problemMediaType.because("Content-Type is that of a form, %s: expected text/plain, application/json or application/octet-stream, such as with curl -H 'Content-Type: text/plain' --data-binary @FILE", media)
	case media != "application/json" && !strings.HasSuffix(media, "+json") && !strings.HasPrefix(media, "text/"):
		return topic.FormatBinary, nil
	case charset != "" && charset != "utf-8" && charset != "utf8" && charset != "us-ascii":
		return 0, problemMediaType.because("charset is %.40q: expected utf-8", charset)
	case strings.HasPrefix(media, "text/"):
		return topic.FormatText, nil
	}
	return topic.FormatJSON, nil
}

// body reads a message into a buffer.
func (a *api) body(w http.ResponseWriter, r *http.Request, buf *[]byte) ([]byte, error) {
	from := io.Reader(r.Body)
	if limit := a.backend.MaxMessage(); limit >= 0 {
		if r.ContentLength > limit {
			return nil, topic.ErrTooLarge
		}
		if r.ContentLength < 0 {
			from = http.MaxBytesReader(w, r.Body, limit)
		}
	}
	b := (*buf)[:0]
	defer func() { *buf = b }()
	for {
		if len(b) == cap(b) {
			b = append(b, make([]byte, 512)...)[:len(b)]
		}
		n, err := from.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF:
			return b, nil
		case err != nil:
			return nil, unread(err)
		}
	}
}

// unread is what is answered when a body could not be read.
func unread(err error) error {
	if problemOf(err) == nil {
		return bad("the body ended early: %v", err)
	}
	return err
}

// What a batch may have.
const (
	maxPublishBatch = 16 << 20 // bytes
	maxLines        = 10_000
)

// batchTime is how long the broker may take at most to acknowledge the messages of a batch.
const batchTime = 15 * time.Second

// publishBatch takes messages for many topics, one JSON object in each line. Each stands alone: it is
// published, or has an error of its own. None waits for the broker to have another one.
func (a *api) publishBatch(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if media != "application/x-ndjson" || r.Header.Get("Content-Encoding") != "" {
		return problemMediaType.because("Content-Type is %.40q: expected application/x-ndjson, and no Content-Encoding", r.Header.Get("Content-Type"))
	}
	if r.ContentLength > maxPublishBatch {
		return problemTooLarge.because("the batch has %d bytes: expected at most %d", r.ContentLength, maxPublishBatch)
	}
	buf := buffers.Get().(*[]byte)
	defer giveBack(buf)
	b := append((*buf)[:0], `{"results":[`...)
	lines := newLines(http.MaxBytesReader(w, r.Body, maxPublishBatch), a.longestLine())
	var rest error // why what follows was not read
	var sent []publishing
	ctx, cancel := context.WithTimeout(r.Context(), batchTime)
	defer cancel()
	for n := 0; ; {
		line, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil && err != errLongLine {
			rest = a.restOfBatch(err)
			break
		}
		if err == nil && len(line) == 0 {
			continue
		}
		if n == maxLines {
			rest = problemTooLarge.because("the batch has more than %d lines", maxLines)
			break
		}
		n++
		sent = append(sent, a.sendLine(line, err))
	}
	for i, one := range sent {
		if i > 0 {
			b = append(b, ',')
		}
		p := one.wait(ctx)
		b = a.appendResult(b, r, p.receipt, p.err)
	}
	b = append(b, ']')
	if rest != nil {
		b = append(envelope.AppendJSON(append(b, `,"error":`...), rest), '}', '\n')
	} else {
		b = append(b, '}', '\n')
	}
	*buf = b
	replyBytes(w, b)
	return nil
}

func (a *api) restOfBatch(err error) error {
	var size *http.MaxBytesError
	if errors.As(err, &size) {
		return problemTooLarge.because("the batch has more than %d bytes", maxPublishBatch)
	}
	return problemOf(unread(err))
}

// published is what became of a message.
type published struct {
	receipt topic.Receipt
	err     error
}

// publishing is one that is on its way.
type publishing chan published

func (p publishing) wait(ctx context.Context) published {
	select {
	case got := <-p: // also when the time is over
		return got
	default:
	}
	select {
	case got := <-p:
		return got
	case <-ctx.Done():
		return published{err: fmt.Errorf("%w: no response in time", topic.ErrUncertain)}
	}
}

// sendLine publishes one line without waiting for the broker.
func (a *api) sendLine(line []byte, err error) publishing {
	sent := make(publishing, 1)
	var p topic.Publication
	if err == nil {
		p, err = publicationOf(line)
	}
	if err != nil {
		sent <- published{err: err}
		return sent
	}
	a.backend.PublishFunc(p, func(r topic.Receipt, err error) { sent <- published{r, err} })
	return sent
}

// appendResult appends the result of one line.
func (a *api) appendResult(b []byte, r *http.Request, receipt topic.Receipt, err error) []byte {
	if err == nil {
		return appendReceipt(b, receipt)
	}
	p := problemOf(err)
	if p == nil {
		a.backend.LogError("internal interface: unexpected error", "path", logs.Shorten(r.URL.Path), "error", logs.Shorten(err.Error()))
		p = problemInternal
	}
	return append(envelope.AppendJSON(append(b, `{"error":`...), p), '}')
}

// Unknown members are ignored, and null stands for an absent one, as in the JSON protocol.
var publishShape = strictjson.ShapeOf[envelope.Publish](strictjson.Rules{Unknown: true, Null: true})

// publicationOf reads a line. It shares nothing with it.
func publicationOf(line []byte) (p topic.Publication, err error) {
	line = withoutMark(line, topic.FormatJSON)
	var request envelope.Publish
	if err := json.Unmarshal(line, &request); err != nil || line[0] != '{' {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return p, bad("%s is a JSON %s: expected a string", kind.Field, kind.Value)
		}
		return p, bad("the line is not a JSON object")
	}
	if err := publishShape.Check(line); err != nil {
		return p, bad("the line %v", err)
	}
	if err := topic.Check(request.Topic); err != nil {
		return p, err
	}
	if err := request.CheckKey(); err != nil {
		return p, err
	}
	p = topic.Publication{Topic: request.Topic, Key: request.Key}
	p.Format, p.Payload, err = request.Message()
	return p, err
}

// broadcast sends a message to every connection of all endpoints, or of one.
func (a *api) broadcast(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "path")
	if err != nil {
		return err
	}
	path := query.Get("path")
	if query.Has("path") && !a.backend.HasEndpoint(path) {
		return fmt.Errorf("%w: %.100q", ErrNoEndpoint, path)
	}
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer giveBack(buf)
	payload, err := a.body(w, r, buf)
	payload = withoutMark(payload, format)
	switch {
	case err != nil:
		return err
	case format != topic.FormatBinary && !utf8.Valid(payload):
		return topic.ErrNotText
	case format == topic.FormatJSON && !json.Valid(payload):
		return topic.ErrNotJSON
	}
	n, err := a.backend.Broadcast(r.Context(), path, codec.NewFrame(format.Opcode(), payload))
	if err != nil {
		return err
	}
	return reply(w, struct {
		Connections int `json:"connections"`
	}{n})
}

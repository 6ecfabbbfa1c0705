package wsclient

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
)

// Deflater compresses and decompresses messages (RFC 7692, without context takeover). The bytes that it
// returns are valid until the next call.
type Deflater struct {
	writer *flate.Writer
	reader io.ReadCloser
	in     []byte
	source bytes.Reader
	out    bytes.Buffer
}

// tail is what senders strip from a compressed message, followed by an empty final block.
const tail = "\x00\x00\xff\xff\x01\x00\x00\xff\xff"

var errInflate = errors.New("malformed compressed message")

func (d *Deflater) Compress(message []byte) []byte {
	d.out.Reset()
	if d.writer == nil {
		d.writer, _ = flate.NewWriter(nil, flate.BestSpeed)
	}
	d.writer.Reset(&d.out)
	_, _ = d.writer.Write(message) // to memory
	_ = d.writer.Flush()
	return bytes.TrimSuffix(d.out.Bytes(), []byte(tail[:4]))
}

func (d *Deflater) Decompress(message []byte) ([]byte, error) {
	d.in = append(append(d.in[:0], message...), tail...)
	d.source.Reset(d.in)
	if d.reader == nil {
		d.reader = flate.NewReader(&d.source)
	} else if err := d.reader.(flate.Resetter).Reset(&d.source, nil); err != nil {
		return nil, errInflate
	}
	d.out.Reset()
	n, err := io.Copy(&d.out, io.LimitReader(d.reader, MaxFrame+1))
	if err != nil {
		return nil, errInflate
	}
	if n > MaxFrame {
		return nil, ErrFrameSize
	}
	return d.out.Bytes(), nil
}

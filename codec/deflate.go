package codec

import (
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gobwas/ws/wsflate"
)

// Deflater compresses messages for clients that negotiated permessage-deflate (RFC 7692), each on its
// own, without context takeover. It is safe from any goroutine. The compressors behind it are large
// (up to 1.2 MB each, depending on the level) and are pooled; there are about as many as goroutines
// that compress at the same time.
type Deflater struct {
	threshold int
	pool      sync.Pool // of *deflateWriter
}

// NewDeflater returns a Deflater. The level is that of compress/flate, -2 to 9; others panic. Payloads
// of less than threshold bytes are never compressed.
func NewDeflater(level, threshold int) *Deflater {
	if level < flate.HuffmanOnly || level > flate.BestCompression {
		panic(fmt.Sprintf("codec: deflate level %d", level))
	}
	d := &Deflater{threshold: threshold}
	d.pool.New = func() any { return newDeflateWriter(level) }
	return d
}

// AppendFrame appends one whole frame to dst. It is compressed when op is text or binary, the payload
// is not below the threshold and compression makes it smaller; otherwise it is that of [AppendFrame].
// In the steady state it allocates nothing but what dst needs to grow.
func (d *Deflater) AppendFrame(dst []byte, op Opcode, payload []byte) []byte {
	if op != OpText && op != OpBinary || len(payload) < d.threshold || len(payload) == 0 {
		return AppendFrame(dst, op, payload)
	}
	w := d.pool.Get().(*deflateWriter)
	defer d.pool.Put(w)

	// The header is at most as long as that of the plain frame, for which room is left; once the
	// compressed length is known the payload moves up against it.
	start, room := len(dst), headerLen(len(payload))
	var gap [10]byte
	dst = append(dst, gap[:room]...)
	dst, ok := w.appendCompressed(dst, payload)
	if !ok {
		return AppendFrame(dst[:start], op, payload)
	}
	compressed := dst[start+room:]
	dst = appendHeader(dst[:start], bitFin|bitRSV1|byte(op), len(compressed))
	return append(dst, compressed...)
}

// deflateWriter compresses to the end of a slice and gives up when that does not pay.
type deflateWriter struct {
	writer *wsflate.Writer
	dst    []byte
	limit  int // largest len(dst)
}

func newDeflateWriter(level int) *deflateWriter {
	w := new(deflateWriter)
	w.writer = wsflate.NewWriter(w, func(dst io.Writer) wsflate.Compressor {
		c, _ := flate.NewWriter(dst, level) // the level was checked in NewDeflater
		return c
	})
	return w
}

func (w *deflateWriter) appendCompressed(dst, payload []byte) (_ []byte, smaller bool) {
	w.dst, w.limit = dst, len(dst)+len(payload)-1
	w.writer.Reset(w)
	_, err := w.writer.Write(payload)
	if err == nil {
		err = w.writer.Flush()
	}
	dst, w.dst = w.dst, nil
	return dst, err == nil
}

var errNotSmaller = errors.New("codec: compression does not pay")

// Write implements io.Writer for wsflate.
func (w *deflateWriter) Write(p []byte) (int, error) {
	if len(w.dst)+len(p) > w.limit {
		return 0, errNotSmaller
	}
	w.dst = append(w.dst, p...)
	return len(p), nil
}

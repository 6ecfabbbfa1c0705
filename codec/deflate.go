package codec

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/gobwas/ws/wsflate"
	"github.com/klauspost/compress/flate"
)

// Deflater compresses messages for clients that negotiated permessage-deflate (RFC 7692), each on its
// own, without context takeover. It is safe from any goroutine. The compressors behind it are large
// (up to 1.3 MB each, depending on the level) and are pooled; there are about as many as goroutines
// that compress at the same time, for each size of window.
//
// The time is in proportion to the size, whatever the payload: at most about twice that of JSON.
type Deflater struct {
	threshold int
	pool      sync.Pool                        // of *deflateWriter
	narrow    [MaxWindow - minWindow]sync.Pool // of *deflateWriter: those with smaller windows, from minWindow on
}

// The sizes of window that a client may ask for with server_max_window_bits (RFC 7692, section 7.1.2.1), in bits.
const (
	MaxWindow    uint8 = 15
	middleWindow uint8 = 11
	minWindow    uint8 = 8
)

// SharedWindow returns the window that frames for many clients keep to for one with a window of so many bits: 15, 11
// or 8. What fits a window fits a larger one, too, and compresses only a little worse: JSON of 64 KB to 24 % for 8 bits
// and to 22 % for 14. So a message is compressed three times at most, whatever windows clients ask for.
func SharedWindow(window uint8) uint8 {
	switch {
	case window >= MaxWindow:
		return MaxWindow
	case window >= middleWindow:
		return middleWindow
	}
	return minWindow
}

// highestLevel is the last one that looks at no more than a few earlier places for each byte. From 7 on
// a search goes through chains of them, which a payload can make thousands of times longer: a KiB of two
// letters at random takes 10 ms at level 9, and the loop that compresses it stands still.
const highestLevel = 6

// NewDeflater returns a Deflater. The level is that of compress/flate, -2 to 9; others panic. 7 to 9 are
// the same as 6. Payloads of less than threshold bytes are never compressed.
func NewDeflater(level, threshold int) *Deflater {
	if level < flate.HuffmanOnly || level > flate.BestCompression {
		panic(fmt.Sprintf("codec: deflate level %d", level))
	}
	level = min(level, highestLevel)
	d := &Deflater{threshold: threshold}
	d.pool.New = func() any {
		return newDeflateWriter(func(dst io.Writer) wsflate.Compressor {
			c, _ := flate.NewWriter(dst, level) // the level was checked
			return c
		})
	}
	for i := range d.narrow {
		d.narrow[i].New = func() any {
			return newDeflateWriter(func(dst io.Writer) wsflate.Compressor {
				c, _ := flate.NewWriterWindow(dst, 1<<(minWindow+uint8(i)))
				return c
			})
		}
	}
	return d
}

// writers returns the pool of compressors for a payload of n bytes and a window in bits. No window is too small for a
// payload that is not larger.
func (d *Deflater) writers(n int, window uint8) *sync.Pool {
	if fits(n, window) {
		return &d.pool
	}
	return &d.narrow[window-minWindow]
}

func fits(n int, window uint8) bool { return window >= MaxWindow || n <= 1<<window }

// AppendFrame appends one whole frame to dst. It is compressed when op is text or binary, the payload
// is not below the threshold and compression makes it smaller; otherwise it is that of [AppendFrame].
// In the steady state it allocates nothing but what dst needs to grow.
func (d *Deflater) AppendFrame(dst []byte, op Opcode, payload []byte) []byte {
	return d.AppendFrameWithin(dst, op, payload, MaxWindow)
}

// AppendFrameWithin is AppendFrame for a client with a window of 8 to [MaxWindow] bits. The level does not matter where
// a window smaller than the payload has to be kept to.
func (d *Deflater) AppendFrameWithin(dst []byte, op Opcode, payload []byte, window uint8) []byte {
	if op != OpText && op != OpBinary || len(payload) < d.threshold || len(payload) == 0 {
		return AppendFrame(dst, op, payload)
	}
	pool := d.writers(len(payload), window)
	w := pool.Get().(*deflateWriter)
	defer pool.Put(w)

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

func newDeflateWriter(compressor func(io.Writer) wsflate.Compressor) *deflateWriter {
	w := new(deflateWriter)
	w.writer = wsflate.NewWriter(w, compressor)
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

package codec

import (
	"sync"
	"sync/atomic"
)

// Frame is a message encoded once for all of its receivers. It is immutable and safe from any
// goroutine; its bytes live as long as it does, so a queue may keep them without copying.
type Frame struct {
	op    Opcode
	head  uint8 // of plain: where the payload begins; 0 for Opaque
	plain []byte

	deflatedFrame // for MaxWindow
	narrow        atomic.Pointer[narrowFrames]
}

// narrowFrames are the forms for smaller windows: those of middleWindow and minWindow. Few clients ask for one.
type narrowFrames [2]deflatedFrame

// deflatedFrame is a frame's compressed form.
type deflatedFrame struct {
	mu   sync.Mutex             // held while it is made
	done atomic.Pointer[[]byte] // nil until it is
}

// get returns the frame, which is made if need be. Those that come meanwhile wait.
func (d *deflatedFrame) get(deflate func() *[]byte) []byte {
	if done := d.done.Load(); done != nil {
		return *done
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if done := d.done.Load(); done != nil {
		return *done
	}
	done := deflate()
	d.done.Store(done)
	return *done
}

// NewFrame encodes one whole frame, as [AppendFrame] does. The payload is copied.
func NewFrame(op Opcode, payload []byte) *Frame {
	if op.isControl() && len(payload) > maxControl {
		payload = payload[:maxControl]
	}
	head := headerLen(len(payload))
	plain := make([]byte, 0, head+len(payload))
	return &Frame{op: op, head: uint8(head), plain: AppendFrame(plain, op, payload)}
}

// NewFrameFunc is like [NewFrame] for a payload that is yet to be encoded. It calls appendPayload once, which has to
// append the payload to dst. The slice that it returns belongs to the frame and is not copied.
func NewFrameFunc(op Opcode, appendPayload func(dst []byte) []byte) *Frame {
	b := appendPayload(make([]byte, maxHeader))
	length := len(b) - maxHeader
	if op.isControl() {
		length = min(length, maxControl)
	}
	head := headerLen(length)
	b = b[maxHeader-head : maxHeader+length]
	appendHeader(b[:0], bitFin|byte(op), length)
	return &Frame{op: op, head: uint8(head), plain: b}
}

// Opcode returns what the frame carries.
func (f *Frame) Opcode() Opcode { return f.op }

// Payload returns the payload as it was given to NewFrame. It must not be changed.
func (f *Frame) Payload() []byte { return f.plain[f.head:] }

// Plain returns the frame for the wire, uncompressed. It must not be changed.
func (f *Frame) Plain() []byte { return f.plain }

// Deflated returns the frame for the wire as a client gets it that negotiated permessage-deflate. It
// is the same slice as Plain when d does not compress it. It must not be changed.
//
// The work is done by the first call, whatever the number of goroutines that come together; the others
// wait for it. Later calls return the first one's result even if they name another Deflater.
func (f *Frame) Deflated(d *Deflater) []byte {
	return f.get(func() *[]byte { return f.deflate(d, MaxWindow) })
}

// DeflatedWithin is Deflated for a client with a window of 8 to [MaxWindow] bits. Those with the same [SharedWindow]
// share one form, so that the work is done three times at most.
func (f *Frame) DeflatedWithin(d *Deflater, window uint8) []byte {
	to, window := f.deflatedFor(window)
	return to.get(func() *[]byte { return f.deflate(d, window) })
}

// LeavePlain has the frame go out uncompressed to clients with the same [SharedWindow], unless it was compressed for
// them before: then nothing changes. It is for callers that have no time to compress it.
func (f *Frame) LeavePlain(window uint8) {
	to, _ := f.deflatedFor(window)
	to.get(func() *[]byte { return &f.plain })
}

// IsDeflatedWithin reports whether [Frame.DeflatedWithin] has nothing left to do for a window.
func (f *Frame) IsDeflatedWithin(window uint8) bool {
	to, _ := f.deflatedFor(window)
	return to.done.Load() != nil
}

// deflatedFor is the form for a window, and the window that it keeps to.
func (f *Frame) deflatedFor(window uint8) (*deflatedFrame, uint8) {
	window = SharedWindow(window)
	if f.head == 0 || fits(len(f.Payload()), window) {
		return &f.deflatedFrame, MaxWindow
	}
	if f.narrow.Load() == nil {
		f.narrow.CompareAndSwap(nil, new(narrowFrames))
	}
	all := f.narrow.Load()
	if window == middleWindow {
		return &all[0], window
	}
	return &all[1], window
}

// DeflatedSize returns the bytes of memory that the frame's compressed forms take.
func (f *Frame) DeflatedSize() (n int) {
	size := func(d *deflatedFrame) int {
		if done := d.done.Load(); done != nil && done != &f.plain {
			return cap(*done)
		}
		return 0
	}
	if all := f.narrow.Load(); all != nil {
		n = size(&all[0]) + size(&all[1])
	}
	return n + size(&f.deflatedFrame)
}

// Fresh returns a frame with the same bytes that has not been compressed.
func (f *Frame) Fresh() *Frame {
	if f.head == 0 {
		return f
	}
	return &Frame{op: f.op, head: f.head, plain: f.plain}
}

func (f *Frame) deflate(d *Deflater, window uint8) *[]byte {
	b := d.AppendFrameWithin(make([]byte, 0, len(f.plain)), f.op, f.Payload(), window)
	if b[0]&bitRSV1 == 0 {
		return &f.plain
	}
	// The frame may wait in many queues for a long time: keep only what it needs.
	b = append(make([]byte, 0, len(b)), b...)
	return &b
}

// Opaque makes a frame of bytes that go to a connection as they are, such as an event of a stream that
// is no WebSocket. The bytes belong to the frame from now on.
func Opaque(b []byte) *Frame {
	f := &Frame{op: OpText, plain: b}
	f.done.Store(&f.plain) // it is not to be compressed
	return f
}

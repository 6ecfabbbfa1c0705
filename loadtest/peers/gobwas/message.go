package main

import (
	"bufio"
	"bytes"
	"compress/flate"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
	"github.com/gobwas/ws/wsutil"

	"carillon/loadtest/peers/internal/peer"
)

// reader reads whole messages of one connection.
type reader struct {
	frames     *wsutil.Reader
	control    wsutil.FrameHandlerFunc
	compressed wsflate.MessageState
	payload    bytes.Buffer
}

// newReader reads from src, and answers pings and close frames on dst with one Write each.
func newReader(src io.Reader, dst io.Writer, deflate bool) *reader {
	r := &reader{control: wsutil.ControlFrameHandler(dst, ws.StateServerSide)}
	r.frames = &wsutil.Reader{
		Source:         bufio.NewReaderSize(src, 1024),
		State:          ws.StateServerSide,
		MaxMessageSize: peer.MaxMessage,
		OnIntermediate: r.control,
	}
	if deflate {
		r.frames.State = r.frames.State.Set(ws.StateExtended)
		r.frames.Extensions = []wsutil.RecvExtension{&r.compressed}
	}
	return r
}

// next returns the next text or binary message. The payload is valid until the following call.
func (r *reader) next() (ws.OpCode, []byte, error) {
	for {
		head, err := r.frames.NextFrame()
		if err != nil {
			return 0, nil, err
		}
		if head.OpCode.IsControl() {
			if err := r.control(head, r.frames); err != nil {
				return 0, nil, err
			}
			continue
		}
		empty(&r.payload)
		if r.compressed.IsCompressed() {
			err = inflate(&r.payload, r.frames)
		} else {
			_, err = r.payload.ReadFrom(r.frames)
		}
		if err == nil && head.OpCode == ws.OpText && !utf8.Valid(r.payload.Bytes()) {
			err = wsutil.ErrInvalidUTF8
		}
		return head.OpCode, r.payload.Bytes(), err
	}
}

// empty makes a buffer ready for the next message. A large one is let go, as one large message must not
// cost its memory for ever.
func empty(b *bytes.Buffer) {
	b.Reset()
	if b.Cap() > 64<<10 {
		*b = bytes.Buffer{}
	}
}

// encode appends a message to out as one frame, compressed if that is wanted and it is large enough.
func encode(out *bytes.Buffer, kind ws.OpCode, payload []byte, compress bool) error {
	frame := ws.NewFrame(kind, true, payload)
	if compress && len(payload) >= peer.CompressFrom {
		w := deflaters.Get().(*wsflate.Writer)
		defer deflaters.Put(w)
		var small bytes.Buffer
		w.Reset(&small)
		if _, err := w.Write(payload); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		frame = ws.NewFrame(kind, true, small.Bytes())
		frame.Header.Rsv = ws.Rsv(true, false, false)
	}
	out.Grow(ws.HeaderSize(frame.Header) + len(frame.Payload))
	return ws.WriteFrame(out, frame)
}

func inflate(dst *bytes.Buffer, src io.Reader) error {
	r := inflaters.Get().(*wsflate.Reader)
	defer inflaters.Put(r)
	r.Reset(src)
	n, err := dst.ReadFrom(io.LimitReader(r, peer.MaxMessage+1))
	if err == nil && n > peer.MaxMessage {
		err = wsutil.ErrMessageTooLarge
	}
	return err
}

// One of each for every connection would take many times the memory of the connection.
var (
	inflaters = sync.Pool{New: func() any {
		return wsflate.NewReader(nil, func(src io.Reader) wsflate.Decompressor {
			return inflater{flate.NewReader(src)}
		})
	}}
	deflaters = sync.Pool{New: func() any {
		return wsflate.NewWriter(nil, func(dst io.Writer) wsflate.Compressor {
			w, _ := flate.NewWriter(dst, flate.BestSpeed) // it refuses only levels that do not exist
			return w
		})
	}}
)

// inflater gives the standard library's reader the Reset by which wsflate uses it again.
type inflater struct{ io.Reader }

func (i inflater) Reset(src io.Reader) {
	_ = i.Reader.(flate.Resetter).Reset(src, nil) // its error is always nil
}

package codec

import (
	"compress/flate"
	"io"
)

// Inflater undoes permessage-deflate (RFC 7692, section 7.2.2), one message at a time without context
// takeover. It costs about 45 KB; make one for each goroutine and share it among its decoders.
type Inflater struct {
	source inflateSource
	flate  io.ReadCloser
	out    []byte
}

// NewInflater returns an Inflater.
func NewInflater() *Inflater {
	f := new(Inflater)
	f.flate = flate.NewReader(&f.source)
	return f
}

// inflate returns what message was before it was compressed. More than limit bytes (none if less than
// 0) are ErrMessageTooBig, found out before there is twice as much. The result is valid until the next
// call of inflate or release.
//
// A block with BFINAL=1 ends a DEFLATE stream but not the message (RFC 7692, section 7.2.3.4): what
// follows it, from the next whole byte on, is read as another stream. A sender that leaves out the
// empty block after the last one is understood too, and so is one whose empty message has no bytes at
// all, as zlib would have it. Anything else that is not DEFLATE is an error, trailing bytes included.
func (f *Inflater) inflate(message []byte, limit int64) ([]byte, *ProtocolError) {
	f.release()
	f.out = f.out[:0]
	f.source = inflateSource{message: message}
	defer func() { f.source = inflateSource{} }()
	for f.source.at < len(message) {
		// It fails for a dictionary only.
		_ = f.flate.(flate.Resetter).Reset(&f.source, nil)
		if err := f.readStream(limit); err != nil {
			return nil, err
		}
	}
	return f.out, nil
}

// readStream appends one DEFLATE stream to out.
func (f *Inflater) readStream(limit int64) *ProtocolError {
	for {
		if len(f.out) == cap(f.out) {
			f.out = grown(f.out)
		}
		n, err := f.flate.Read(f.out[len(f.out):cap(f.out)])
		f.out = f.out[:len(f.out)+n]
		if limit >= 0 && int64(len(f.out)) > limit {
			return ErrMessageTooBig
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return ErrDeflateData
		}
	}
}

// grown returns b with twice the capacity.
func grown(b []byte) []byte {
	const smallest = 1 << 10
	bigger := make([]byte, len(b), max(smallest, 2*cap(b)))
	copy(bigger, b)
	return bigger
}

// release lets a buffer go that a large message has left behind.
func (f *Inflater) release() {
	if cap(f.out) > maxRetained {
		f.out = nil
	}
}

// inflateSource is a message and the tail that its sender has cut off. It reads byte by byte, so that
// compress/flate takes no more than it needs and it is known where a stream has ended.
//
// wsflate.Reader would do the same, but its ReadByte makes a zero byte of the message's end.
type inflateSource struct {
	message []byte
	at      int // in message, and beyond it in the tail
}

// inflateTail is the end of the empty block that every message ends with (RFC 7692, section 7.2.2),
// and one more empty block, a final one, so that compress/flate knows that this is the end.
const inflateTail = "\x00\x00\xff\xff" + "\x01\x00\x00\xff\xff"

// ReadByte implements flate.Reader.
func (s *inflateSource) ReadByte() (b byte, err error) {
	switch i := s.at - len(s.message); {
	case i < 0:
		b = s.message[s.at]
	case i < len(inflateTail):
		b = inflateTail[i]
	default:
		return 0, io.EOF
	}
	s.at++
	return b, nil
}

// Read implements flate.Reader.
func (s *inflateSource) Read(p []byte) (n int, err error) {
	if s.at < len(s.message) {
		n = copy(p, s.message[s.at:])
	} else if n = copy(p, inflateTail[s.at-len(s.message):]); n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	s.at += n
	return n, nil
}

package codec

// Inflater decompresses the messages of all decoders of a goroutine (permessage-deflate without context
// takeover, RFC 7692). Each message that is suspended in the middle, see [Decoder.Suspended], keeps a
// state of 6 KB and what it has become so far, up to MaxMessage of its decoder.
type Inflater struct {
	// MaxSuspended is how many messages may be suspended in the middle at the same time. One more is
	// not refused: if the budget that it meets first is not enough for it, its decompression is put
	// off as a whole until one of the others is done or given up. 0 is no limit.
	MaxSuspended int

	current   *inflation // of the message that is being decompressed, or was last
	free      []*inflation
	suspended int
}

// maxFree is how many states are kept for the next messages.
const maxFree = 8

// NewInflater returns an Inflater.
func NewInflater() *Inflater { return &Inflater{current: new(inflation)} }

// Suspended returns how many messages are suspended in the middle.
func (f *Inflater) Suspended() int { return f.suspended }

// full reports whether no more messages may be suspended.
func (f *Inflater) full() bool { return f.MaxSuspended > 0 && f.suspended >= f.MaxSuspended }

// suspend hands the current message over to its decoder.
func (f *Inflater) suspend() *inflation {
	s := f.current
	f.suspended++
	if last := len(f.free) - 1; last >= 0 {
		f.current, f.free = f.free[last], f.free[:last]
	} else {
		f.current = new(inflation)
	}
	return s
}

// resume takes a message back as the current one. Its output is valid until the next one.
func (f *Inflater) resume(s *inflation) {
	f.keep(f.current)
	f.current = s
	f.suspended--
}

// abandon takes back a message whose connection has gone.
func (f *Inflater) abandon(s *inflation) {
	f.keep(s)
	f.suspended--
}

func (f *Inflater) keep(s *inflation) {
	s.in, s.out = nil, nil
	if len(f.free) < maxFree {
		f.free = append(f.free, s)
	}
}

// release lets a buffer go that a large message has left behind.
func (f *Inflater) release() {
	f.current.in = nil
	if cap(f.current.out) > maxRetained {
		f.current.out = nil
	}
}

package codec

// pendingInflation is a message that has arrived as a whole, in Decoder.message, and waits until its
// decoder may go on with its decompression.
type pendingInflation struct {
	is        bool
	putOff    bool       // it was begun once and is not suspended: there were Inflater.MaxSuspended
	amplified int        // what Decoder.Amplified has had of it
	inflation *inflation // of a message that is suspended in the middle
	badText   bool       // what there is so far is not UTF-8
}

// Suspended reports whether a message is complete and the budget did not suffice for its decompression.
// Call [Decoder.Next] again with more of it, or give the message up with [Decoder.Reset].
func (d *Decoder) Suspended() bool { return d.pending.is }

// PutOff reports whether a suspended message waits for others, because there are [Inflater.MaxSuspended]: until one of
// them is done or given up, Next does nothing for it.
func (d *Decoder) PutOff() bool { return d.pending.is && d.pending.putOff && d.Inflater.full() }

// InProgress reports whether a suspended message is in the middle of its decompression. It has one of the
// [Inflater.MaxSuspended] places.
func (d *Decoder) InProgress() bool { return d.pending.inflation != nil }

// Yield has a message that is suspended in the middle leave its place to others, and reports whether there was one.
// What it has become so far is lost: it waits as if it had been put off, and begins anew when Next is called.
func (d *Decoder) Yield() bool {
	if !d.InProgress() {
		return false
	}
	d.Inflater.abandon(d.pending.inflation)
	d.pending.inflation, d.pending.putOff = nil, true
	return true
}

// inflate begins with the decompression of the message d.op.
func (d *Decoder) inflate(compressed []byte) (ev Event, ok bool, err *ProtocolError) {
	f, begun := d.Inflater, d.Budget > 0
	if begun {
		f.release()
		f.current.begin(compressed)
		d.text, d.pending.badText = utf8Check{}, false
		if done, err := d.run(f.current); err != nil {
			return Event{}, false, err
		} else if done {
			return d.inflated(f.current.out)
		}
	}
	d.message = append(d.message[:0], compressed...)
	d.pending.is = true
	if d.pending.putOff = begun && f.full(); begun && !f.full() {
		d.pending.inflation = f.suspend()
		d.pending.inflation.in = d.message
	}
	return Event{}, false, nil
}

// resume goes on with the pending message.
func (d *Decoder) resume() (ev Event, ok bool, err *ProtocolError) {
	f, s := d.Inflater, d.pending.inflation
	switch {
	case d.Budget <= 0 || d.pending.putOff && f.full():
		return Event{}, false, nil
	case s == nil:
		return d.inflate(d.message)
	}
	done, err := d.run(s)
	if err != nil || !done {
		return Event{}, false, err
	}
	f.resume(s)
	d.pending.inflation = nil
	return d.inflated(s.out)
}

// run spends the budget on s.
func (d *Decoder) run(s *inflation) (done bool, err *ProtocolError) {
	before, left := len(s.out), 0
	left, done, err = s.run(d.Budget, d.MaxMessage)
	s.work += d.Budget - left
	d.Budget = left
	if n := s.amplified() - d.pending.amplified; n > 0 {
		d.pending.amplified += n
		d.Amplified += n
	}
	// Bad text is an error when the message is done, so that how it was cut does not decide which of
	// two errors it is that it ends with.
	if d.op == OpText && !d.pending.badText && !d.text.write(s.out[before:]) {
		d.pending.badText = true
	}
	return done, err
}

// inflated hands out the message that is now done.
func (d *Decoder) inflated(payload []byte) (ev Event, ok bool, err *ProtocolError) {
	op := d.op
	bad := op == OpText && (d.pending.badText || !d.text.complete())
	d.op, d.message, d.pending = 0, d.message[:0], pendingInflation{}
	if bad {
		return Event{}, false, ErrInvalidUTF8
	}
	return Event{Op: op, Payload: payload}, true, nil
}

// abandon gives up the pending message.
func (d *Decoder) abandon() {
	if s := d.pending.inflation; s != nil {
		d.Inflater.abandon(s)
	}
	d.pending = pendingInflation{}
}

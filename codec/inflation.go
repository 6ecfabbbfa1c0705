package codec

import "encoding/binary"

// inflation is the decompression of one message (RFC 1951; RFC 7692, section 7.2.2). It pauses after any symbol and
// goes on from there: all that compress/flate has on its stack between two bytes is here. Because the whole message
// stays in memory, in as well as out, it needs no window of its own and takes 6 KB besides them.
type inflation struct {
	in    []byte // the message as it came; inflateTail follows it
	at    int    // next byte to load, in the two of them
	bits  uint64 // loaded and not used yet, the first one lowest; above count is what load will put there
	count uint   // of bits

	out    []byte
	stream int // where in out the DEFLATE stream began, and with it what it may repeat

	phase     phase
	final     bool // the block is the last one of its stream
	work      int  // so far
	stored    int  // bytes of a stored block that are missing
	literals  *huffman
	distances *huffman
	dynamic   [2]huffman // of the block
}

// phase is what the next bit is a part of.
type phase uint8

const (
	phaseBlock  phase = iota // the header of a block
	phaseStored              // the content of a block without compression
	phaseCodes               // the content of a compressed block
)

// inflateTail is what a sender cuts off: the end of the empty block after each message (RFC 7692,
// section 7.2.1). One more empty block, a final one, makes that the end of the stream.
const inflateTail = "\x00\x00\xff\xff" + "\x01\x00\x00\xff\xff"

// The work that a block costs besides the bytes that it takes and makes, in bytes that cost as much. It is what a
// header without content takes, see BenchmarkInflateHostile.
const (
	workBlock = 16
	workCodes = 256
)

// begin makes s ready for a message. It keeps the buffer for the output.
func (s *inflation) begin(in []byte) {
	s.in, s.at, s.bits, s.count = in, 0, 0, 0
	s.out, s.stream = s.out[:0], 0
	s.phase, s.final, s.work = phaseBlock, false, 0
}

// usualWork is how many bytes of work a byte of a message may make without being counted as amplified.
// Text becomes 3 to 20 times as long; a byte makes up to 1030, and blocks without content cost 25 of work.
const usualWork = 32

// amplified returns the work so far beyond what the message's own size explains.
func (s *inflation) amplified() int { return max(0, s.work-usualWork*len(s.in)) }

// run goes on until the message is done or the budget, in bytes of work, is spent. It returns what is
// left of that, less than 0 when the last step took more. More than limit bytes (none if less than 0)
// are ErrMessageTooBig, found out before there are 258 more.
//
// A block with BFINAL=1 ends a DEFLATE stream but not the message (RFC 7692, section 7.2.3.4): what
// follows it, from the next whole byte on, is read as another stream. A sender that leaves out the
// empty block after the last one is understood too, and so is one whose empty message has no bytes at
// all, as zlib would have it. Anything else that is not DEFLATE is an error, trailing bytes included.
func (s *inflation) run(budget int, limit int64) (left int, done bool, err *ProtocolError) {
	if len(s.in) == 0 {
		return budget, true, nil
	}
	const unlimited = 1 << 60
	if limit < 0 || limit > unlimited {
		limit = unlimited
	}
	for budget > 0 {
		step, before := min(budget, 1<<30), s.at+len(s.out)
		switch s.phase {
		case phaseBlock:
			budget -= workBlock
			err = s.block()
			if s.phase == phaseCodes && s.literals == &s.dynamic[0] {
				budget -= workCodes
			}
		case phaseStored:
			err = s.copyStored(step, limit)
		case phaseCodes:
			err = s.decode(step, limit)
		}
		budget -= s.at + len(s.out) - before
		switch {
		case int64(len(s.out)) > limit:
			return budget, false, ErrMessageTooBig
		case err != nil:
			return budget, false, err
		case s.phase == phaseBlock && s.final:
			s.align()
			if s.at >= len(s.in) {
				return budget, true, nil
			}
			s.stream, s.final = len(s.out), false
		}
	}
	return budget, false, nil
}

// block reads the header of a block.
func (s *inflation) block() *ProtocolError {
	s.load()
	if s.count < 3 {
		return ErrDeflateData
	}
	s.final = s.take(1) == 1
	switch s.take(2) {
	case 0:
		return s.storedBlock()
	case 1:
		s.phase, s.literals, s.distances = phaseCodes, &fixedLiterals, &fixedDistances
		return nil
	case 2:
		s.phase, s.literals, s.distances = phaseCodes, &s.dynamic[0], &s.dynamic[1]
		return s.readCodes()
	}
	return ErrDeflateData
}

// storedBlock reads the length of a block without compression (RFC 1951, section 3.2.4).
func (s *inflation) storedBlock() *ProtocolError {
	s.align()
	s.load()
	if s.count < 32 {
		return ErrDeflateData
	}
	n, complement := s.take(16), s.take(16)
	if n != complement^0xFFFF {
		return ErrDeflateData
	}
	s.align()
	if n > 0 {
		s.phase, s.stored = phaseStored, int(n)
	}
	return nil
}

func (s *inflation) copyStored(budget int, limit int64) *ProtocolError {
	n := int(min(int64(s.stored), int64(budget+1)/2, limit+1-int64(len(s.out)))) // each is read and made
	s.reserve(n, limit)
	if s.at < len(s.in) {
		n = min(n, len(s.in)-s.at)
		s.out = append(s.out, s.in[s.at:s.at+n]...)
	} else {
		tail := inflateTail[s.at-len(s.in):]
		if n = min(n, len(tail)); n == 0 {
			return ErrDeflateData
		}
		s.out = append(s.out, tail[:n]...)
	}
	s.at += n
	if s.stored -= n; s.stored == 0 {
		s.phase = phaseBlock
	}
	return nil
}

// The order in which a block gives the lengths of the codes for code lengths (RFC 1951, section 3.2.7).
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the two codes of a block (RFC 1951, section 3.2.7). It takes at most 580 bytes.
func (s *inflation) readCodes() *ProtocolError {
	s.load()
	if s.count < 14 {
		return ErrDeflateData
	}
	literals, distances, n := int(s.take(5))+257, int(s.take(5))+1, int(s.take(4))+4
	if literals > maxLiterals || distances > maxDistances {
		return ErrDeflateData
	}
	var lengths [maxLiterals + maxDistances]uint8
	for _, symbol := range lengthOrder[:n] {
		if s.load(); s.count < 3 {
			return ErrDeflateData
		}
		lengths[symbol] = uint8(s.take(3))
	}
	code := &s.dynamic[1] // until it is the one of the distances
	if !code.build(lengths[:len(lengthOrder)]) {
		return ErrDeflateData
	}
	clear(lengths[:len(lengthOrder)])
	if err := s.readLengths(lengths[:literals+distances], code); err != nil {
		return err
	}
	if !s.dynamic[0].build(lengths[:literals]) || !s.dynamic[1].build(lengths[literals:literals+distances]) {
		return ErrDeflateData
	}
	return nil
}

// The symbols that repeat a length: the last one, and zero.
var repeats = [3]extra{{3, 2}, {3, 3}, {11, 7}}

// readLengths reads the lengths of the codes of literals and distances.
func (s *inflation) readLengths(lengths []uint8, code *huffman) *ProtocolError {
	for i := 0; i < len(lengths); {
		s.load()
		symbol, n := code.decode(s.bits)
		if n > s.count {
			return ErrDeflateData
		}
		s.take(n)
		if symbol < 16 {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		var length uint8
		if symbol == 16 {
			if i == 0 {
				return ErrDeflateData
			}
			length = lengths[i-1]
		}
		times := repeats[symbol-16]
		if uint(times.bits) > s.count {
			return ErrDeflateData
		}
		end := i + int(times.base) + int(s.take(uint(times.bits)))
		if end > len(lengths) {
			return ErrDeflateData
		}
		for ; i < end; i++ {
			lengths[i] = length
		}
	}
	return nil
}

// load fills bits: with 56 or more, or with all that there are.
func (s *inflation) load() {
	if s.at+8 <= len(s.in) {
		s.bits |= binary.LittleEndian.Uint64(s.in[s.at:]) << s.count
		s.at += int(63-s.count) >> 3
		s.count |= 56
		return
	}
	for s.count < 56 {
		var b byte
		switch i := s.at - len(s.in); {
		case i < 0:
			b = s.in[s.at]
		case i < len(inflateTail):
			b = inflateTail[i]
		default:
			return
		}
		s.bits |= uint64(b) << s.count
		s.at++
		s.count += 8
	}
}

// take uses n bits, which must be there.
func (s *inflation) take(n uint) uint {
	b := uint(s.bits & (1<<n - 1))
	s.bits >>= n
	s.count -= n
	return b
}

// align goes to the start of the next byte that is not used.
func (s *inflation) align() {
	s.at -= int(s.count >> 3)
	s.bits, s.count = 0, 0
}

// reserve makes room for n more bytes.
func (s *inflation) reserve(n int, limit int64) {
	if cap(s.out)-len(s.out) >= n {
		return
	}
	const smallest = 1 << 10
	size := max(smallest, 2*cap(s.out))
	if int64(size) > limit+maxMatch {
		size = int(limit + maxMatch) // enough to find out that it is too much
	}
	out := make([]byte, len(s.out), max(size, len(s.out)+n))
	copy(out, s.out)
	s.out = out
}

package codec

// The code lengths of RFC 1951, section 3.2.5 to 3.2.7.
const (
	maxCodeBits  = 15 // the longest code
	maxSymbols   = 288
	maxLiterals  = 286 // that a dynamic block may describe
	maxDistances = 30
	endOfBlock   = 256

	// Codes of up to indexBits are found in one step.
	indexBits = 10
)

// huffman is a canonical Huffman code (RFC 1951, section 3.2.2).
type huffman struct {
	mask   uint64                  // of the bits that index table
	table  [1 << indexBits]uint16  // symbol<<4 | code length; 0 where the code is longer or does not exist
	count  [maxCodeBits + 1]uint16 // codes of each length
	symbol [maxSymbols]uint16      // in the order of their codes
}

// build makes the code whose symbols have these lengths, 0 for a symbol that does not occur. It reports
// false if there is no such code: lengths that do not fill the code space exactly are accepted only for
// a code of one symbol, which has one bit, and for an empty one (section 3.2.7).
func (h *huffman) build(lengths []uint8) bool {
	h.count = [maxCodeBits + 1]uint16{}
	for _, n := range lengths {
		h.count[n]++
	}
	h.count[0] = 0
	var offset [maxCodeBits + 2]uint16 // in symbol, of each length
	left, longest := 1, 0
	for n := 1; n <= maxCodeBits; n++ {
		left = left<<1 - int(h.count[n])
		if left < 0 {
			return false
		}
		if h.count[n] > 0 {
			longest = n
		}
		offset[n+1] = offset[n] + h.count[n]
	}
	if left > 0 && longest > 1 {
		return false
	}
	for symbol, n := range lengths {
		if n != 0 {
			h.symbol[offset[n]] = uint16(symbol)
			offset[n]++
		}
	}
	h.index(min(longest, indexBits))
	return true
}

// index fills the table for codes of up to longest bits. Codes come with their first bit lowest, so the
// table for n bits is that for n-1 bits twice, and the codes of n bits.
func (h *huffman) index(longest int) {
	h.mask = 1<<longest - 1
	h.table[0] = 0
	code, size, next := 0, 1, 0
	for n := 1; n <= longest; n++ {
		copy(h.table[size:2*size], h.table[:size])
		size *= 2
		for range h.count[n] {
			h.table[code] = h.symbol[next]<<4 | uint16(n)
			next++
			// Count up from the first bit, which is the most significant one of the code.
			bit := size / 2
			for code&bit != 0 {
				code &^= bit
				bit /= 2
			}
			code |= bit
		}
	}
}

// noCode is longer than what can be there, so that the check for the end of the data finds it.
const noCode = 64

// decode returns the symbol whose code the bits begin with, and the length of that code; noCode if there
// is none.
func (h *huffman) decode(bits uint64) (symbol, length uint) {
	if e := uint(h.table[bits&h.mask&(1<<indexBits-1)]); e != 0 {
		return e >> 4, e & 15
	}
	return h.decodeLong(bits)
}

// decodeLong walks through the lengths, bit by bit.
func (h *huffman) decodeLong(bits uint64) (symbol, length uint) {
	code, first, index := 0, 0, 0
	for n := 1; n <= maxCodeBits; n++ {
		code |= int(bits & 1)
		bits >>= 1
		count := int(h.count[n])
		if code-first < count {
			return uint(h.symbol[index+code-first]), uint(n)
		}
		index += count
		first = (first + count) << 1
		code <<= 1
	}
	return 0, noCode
}

// The fixed code (RFC 1951, section 3.2.6).
var fixedLiterals, fixedDistances = func() (l, d huffman) {
	var lengths [maxSymbols]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	l.build(lengths[:])
	for i := range 32 {
		lengths[i] = 5
	}
	d.build(lengths[:32])
	return l, d
}()

package codec

import "encoding/binary"

// extra is the smallest value of a symbol, and how many bits follow it that are added to that.
type extra struct {
	base uint16
	bits uint8
}

// The symbols of RFC 1951, section 3.2.5. The zero values are of symbols that must not occur.
var (
	matchLengths = [32]extra{{3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {10, 0}, {11, 1}, {13, 1}, {15, 1},
		{17, 1}, {19, 2}, {23, 2}, {27, 2}, {31, 2}, {35, 3}, {43, 3}, {51, 3}, {59, 3}, {67, 4}, {83, 4}, {99, 4},
		{115, 4}, {131, 5}, {163, 5}, {195, 5}, {227, 5}, {maxMatch, 0}}
	matchDistances = [32]extra{{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 1}, {7, 1}, {9, 2}, {13, 2}, {17, 3}, {25, 3}, {33, 4},
		{49, 4}, {65, 5}, {97, 5}, {129, 6}, {193, 6}, {257, 7}, {385, 7}, {513, 8}, {769, 8}, {1025, 9}, {1537, 9},
		{2049, 10}, {3073, 10}, {4097, 11}, {6145, 11}, {8193, 12}, {12289, 12}, {16385, 13}, {24577, 13}}
)

// maxMatch is the most bytes that one symbol stands for.
const maxMatch = 258

// decode goes on with the content of a compressed block (RFC 1951, section 3.2.3) until its end, until
// the budget is spent or until there are more than limit bytes.
func (s *inflation) decode(budget int, limit int64) *ProtocolError {
	in, at, bits, count, out := s.in, s.at, s.bits, s.count, s.out
	full := 0 // of the room in out
	for stop := at + len(out) + budget; at+len(out) < stop; {
		if len(out) >= full {
			if int64(len(out)) > limit {
				break
			}
			s.out = out
			s.reserve(maxMatch, limit)
			out = s.out
			full = int(min(int64(cap(out)-maxMatch+1), limit+1))
		}
		// At most 48 bits: two codes of 15, and 5 and 13 more.
		if at+8 <= len(in) {
			bits |= binary.LittleEndian.Uint64(in[at:]) << count
			at += int(63-count) >> 3
			count |= 56
		} else {
			s.at, s.bits, s.count = at, bits, count
			s.load()
			at, bits, count = s.at, s.bits, s.count
		}
		symbol, n := s.literals.decode(bits)
		if n > count {
			return ErrDeflateData
		}
		bits >>= n
		count -= n
		if symbol < endOfBlock {
			out = append(out, byte(symbol))
			continue
		}
		if symbol == endOfBlock {
			s.phase = phaseBlock
			break
		}
		length := matchLengths[(symbol-endOfBlock-1)&31]
		size := int(length.base) + int(bits&(1<<length.bits-1))
		bits >>= length.bits
		symbol, n = s.distances.decode(bits)
		distance := matchDistances[symbol&31]
		used := n + uint(distance.bits)
		back := int(distance.base) + int(bits>>n&(1<<distance.bits-1))
		bits >>= used
		used += uint(length.bits)
		if used > count || length.base == 0 || distance.base == 0 || back > len(out)-s.stream {
			return ErrDeflateData
		}
		count -= used
		out = repeat(out, back, size)
	}
	s.at, s.bits, s.count, s.out = at, bits, count, out
	return nil
}

// repeat appends size bytes to out, which has room for them, from so many bytes back. They may overlap.
func repeat(out []byte, back, size int) []byte {
	end := len(out)
	from := end - back
	out = out[:end+size]
	for end < len(out) {
		end += copy(out[end:], out[from:end])
	}
	return out
}

package codec

import "unicode/utf8"

// utf8Check validates UTF-8 that arrives in pieces (RFC 3629; RFC 6455, section 8.1). The zero value
// is at the start of a text. It fails at the first byte that no continuation could make valid: a
// surrogate (ED A0) or a code point above U+10FFFF (F4 90) at its second byte, not at its last.
type utf8Check struct {
	need   uint8 // continuation bytes that the last sequence still lacks
	lo, hi uint8 // what the next of them may be
}

// write takes the next piece and reports whether the text can still become valid.
func (c *utf8Check) write(p []byte) bool {
	for c.need > 0 {
		if len(p) == 0 {
			return true
		}
		if !c.step(p[0]) {
			return false
		}
		p = p[1:]
	}
	// What is complete goes to the standard library in one go; only a sequence that the piece's end
	// cuts in two is walked here.
	whole := len(p) - tornTail(p)
	if !utf8.Valid(p[:whole]) {
		return false
	}
	for _, b := range p[whole:] {
		if !c.step(b) {
			return false
		}
	}
	return true
}

// complete reports whether the text may end here.
func (c *utf8Check) complete() bool { return c.need == 0 }

// tornTail returns how many bytes at the end of p are the start of a sequence that p does not finish:
// 0 to 3. It looks at the lead byte only; whether the rest fits is for others to find out.
func tornTail(p []byte) int {
	for i := 1; i <= 3 && i <= len(p); i++ {
		switch b := p[len(p)-i]; {
		case b < 0x80:
			return 0
		case b < 0xC0: // a continuation byte: its lead is further left
		case sequenceLen(b) > i:
			return i
		default:
			return 0
		}
	}
	return 0
}

// sequenceLen returns the length that a lead byte announces; 1 for a byte that cannot lead.
func sequenceLen(lead byte) int {
	switch {
	case lead >= 0xC2 && lead <= 0xDF:
		return 2
	case lead >= 0xE0 && lead <= 0xEF:
		return 3
	case lead >= 0xF0 && lead <= 0xF4:
		return 4
	}
	return 1
}

func (c *utf8Check) step(b byte) bool {
	if c.need > 0 {
		if b < c.lo || b > c.hi {
			return false
		}
		c.need, c.lo, c.hi = c.need-1, 0x80, 0xBF
		return true
	}
	if b < 0x80 {
		return true
	}
	n := sequenceLen(b)
	if n == 1 {
		return false
	}
	c.need, c.lo, c.hi = uint8(n-1), 0x80, 0xBF
	switch b {
	case 0xE0:
		c.lo = 0xA0 // below: three bytes for what fits in two
	case 0xED:
		c.hi = 0x9F // above: surrogates
	case 0xF0:
		c.lo = 0x90 // below: four bytes for what fits in three
	case 0xF4:
		c.hi = 0x8F // above: beyond U+10FFFF
	}
	return true
}

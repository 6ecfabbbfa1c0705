package codec

import "math/bits"

// Buffers keeps the buffers of large messages for later ones, so that a stream of large messages allocates nothing. The
// decoders of one goroutine may share one. It must not be used by several goroutines at once. The zero value keeps
// nothing.
type Buffers struct {
	// Max is how many bytes it keeps at most.
	Max int

	// Min is the size in bytes of its smallest buffers; 0 means 64 KiB. It must not change after the first call.
	Min int

	free  [bufferClasses][][]byte // by class: Min, and twice as much each time
	spare [bufferClasses]int      // how many have not been needed since Trim was called
	bytes int
}

// Buffers have Min to 2 MiB. Others are not kept.
const (
	minBuffer     = maxRetained
	maxBuffer     = 2 << 20
	bufferClasses = 12
)

func (p *Buffers) min() int {
	if p.Min > 0 {
		return p.Min
	}
	return minBuffer
}

// class returns the class of the buffers with room for n bytes, or false if they are not kept.
func (p *Buffers) class(n int) (int, bool) {
	if p == nil || p.Max == 0 || n < p.min() || n > maxBuffer {
		return 0, false
	}
	i := bits.Len(uint(n-1) / uint(p.min()))
	return i, i < bufferClasses
}

// Get returns an empty buffer with room for n bytes, for the caller to use until it calls Put.
func (p *Buffers) Get(n int) []byte {
	i, ok := p.class(n)
	if !ok {
		return make([]byte, 0, n)
	}
	last := len(p.free[i]) - 1
	if last < 0 {
		return make([]byte, 0, p.min()<<i)
	}
	b := p.free[i][last]
	p.free[i][last] = nil
	p.free[i] = p.free[i][:last]
	p.spare[i] = min(p.spare[i], last)
	p.bytes -= cap(b)
	return b
}

// Put keeps a buffer that is no longer used, if it has the size of a class.
func (p *Buffers) Put(b []byte) {
	i, ok := p.class(cap(b))
	if !ok || cap(b) != p.min()<<i || p.bytes+cap(b) > p.Max {
		return
	}
	p.free[i] = append(p.free[i], b[:0])
	p.bytes += cap(b)
}

// Trim lets go of the buffers that have not been needed since it was called before.
func (p *Buffers) Trim() {
	for i := range p.free {
		keep := len(p.free[i]) - p.spare[i]
		for j := keep; j < len(p.free[i]); j++ {
			p.bytes -= cap(p.free[i][j])
			p.free[i][j] = nil
		}
		p.free[i] = p.free[i][:keep]
		p.spare[i] = keep
	}
}

// Kept returns how many bytes are kept.
func (p *Buffers) Kept() int { return p.bytes }

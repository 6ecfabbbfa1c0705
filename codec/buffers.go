package codec

import "math/bits"

// Buffers keeps the buffers of large messages for later ones, so that a stream of large messages allocates nothing. The
// decoders of one goroutine may share one. It must not be used by several goroutines at once. The zero value keeps
// nothing.
type Buffers struct {
	// Max is how many bytes it keeps at most.
	Max int

	free  [bufferClasses][][]byte // by class: 64 KiB, and twice as much each time
	spare [bufferClasses]int      // how many have not been needed since Trim was called
	bytes int
}

// Buffers have 64 KiB to 2 MiB. Others are not kept.
const (
	minBuffer     = maxRetained
	bufferClasses = 6
)

// bufferClass returns the class of the buffers with room for n bytes, or false if they are not kept.
func bufferClass(n int) (int, bool) {
	if n < minBuffer {
		return 0, false
	}
	i := bits.Len(uint(n-1) / minBuffer)
	return i, i < bufferClasses
}

// Get returns an empty buffer with room for n bytes, for the caller to use until it calls Put.
func (p *Buffers) Get(n int) []byte {
	i, ok := bufferClass(n)
	if p == nil || p.Max == 0 || !ok {
		return make([]byte, 0, n)
	}
	last := len(p.free[i]) - 1
	if last < 0 {
		return make([]byte, 0, minBuffer<<i)
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
	i, ok := bufferClass(cap(b))
	if p == nil || !ok || cap(b) != minBuffer<<i || p.bytes+cap(b) > p.Max {
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

package generator

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// stamp identifies a message and when it was due, so that any receiver can compute its latency.
type stamp struct {
	sender   uint32
	sequence uint32 // of its sender, from 0
	due      int64  // when it should have been sent, on the monotonic clock
}

// The size of an encoded stamp, with the run number and a checksum: binary, and as hex in text messages.
const (
	stampBytes = 8 + 4 + 4 + 8 + 4
	stampText  = 2 * stampBytes
)

// payloads writes and reads the messages of one run. All have the same size and the same filler after the
// stamp.
type payloads struct {
	run    uint64
	text   bool
	size   int
	filler []byte // after the stamp
	plain  [stampBytes]byte
}

func newPayloads(run uint64, text bool, size int) *payloads {
	p := &payloads{run: run, text: text, size: size}
	const words = "the quick brown fox jumps over the lazy dog, and the 0123456789 others look on. "
	p.filler = bytes.Repeat([]byte(words), size/len(words)+1)[:max(0, size-p.stampSize())]
	return p
}

// MinSize is the size of a message with no filler.
func MinSize(text bool) int {
	if text {
		return stampText
	}
	return stampBytes
}

func (p *payloads) stampSize() int { return MinSize(p.text) }

// blank is a message whose stamp put fills in.
func (p *payloads) blank() []byte {
	return append(make([]byte, p.stampSize(), p.size), p.filler...)
}

// put writes the stamp at the start of a blank message.
func (p *payloads) put(to []byte, s stamp) {
	b := p.plain[:]
	if !p.text {
		b = to[:stampBytes]
	}
	binary.LittleEndian.PutUint64(b, p.run)
	binary.LittleEndian.PutUint32(b[8:], s.sender)
	binary.LittleEndian.PutUint32(b[12:], s.sequence)
	binary.LittleEndian.PutUint64(b[16:], uint64(s.due))
	binary.LittleEndian.PutUint32(b[24:], checksum(b))
	if p.text {
		hex.Encode(to[:stampText], b)
	}
}

// read returns the stamp of a received message, or false if the message is damaged or of another run.
func (p *payloads) read(from []byte) (stamp, bool) {
	if len(from) != p.size {
		return stamp{}, false
	}
	b := from[:stampBytes]
	if p.text {
		b = p.plain[:]
		if _, err := hex.Decode(b, from[:stampText]); err != nil {
			return stamp{}, false
		}
	}
	if binary.LittleEndian.Uint64(b) != p.run ||
		binary.LittleEndian.Uint32(b[24:]) != checksum(b) ||
		!bytes.Equal(from[p.stampSize():], p.filler) {
		return stamp{}, false
	}
	return stamp{
		sender:   binary.LittleEndian.Uint32(b[8:]),
		sequence: binary.LittleEndian.Uint32(b[12:]),
		due:      int64(binary.LittleEndian.Uint64(b[16:])),
	}, true
}

// checksum detects damage, not forgery.
func checksum(b []byte) uint32 {
	run, number, due := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	const a, c = 0x9e3779b97f4a7c15, 0xd1342543de82ef95 // odd, so that no bit of a word is lost
	return uint32(mix(run^bits.RotateLeft64(number*a, 21)^bits.RotateLeft64(due*c, 42)) >> 32)
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

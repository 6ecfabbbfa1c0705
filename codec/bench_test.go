package codec

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

func BenchmarkDecode(b *testing.B) {
	for _, size := range []int{16, 128, 4096} {
		for _, op := range []Opcode{OpText, OpBinary} {
			b.Run(fmt.Sprintf("op=%v/size=%d", op, size), func(b *testing.B) {
				frame := client(fin|byte(op), strings.Repeat("x", size))
				buf := []byte(strings.Repeat(frame, 32))
				copyOf := []byte(string(buf))
				d := newTestDecoder()
				b.SetBytes(int64(len(frame)))
				b.ReportAllocs()
				rest := buf
				for b.Loop() {
					if len(rest) == 0 {
						copy(buf, copyOf) // unmasked in place: put the masks back
						rest = buf
					}
					_, n, ok, err := d.Next(rest)
					if !ok || err != nil {
						b.Fatal(ok, err)
					}
					rest = rest[n:]
				}
			})
		}
	}
}

func BenchmarkDecodeFragments(b *testing.B) {
	stream := []byte(client(byte(OpBinary), strings.Repeat("x", 64)) + client(fin, strings.Repeat("x", 64)))
	d := newTestDecoder()
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		for buf := stream; len(buf) > 0; {
			_, n, ok, err := d.Next(buf)
			if !ok || err != nil {
				b.Fatal(ok, err)
			}
			buf = buf[n:]
		}
	}
}

// The check of a whole text by the standard library against that of the same text in pieces.
func BenchmarkUTF8(b *testing.B) {
	texts := map[string]string{"ascii": "0123456789abcdef", "greek": "κόσμεκόσμε"}
	for _, name := range []string{"ascii", "greek"} {
		for _, size := range []int{128, 4096} {
			text := []byte(strings.Repeat(texts[name], size/len(texts[name])))
			run := func(how string, valid func([]byte) bool) {
				b.Run(fmt.Sprintf("%s/size=%d/%s", name, size, how), func(b *testing.B) {
					b.SetBytes(int64(len(text)))
					for b.Loop() {
						if !valid(text) {
							b.Fatal("invalid")
						}
					}
				})
			}
			run("whole", utf8.Valid)
			run("piece", func(p []byte) bool {
				var c utf8Check
				return c.write(p)
			})
			run("steps", func(p []byte) bool {
				var c utf8Check
				for _, x := range p {
					if !c.step(x) {
						return false
					}
				}
				return c.complete()
			})
		}
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	for _, size := range []int{128, 4096} {
		payload := []byte(strings.Repeat("x", size))
		dst := make([]byte, 0, 2*size)
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				dst = AppendFrame(dst[:0], OpText, payload)
			}
		})
		b.Run(fmt.Sprintf("size=%d/baseline=copy", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				dst = append(dst[:0], payload...)
			}
		})
	}
}

func BenchmarkHandshake(b *testing.B) {
	const browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
	head := []byte(upgradeHead("Origin: https://example.com", "User-Agent: "+browser, "Accept-Encoding: gzip, deflate, br",
		"Accept-Language: en-GB,en;q=0.9", "Cookie: session="+strings.Repeat("c", 200), "Pragma: no-cache", "Cache-Control: no-cache",
		"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
	var r Request
	if err := r.Parse(head); err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 1024)
	run := func(name string, do func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	upgrade := func(u *Upgrader) func() error {
		return func() (err error) {
			dst, _, err = u.Upgrade(dst[:0], &r, nil)
			return err
		}
	}
	run("HeadLen", func() error { HeadLen(head, 0); return nil })
	run("Parse", func() error { return r.Parse(head) })
	run("CheckUpgrade", func() error { return r.CheckUpgrade() })
	run("Upgrade", upgrade(&Upgrader{}))
	run("Upgrade/deflate", upgrade(&Upgrader{Deflate: true}))
	// What the head costs when gobwas/ws reads it alone, without our checks.
	run("baseline=gobwas", func() error {
		h := bareConn{in: head, out: dst[:0]}
		_, err := ws.Upgrader{}.Upgrade(&h)
		return err
	})
}

// bareConn is the least that ws.Upgrader needs.
type bareConn struct{ in, out []byte }

func (c *bareConn) Read(p []byte) (int, error) {
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *bareConn) Write(p []byte) (int, error) {
	c.out = append(c.out, p...)
	return len(p), nil
}

func BenchmarkDeflate(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10} {
		text := jsonText(size)
		dst := make([]byte, 0, 2*size)
		for _, level := range []int{1, 6, 9} {
			b.Run(fmt.Sprintf("Deflater/level=%d/size=%d", level, size), func(b *testing.B) {
				d := NewDeflater(level, 0)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					dst = d.AppendFrame(dst[:0], OpText, text)
				}
				b.ReportMetric(float64(len(dst))/float64(size), "ratio")
			})
		}
		b.Run(fmt.Sprintf("Inflater/size=%d", size), func(b *testing.B) {
			s := new(inflation)
			compressed := []byte(deflated(string(text)))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := inflate(s, compressed, 1<<20, math.MaxInt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Compression of payloads that are hard for a search through all repetitions.
func BenchmarkDeflateHostile(b *testing.B) {
	const size = 64 << 10
	for name, payload := range hardToDeflate(size) {
		for _, level := range []int{1, 6, 9} {
			b.Run(fmt.Sprintf("%s/level=%d", name, level), func(b *testing.B) {
				d, dst := NewDeflater(level, 0), make([]byte, 0, 2*size)
				b.SetBytes(size)
				for b.Loop() {
					dst = d.AppendFrame(dst[:0], OpBinary, payload)
				}
			})
		}
	}
}

// Decompression of a mebibyte: in one go and in slices, against compress/flate. What a slice takes at
// most is its own figure, as is the time for a byte of work, by which the budget is in proportion.
func BenchmarkInflateHostile(b *testing.B) {
	const mebi = 1 << 20
	for _, name := range slices.Sorted(maps.Keys(hostile())) {
		message := []byte(hostile()[name])
		b.Run(name+"/baseline=compress_flate", func(b *testing.B) {
			reader := flate.NewReader(nil)
			for b.Loop() {
				source := bytes.NewReader(append(bytes.Clone(message), inflateTail...))
				for source.Len() > len(inflateTail) {
					_ = reader.(flate.Resetter).Reset(source, nil)
					if _, err := io.Copy(io.Discard, reader); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		for _, budget := range []int{math.MaxInt, 256 << 10, 64 << 10} {
			how := "whole"
			if budget < math.MaxInt {
				how = fmt.Sprintf("budget=%d", budget)
			}
			b.Run(name+"/"+how, func(b *testing.B) {
				s, work, least := new(inflation), 0, time.Duration(math.MaxInt64)
				for b.Loop() {
					longest := time.Duration(0)
					s.begin(message)
					for done := false; !done; {
						start := time.Now()
						left, ok, err := s.run(budget, mebi)
						longest = max(longest, time.Since(start))
						if err != nil {
							b.Fatal(err)
						}
						work, done = work+budget-left, ok
					}
					least = min(least, longest) // without what else the machine did
				}
				b.ReportMetric(float64(least.Microseconds()), "longest-us")
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(work), "ns/work")
			})
		}
	}
}

// emptyDynamicBlocks is eight DEFLATE blocks, each of which describes a Huffman code and then ends:
// 90 bits that cost the building of three tables.
func emptyDynamicBlocks() string {
	var bits []byte
	put := func(value, n int) {
		for i := range n {
			bits = append(bits, byte(value>>i&1))
		}
	}
	for range 8 {
		put(0, 1)  // BFINAL
		put(2, 2)  // BTYPE: dynamic
		put(0, 5)  // HLIT: 257 codes
		put(0, 5)  // HDIST: 1 code
		put(14, 4) // HCLEN: 18 codes
		for _, symbol := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1} {
			length := 0
			if symbol == 18 || symbol == 1 {
				length = 1
			}
			put(length, 3)
		}
		put(1, 1) // 18: 138 zeros
		put(138-11, 7)
		put(1, 1) // 18: 118 zeros
		put(118-11, 7)
		put(0, 1) // 1: the code for "end of block" has one bit
		put(0, 1) // 1: so has the only distance
		put(0, 1) // end of block
	}
	b := make([]byte, len(bits)/8)
	for i, bit := range bits {
		b[i/8] |= bit << (i % 8)
	}
	return string(b)
}

func BenchmarkFrame(b *testing.B) {
	text := jsonText(1 << 10)
	d := NewDeflater(1, 0)
	b.Run("NewFrame/size=1024", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewFrame(OpText, text)
		}
	})
	b.Run("NewFrame and Deflated/size=1024", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewFrame(OpText, text).Deflated(d)
		}
	})
	b.Run("Deflated again", func(b *testing.B) {
		f := NewFrame(OpText, text)
		b.ReportAllocs()
		for b.Loop() {
			f.Deflated(d)
		}
	})
}

// jsonText is n bytes that look like what people send.
func jsonText(n int) []byte {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, `{"id":%d,"symbol":"CAR%d","bid":%d.%02d,"ask":%d.%02d,"note":"carillon"},`, i*7919, i%13, i*31%997, i%100, i*31%997+1, i*7%100)
	}
	return []byte(b.String()[:n])
}

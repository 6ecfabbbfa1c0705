package generator

import (
	"encoding/binary"
	"errors"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// The range of a latency histogram in microseconds, and its significant digits. Longer latencies count as
// maxLatency.
const (
	maxLatency    = 120_000_000
	latencyDigits = 3
)

func newHistogram() *hdr.Histogram { return hdr.New(1, maxLatency, latencyDigits) }

// record records a latency in nanoseconds.
func record(h *hdr.Histogram, nanos int64) {
	_ = h.RecordValue(min(max(nanos/1000, 0), maxLatency)) // always in range
}

// pack encodes each non-zero count as its distance to the previous one, and its value. It runs while
// messages are measured, and is many times cheaper than HdrHistogram's own encoding.
func pack(h *hdr.Histogram) []byte {
	if h.TotalCount() == 0 {
		return nil
	}
	var packed []byte
	last := -1
	for i, n := range h.Export().Counts {
		if n != 0 {
			packed = binary.AppendUvarint(packed, uint64(i-last))
			packed = binary.AppendUvarint(packed, uint64(n))
			last = i
		}
	}
	return packed
}

// unpack adds packed counts to a histogram.
func unpack(into *hdr.Histogram, packed []byte) error {
	if len(packed) == 0 {
		return nil
	}
	counts := newHistogram().Export()
	at := -1
	for len(packed) > 0 {
		distance, n := binary.Uvarint(packed)
		count, m := binary.Uvarint(packed[max(n, 0):])
		if n <= 0 || m <= 0 || distance > uint64(len(counts.Counts)) || at+int(distance) >= len(counts.Counts) {
			return errors.New("malformed histogram")
		}
		packed = packed[n+m:]
		at += int(distance)
		counts.Counts[at] = int64(count)
	}
	into.Merge(hdr.Import(counts))
	return nil
}

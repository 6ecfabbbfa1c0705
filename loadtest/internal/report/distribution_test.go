package report

import (
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"
)

func TestLatencySumsUp(t *testing.T) {
	if l := NewLatency(hdrhistogram.New(1, 1000, 3)); l != nil {
		t.Errorf("an empty histogram is %+v", l)
	}
	h := hdrhistogram.New(1, 60_000_000, 3)
	for us := range int64(1000) {
		if err := h.RecordValue(us + 1); err != nil {
			t.Fatal(err)
		}
	}
	l := NewLatency(h)
	if l.Count != 1000 || l.P50 != 500 || l.P90 != 900 || l.P99 != 990 || l.P999 != 999 || l.Max != 1000 || l.Mean < 500 || l.Mean > 501 {
		t.Errorf("1 to 1000 us: %+v", l)
	}
	again, err := hdrhistogram.Decode([]byte(l.Histogram))
	if err != nil || !again.Equals(h) {
		t.Errorf("the encoded histogram is another one: %v", err)
	}
}

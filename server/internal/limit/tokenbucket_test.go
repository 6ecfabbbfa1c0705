package limit

import (
	"testing"
	"time"
)

func TestTokenBucket(t *testing.T) {
	type step struct {
		after   time.Duration // of the step before
		n       int
		granted bool
	}
	for _, test := range []struct {
		sentence string
		rate     int64
		burst    time.Duration
		steps    []step
	}{
		{"a second's worth may come at once", 3, time.Second, []step{{0, 1, true}, {0, 1, true}, {0, 1, true}, {0, 1, false}}},
		{"then one comes in each part of a second", 4, time.Second, []step{
			{0, 1, true}, {0, 1, true}, {0, 1, true}, {0, 1, true}, {200 * time.Millisecond, 1, false}, {50 * time.Millisecond, 1, true}, {0, 1, false}}},
		{"a refusal costs nothing", 1, time.Second, []step{
			{0, 1, true}, {0, 1, false}, {500 * time.Millisecond, 1, false}, {500 * time.Millisecond, 1, true}}},
		{"after a pause no more than the burst is granted", 2, time.Second, []step{
			{time.Hour, 1, true}, {0, 1, true}, {0, 1, false}}},
		{"what is too large for any bucket is granted by a full one and paid for later", 10, time.Second, []step{
			{0, 25, true}, {1500 * time.Millisecond, 1, false}, {100 * time.Millisecond, 1, true}}},
		{"and by no other", 10, time.Second, []step{{0, 1, true}, {0, 25, false}, {100 * time.Millisecond, 25, true}}},
		{"a debt can be as large as it is", 1, time.Second, []step{
			{0, 1 << 30, true}, {400 * time.Second, 1, false}, {50 * 24 * time.Hour, 1, true}}},
		{"the fastest rate is kept too", 1_000_000, time.Millisecond, []step{
			{0, 1000, true}, {0, 1, false}, {time.Millisecond, 1000, true}, {0, 1, false}}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			b, debt := NewTokenBucket(test.rate, test.burst), uint32(0)
			for i, s := range test.steps {
				debt = Decay(debt, uint32(min(s.after.Milliseconds(), 1<<32-1)))
				if got := b.Allow(&debt, s.n); got != s.granted {
					t.Fatalf("step %d is %v, want %v", i, got, s.granted)
				}
			}
		})
	}
	if NewTokenBucket(-1, time.Second).Limited() || !NewTokenBucket(1, time.Second).Limited() {
		t.Error("a bucket is limited when its rate is not negative")
	}
}

// Over ten minutes, a client that asks all the time gets what the rate says and one burst, however often it asks.
func TestTokenBucketOverTime(t *testing.T) {
	for _, rate := range []int64{1, 7, 100, 999} {
		for _, every := range []uint32{1, 3, 10, 100} {
			b, debt, granted := NewTokenBucket(rate, time.Second), uint32(0), 0
			const span = 600_000
			for at := uint32(0); at < span; at += every {
				debt = Decay(debt, every)
				for b.Allow(&debt, 1) {
					granted++
				}
			}
			if want := int(rate) * span / 1000; granted < want*99/100 || granted > want+int(rate)+1 {
				t.Errorf("%d a second, asked for each %d ms: %d were granted, want %d", rate, every, granted, want)
			}
		}
	}
}

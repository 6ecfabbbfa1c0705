package fair

import (
	"testing"
	"time"
)

// What was used is forgotten by half in usageHalf, and costs a delay meanwhile.
func TestUsage(t *testing.T) {
	var u Usage
	if !u.IsForgotten(0) || u.Delay(time.Hour) != 0 {
		t.Error("nothing was used")
	}
	u.Add(100*time.Millisecond, time.Second)
	for _, test := range []struct{ after, want time.Duration }{
		{0, 100 * time.Millisecond}, {usageHalf / 2, 75 * time.Millisecond}, {usageHalf, 50 * time.Millisecond}, {3 * usageHalf, 12500 * time.Microsecond}, {100 * usageHalf, 0},
	} {
		if got := u.Lately(time.Second + test.after); got != test.want {
			t.Errorf("after %v %v were used lately, want %v", test.after, got, test.want)
		}
	}
	if got := u.Lately(0); got != 100*time.Millisecond {
		t.Errorf("%v before that", got)
	}
	for _, test := range []struct{ used, want time.Duration }{
		{time.Millisecond / 2, 4 * time.Millisecond},
		{3 * time.Millisecond, 8 * time.Millisecond}, // such as by a client that publishes 20 times a second, where caches are cold
		{8 * time.Millisecond, 8 * time.Millisecond},
		{12 * time.Millisecond, 72 * time.Millisecond},
		{50 * time.Millisecond, 136*time.Millisecond + 34*64*time.Millisecond},
		{time.Second, MaxDelay},
	} {
		if got := (&Usage{Sum: test.used}).Delay(0); got != test.want {
			t.Errorf("%v cost a delay of %v, want %v", test.used, got, test.want)
		}
	}
	var long Usage
	long.AddTurn(Quantum+time.Millisecond, 0)
	if got := long.Lately(0); got != Quantum+(1+overrunWeight)*time.Millisecond {
		t.Errorf("a turn that could not be interrupted counts as %v", got)
	}
	for i := range 100 {
		u.Add(time.Second, time.Duration(i)*time.Second)
	}
	if got := u.Delay(99 * time.Second); got != MaxDelay {
		t.Errorf("a delay of %v at most", got)
	}
}

package auth

import (
	"testing"
	"time"
)

func TestIntersectPatterns(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"a", "a", "a"},
		{"a", "b", ""},
		{"a.>", "a", ""},
		{"a.>", "a.b.*", "a.b.*"},
		{"a.*.c", "*.b.*", "a.b.c"},
		{"*.*", "a.>", "a.*"},
		{">", "a.*", "a.*"},
		{"*.b.>", "a.>", "a.b.>"},
		{"a.*", "a.*.*", ""},
	} {
		for _, pair := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
			if got, ok := intersectPatterns(pair[0], pair[1]); got != test.want || ok != (test.want != "") {
				t.Errorf("%s and %s: %q, want %q", pair[0], pair[1], got, test.want)
			}
		}
	}
}

// A time is never told as another one, however far away it is.
func TestExpiryMillis(t *testing.T) {
	for at, want := range map[time.Time]int64{
		{}:                                    0,
		time.Unix(1_900_000_000, 500_000_000): 1_900_000_000_500,
		time.Unix(253_402_300_799, 0):         253_402_300_799_000,
		time.Unix(253_402_300_800, 0):         0,
		time.Unix(maxSeconds, 0):              0,
		time.Unix(1<<60, 0):                   0,
		time.Unix(1<<63-1, 0):                 0,
		time.Unix(0, 0):                       1,
		time.Unix(-1, 0):                      1,
		time.Unix(-1<<60, 0):                  1,
	} {
		if got := ExpiryMillis(&Identity{Expires: at}); got != want {
			t.Errorf("%d is %d, want %d", at.Unix(), got, want)
		}
	}
}

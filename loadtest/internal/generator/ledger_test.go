package generator

import "testing"

func TestLedger(t *testing.T) {
	for _, tt := range []struct {
		name                            string
		arrive                          []uint32
		sent                            int64
		received, duplicated, reordered int64
	}{
		{"all in order", []uint32{0, 1, 2, 3}, 4, 4, 0, 0},
		{"nothing", nil, 4, 0, 0, 0},
		{"the first is missing", []uint32{1, 2, 3}, 4, 3, 0, 0},
		{"one in the middle is missing", []uint32{0, 2, 3}, 4, 3, 0, 0},
		{"the last is missing", []uint32{0, 1, 2}, 4, 3, 0, 0},
		{"one twice in a row", []uint32{0, 1, 1, 2, 3}, 4, 4, 1, 0},
		{"one again much later", []uint32{0, 1, 2, 3, 0}, 4, 4, 1, 0},
		{"three times", []uint32{0, 0, 0}, 1, 1, 2, 0},
		{"two swapped", []uint32{1, 0, 2, 3}, 4, 4, 0, 1},
		{"all backwards", []uint32{3, 2, 1, 0}, 4, 4, 0, 3},
		{"late and then again", []uint32{1, 0, 0}, 2, 2, 1, 1},
		{"out of the middle of a gap", []uint32{0, 9, 5, 4, 6, 5}, 10, 5, 1, 3},
		{"out of both ends of a gap", []uint32{0, 5, 1, 4, 2, 3}, 6, 6, 0, 4},
		{"one missing, one twice", []uint32{0, 2, 2}, 3, 2, 1, 0},
	} {
		l := newLedger(3, 2)
		for _, n := range tt.arrive {
			l.note(1, 1, n)
		}
		if l.received != tt.received || l.duplicated != tt.duplicated || l.reordered != tt.reordered {
			t.Errorf("%s: received %d, duplicated %d, reordered %d, want %d, %d, %d", tt.name,
				l.received, l.duplicated, l.reordered, tt.received, tt.duplicated, tt.reordered)
		}
		if l.received > tt.sent {
			t.Errorf("%s: %d received of %d", tt.name, l.received, tt.sent)
		}
	}
}

func TestLedgerKeepsStreamsApart(t *testing.T) {
	l := newLedger(2, 3)
	for receiver := range 2 {
		for stream := range 3 {
			for n := range uint32(10) {
				if v := l.note(receiver, stream, n); v != fresh {
					t.Fatalf("receiver %d, stream %d, message %d: %v", receiver, stream, n, v)
				}
			}
			if got := l.reached(receiver, stream); got != 10 {
				t.Errorf("receiver %d, stream %d has reached %d", receiver, stream, got)
			}
		}
	}
	if l.received != 60 || l.duplicated != 0 || l.reordered != 0 {
		t.Errorf("%+v", l)
	}
}

func TestLedgerForgetsTheOldestGaps(t *testing.T) {
	l := newLedger(1, 1)
	for n := range uint32(3 * maxGaps) {
		l.note(0, 0, 2*n+1)
	}
	if n := len(l.gaps[0]); n > maxGaps {
		t.Errorf("%d gaps are kept, and at most %d should be", n, maxGaps)
	}
	if v := l.note(0, 0, 6*maxGaps-2); v != late {
		t.Errorf("a message out of the newest gap is %v", v)
	}
	if v := l.note(0, 0, 0); v != duplicate {
		t.Errorf("a message out of a forgotten gap is %v", v)
	}
}

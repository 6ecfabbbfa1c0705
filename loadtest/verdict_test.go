package main

import "testing"

func TestBackAt(t *testing.T) {
	back := []int64{1e9, 2e9, 3e9, 4e9}
	for _, tt := range []struct {
		name  string
		of    int
		share float64
		want  float64
	}{
		{"half of four", 4, 0.5, 1},
		{"nearly all of four is all", 4, 0.95, 3},
		{"all of four", 4, 1, 3},
		{"half of eight", 8, 0.5, 3},
		{"all of eight, who never came", 8, 1, 0},
		{"none to wait for", 0, 1, 0},
	} {
		if got := backAt(back, tt.of, 1e9, tt.share); got != tt.want {
			t.Errorf("%s: %g s, want %g", tt.name, got, tt.want)
		}
	}
}

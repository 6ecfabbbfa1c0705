//go:build race

package testenv

// Race reports whether the race detector watches, which makes everything slower and larger.
const Race = true

// RaceFactor divides what large tests do, so that they do less where the race detector watches.
const RaceFactor = 3

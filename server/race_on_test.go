//go:build race

package server

const raceEnabled = true

// crowdPart divides the number of connections of some tests.
const crowdPart = 3

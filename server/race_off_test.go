//go:build !race

package server

const raceEnabled = false

const crowdPart = 1

//go:build !linux && !darwin

package cluster

// bootID names this start of the machine; empty if that is not known.
func bootID() string { return "" }

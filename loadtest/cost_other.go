//go:build !linux

package main

import (
	"errors"
	"net/netip"
)

var errNoProc = errors.New("a server's process can be measured on Linux only")

func costOf(int) (cost, error)           { return cost{}, errNoProc }
func pssOf(int) int64                    { return 0 }
func kernelMemoryNow() kernelMemory      { return kernelMemory{} }
func listeners([]netip.AddrPort) [][]int { return nil }

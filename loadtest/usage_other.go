//go:build !linux

package main

import (
	"errors"
	"net/netip"
)

var errNoProc = errors.New("server processes can only be measured on Linux")

func usageOf(int) (usage, error)         { return usage{}, errNoProc }
func pssOf(int) int64                    { return 0 }
func readKernelMemory() kernelMemory     { return kernelMemory{} }
func listeners([]netip.AddrPort) [][]int { return nil }

package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"carillon/loadtest/internal/generator"
)

// usageOf reads the resource usage of a process.
func usageOf(pid int) (usage, error) {
	c := usage{at: generator.Monotonic()}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return c, errNoProcess
	}
	// The name, in parentheses, may contain anything. It is followed by the state, field 3.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 22 || fields[0] == "Z" || fields[0] == "X" {
		return c, errNoProcess
	}
	user, _ := strconv.ParseInt(fields[14-3], 10, 64)
	system, _ := strconv.ParseInt(fields[15-3], 10, 64)
	c.cpu = time.Duration(user+system) * (time.Second / 100) // USER_HZ
	c.threads, _ = strconv.Atoi(fields[20-3])
	pages, _ := strconv.ParseInt(fields[24-3], 10, 64)
	c.rss = pages * int64(os.Getpagesize())
	return c, nil
}

// pssOf is the proportional set size of a process, or 0 if it cannot be read.
func pssOf(pid int) int64 {
	return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:", 1) * 1024
}

func readKernelMemory() kernelMemory {
	return kernelMemory{
		buffers: field("/proc/net/sockstat", "TCP:", 10) * int64(os.Getpagesize()),
		slab:    field("/proc/meminfo", "Slab:", 1) * 1024,
	}
}

// field returns the number at a position in the line that begins with word.
func field(file, word string, position int) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > position && f[0] == word {
			n, _ := strconv.ParseInt(f[position], 10, 64)
			return n
		}
	}
	return 0
}

// listeners returns the processes that listen at each address of this machine, as far as permissions allow.
func listeners(addresses []netip.AddrPort) [][]int {
	wanted := map[string][]int{} // indices of the addresses, by socket
	for i, address := range addresses {
		for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			for _, inode := range listening(file, address) {
				link := "socket:[" + inode + "]"
				wanted[link] = append(wanted[link], i)
			}
		}
	}
	pids := make([][]int, len(addresses))
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, d := range descriptors {
		link, _ := os.Readlink(d)
		for _, i := range wanted[link] {
			pid, _ := strconv.Atoi(strings.Split(d, "/")[2])
			pids[i] = append(pids[i], pid)
		}
	}
	for i := range pids {
		slices.Sort(pids[i])
		pids[i] = slices.Compact(pids[i])
	}
	return pids
}

// listening returns the inodes of the sockets that listen at an address, from one of the kernel tables.
func listening(file string, address netip.AddrPort) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var inodes []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		const stateListen = "0A"
		if len(fields) < 10 || fields[3] != stateListen {
			continue
		}
		host, port, _ := strings.Cut(fields[1], ":")
		if p, err := strconv.ParseUint(port, 16, 16); err != nil || uint16(p) != address.Port() {
			continue
		}
		if a, ok := tableAddress(host); ok && (a.IsUnspecified() || a.Unmap() == address.Addr()) {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// tableAddress parses an address of a kernel table: 32-bit words in host byte order.
func tableAddress(text string) (netip.Addr, bool) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, false
	}
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	return netip.AddrFromSlice(b)
}

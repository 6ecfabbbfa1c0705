package report

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// ThisMachine describes the machine of this process. Unknown fields stay zero.
func ThisMachine() Machine {
	return machineFrom(os.DirFS("/"))
}

func machineFrom(root fs.FS) Machine {
	m := Machine{OS: runtime.GOOS, CPU: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	read := func(name string) []byte {
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return nil
		}
		return text
	}
	if name := valueOf(read("etc/os-release"), "PRETTY_NAME", "="); name != "" {
		m.OS = strings.Trim(name, `"'`)
	}
	if release := strings.TrimSpace(string(read("proc/sys/kernel/osrelease"))); release != "" {
		m.OS += ", Linux " + release // as in uname(2)
	}
	if model := valueOf(read("proc/cpuinfo"), "model name", ":"); model != "" {
		m.CPU = model
	}
	if total, unit, _ := strings.Cut(valueOf(read("proc/meminfo"), "MemTotal", ":"), " "); unit == "kB" {
		kib, _ := strconv.ParseInt(total, 10, 64)
		m.Memory = kib << 10
	}
	m.OpenFiles = openFilesLimit(read("proc/self/limits"))
	return m
}

// valueOf returns the value of the first line "key<separator>value".
func valueOf(text []byte, key, separator string) string {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), separator)
		if ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// openFilesLimit is the soft limit.
func openFilesLimit(limits []byte) int {
	for line := range strings.Lines(string(limits)) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			n, _ := strconv.Atoi(fields[0])
			return n
		}
	}
	return 0
}

// String describes the machine in one line.
func (m Machine) String() string {
	var parts []string
	add := func(when bool, part string) {
		if when {
			parts = append(parts, plain(part))
		}
	}
	add(m.CPU != "", m.CPU)
	add(m.Cores != 0, strconv.Itoa(m.Cores)+" cores")
	add(m.Memory != 0, sizes.format(float64(m.Memory)))
	add(m.OS != "", m.OS)
	add(m.Go != "", m.Go)
	add(m.OpenFiles != 0, strconv.Itoa(m.OpenFiles)+" open files")
	if len(parts) == 0 {
		return "unknown machine"
	}
	return strings.Join(parts, ", ")
}

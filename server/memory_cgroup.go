package server

import (
	"bytes"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// cgroup is a control group with a memory limit that this process is in, or one above that. The kernel ends
// processes in it that together use more.
type cgroup struct {
	name  string // its path, as /proc/self/cgroup has it
	dir   string
	file  string // that has the limit
	limit int64
	v1    bool
}

// cgroupMount is where the groups of a hierarchy are.
type cgroupMount struct {
	root  string // the group that is mounted
	point string
	v1    bool
}

// lowestCgroup looks at the process's group and all above it, as far as they are mounted, in both versions. It is
// nil when none of them has a limit, or there are no cgroups.
func lowestCgroup(root string) (lowest *cgroup) {
	groups, err := os.ReadFile(root + "/proc/self/cgroup")
	if err != nil {
		return nil
	}
	mounts, err := os.ReadFile(root + "/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 || fields[1] != "" && !hasWord(fields[1], "memory") {
			continue
		}
		for _, m := range cgroupMounts(string(mounts), fields[1] != "") {
			for g := range m.levels(root, fields[2]) {
				if lowest == nil || g.limit < lowest.limit {
					lowest = &g
				}
			}
		}
	}
	return lowest
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// mountEscapes are how mountinfo writes the characters that separate its fields (proc_pid_mountinfo(5)).
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func cgroupMounts(mountinfo string, v1 bool) (list []cgroupMount) {
	for line := range strings.Lines(mountinfo) {
		mount, system, _ := strings.Cut(strings.TrimSpace(line), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(system)
		if len(fields) < 5 || len(kind) < 3 {
			continue
		}
		if v1 && kind[0] == "cgroup" && hasWord(kind[2], "memory") || !v1 && kind[0] == "cgroup2" {
			list = append(list, cgroupMount{mountEscapes.Replace(fields[3]), mountEscapes.Replace(fields[4]), v1})
		}
	}
	return list
}

// levels yields the groups with a limit, from the one with this name up to the one that is mounted.
func (m cgroupMount) levels(root, name string) func(yield func(cgroup) bool) {
	return func(yield func(cgroup) bool) {
		below, under := strings.CutPrefix(name, strings.TrimSuffix(m.root, "/"))
		if !under || strings.Contains(below, "..") {
			below = "/" // the group is outside what is mounted: only that can be looked at
		}
		for below = path.Clean("/" + below); ; below = path.Dir(below) {
			dir := root + path.Join(m.point, below)
			for _, file := range cgroupFiles[m.v1] {
				limit := readBytes(dir + "/" + file)
				if limit > 0 && limit < unlimited && !yield(cgroup{path.Join(m.root, below), dir, file, limit, m.v1}) {
					return
				}
			}
			if below == "/" {
				return
			}
		}
	}
}

// cgroupFiles have limits, by whether the version is 1. Above memory.high the kernel does not end a process but
// slows it down until it can hardly serve.
var cgroupFiles = map[bool][]string{
	false: {"memory.max", "memory.high"},
	true:  {"memory.limit_in_bytes"},
}

// unlimited is about what version 1 says when there is no limit: the largest multiple of a page.
const unlimited = math.MaxInt64 / 2

// workingSet is what the group uses, without what the kernel can take back at once. That includes other
// processes of the group and, in version 2, the kernel's memory for sockets. It is 0 when it cannot be read.
func (g *cgroup) workingSet(above int64) int64 {
	usage, stat, inactive := "/memory.current", "/memory.stat", "inactive_file "
	if g.v1 {
		usage, inactive = "/memory.usage_in_bytes", "total_inactive_file "
	}
	used := readBytes(g.dir + usage)
	if used <= above { // memory.stat costs the kernel more
		return max(used, 0)
	}
	text, _ := os.ReadFile(g.dir + stat)
	for line := range bytes.Lines(text) {
		if n, found := bytes.CutPrefix(line, []byte(inactive)); found {
			files, _ := strconv.ParseInt(string(bytes.TrimSpace(n)), 10, 64)
			return max(used-files, 0)
		}
	}
	return used
}

// readBytes reads a file with one number. It is -1 for anything else, such as max or no file.
func readBytes(name string) int64 {
	text, err := os.ReadFile(name)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// physicalMemory is what the machine has, or 0 when that cannot be read, as on other systems than Linux.
func physicalMemory(root string) int64 {
	text, _ := os.ReadFile(root + "/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

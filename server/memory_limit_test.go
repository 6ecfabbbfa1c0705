package server

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// fakeSystem writes files below a directory that stands for /.
func fakeSystem(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	mountV2     = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
	mountV1     = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
	unlimitedV1 = "9223372036854771712"
)

// The lowest limit on the way from the process's control group to the root is the one that counts.
func TestTheLowestLimitOfTheCgroups(t *testing.T) {
	for _, row := range []struct {
		sentence string
		files    map[string]string
		want     string // limit, file and name of the group
	}{
		{"no control groups", nil, "none"},
		{"version 2: the group's own limit", map[string]string{
			"proc/self/cgroup": "0::/system.slice/carillon.service", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/system.slice/carillon.service/memory.max": "1000", "sys/fs/cgroup/system.slice/carillon.service/memory.high": "max",
			"sys/fs/cgroup/system.slice/memory.max": "2000"}, "1000 memory.max /system.slice/carillon.service"},
		{"version 2: a lower limit above it", map[string]string{
			"proc/self/cgroup": "0::/pod/container", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/pod/container/memory.max": "max", "sys/fs/cgroup/pod/memory.max": "700",
			"sys/fs/cgroup/memory.max": "max"}, "700 memory.max /pod"},
		{"version 2: memory.high is lower", map[string]string{
			"proc/self/cgroup": "0::/a", "proc/self/mountinfo": mountV2,
			"sys/fs/cgroup/a/memory.max": "1000", "sys/fs/cgroup/a/memory.high": "900"}, "900 memory.high /a"},
		{"version 2: a container sees its own group as the root", map[string]string{
			"proc/self/cgroup": "0::/", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "512"}, "512 memory.max /"},
		{"version 2: the process was moved out of what it sees", map[string]string{
			"proc/self/cgroup": "0::/../other", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/memory.max": "512"}, "512 memory.max /"},
		{"version 2: no limit at all", map[string]string{
			"proc/self/cgroup": "0::/a", "proc/self/mountinfo": mountV2, "sys/fs/cgroup/a/memory.max": "max"}, "none"},
		{"version 1: a limit", map[string]string{
			"proc/self/cgroup": "5:cpu:/b\n4:memory:/a\n0::/", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "800",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": unlimitedV1}, "800 memory.limit_in_bytes /a"},
		{"version 1: a lower limit above it", map[string]string{
			"proc/self/cgroup": "4:hugetlb,memory:/a/b", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "800",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "500"}, "500 memory.limit_in_bytes /a"},
		{"version 1: a container has only its own group mounted", map[string]string{
			"proc/self/cgroup":                           "4:memory:/docker/1234",
			"proc/self/mountinfo":                        "32 24 0:28 /docker/1234 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "400"}, "400 memory.limit_in_bytes /docker/1234"},
		{"version 1: no limit", map[string]string{
			"proc/self/cgroup": "4:memory:/", "proc/self/mountinfo": mountV1, "sys/fs/cgroup/memory/memory.limit_in_bytes": unlimitedV1}, "none"},
		{"both versions: memory is of version 1", map[string]string{
			"proc/self/cgroup": "4:memory:/a\n0::/", "proc/self/mountinfo": mountV1 + "\n33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "300", "sys/fs/cgroup/unified/cgroup.procs": "1"}, "300 memory.limit_in_bytes /a"},
		{"a mount point with a space", map[string]string{
			"proc/self/cgroup": "0::/", "proc/self/mountinfo": `30 24 0:26 / /sys/my\040groups rw - cgroup2 cgroup2 rw`, "sys/my groups/memory.max": "200"}, "200 memory.max /"},
		{"files that say nothing", map[string]string{
			"proc/self/cgroup": "nonsense\n0::/", "proc/self/mountinfo": "x\n" + mountV2, "sys/fs/cgroup/memory.max": "many"}, "none"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			got := "none"
			if g := lowestCgroup(fakeSystem(t, row.files)); g != nil {
				got = fmt.Sprintf("%d %s %s", g.limit, g.file, g.name)
			}
			if got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
}

// What the kernel can take back at once does not count.
func TestTheWorkingSetOfACgroup(t *testing.T) {
	for _, row := range []struct {
		sentence string
		files    map[string]string
		v1       bool
		above    int64
		want     int64
	}{
		{"version 2", map[string]string{"memory.current": "1000", "memory.stat": "anon 500\nsock 300\ninactive_file 150\nactive_file 50"}, false, 900, 850},
		{"version 2, below what is of interest", map[string]string{"memory.current": "1000"}, false, 1000, 1000},
		{"version 1", map[string]string{"memory.usage_in_bytes": "1000", "memory.stat": "inactive_file 1\ntotal_inactive_file 200"}, true, 0, 800},
		{"no statistics", map[string]string{"memory.current": "1000"}, false, 0, 1000},
		{"nothing can be read", nil, false, 0, 0},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			g := cgroup{dir: fakeSystem(t, row.files), v1: row.v1}
			if got := g.workingSet(row.above); got != row.want {
				t.Errorf("got %d, want %d", got, row.want)
			}
		})
	}
}

func TestTheDefaultOfMaxMemory(t *testing.T) {
	group := func(limit int64) *cgroup { return &cgroup{name: "/a", file: "memory.max", limit: limit} }
	for _, row := range []struct {
		sentence string
		system   memorySystem
		want     Size
		source   string
	}{
		{"nothing is known", memorySystem{}, -1, "no limit from GOMEMLIMIT, a cgroup or the system"},
		{"a container", memorySystem{group: group(512 << 20), physical: 64 << 30}, 409 << 20, "80% of memory.max of the cgroup /a, 512MiB"},
		{"GOMEMLIMIT in a container", memorySystem{runtime: 300 << 20, group: group(512 << 20)}, 240 << 20, "80% of GOMEMLIMIT, 300MiB"},
		{"GOMEMLIMIT above the container's limit", memorySystem{runtime: 2 << 30, group: group(1 << 30)}, 819 << 20, "80% of memory.max of the cgroup /a, 1GiB"},
		{"a machine", memorySystem{physical: 2 << 30}, 1638 << 20, "80% of the physical memory, 2GiB"},
		{"a cgroup that allows more than there is", memorySystem{group: group(8 << 30), physical: 2 << 30}, 1638 << 20, "80% of the physical memory, 2GiB"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			if got, source := row.system.defaultLimit(); got != row.want || source != row.source {
				t.Errorf("got %v, %s; want %v, %s", got, source, row.want, row.source)
			}
		})
	}
	for _, explicit := range []Size{-1, 5 << 20} {
		if got, source := (&Limits{MaxMemory: explicit}).EffectiveMaxMemory(); got != explicit || source != "limits.max_memory" {
			t.Errorf("%v became %v, %s", explicit, got, source)
		}
	}
	if n := physicalMemory(fakeSystem(t, map[string]string{"proc/meminfo": "MemFree: 3 kB\nMemTotal:   2048 kB"})); n != 2<<20 {
		t.Errorf("the machine has %d", n)
	}
}

// The runtime's limit is set where a cgroup has one and it was not set otherwise, follows that, and is not taken for a
// limit of the user's.
func TestLimitRuntimeMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer func() { debug.SetMemoryLimit(before); ownRuntimeLimit.Store(0) }()
	debug.SetMemoryLimit(math.MaxInt64)
	inGroup := func(limit int64) memorySystem {
		m := findMemory("")
		m.group = &cgroup{name: "/a", file: "memory.max", limit: limit}
		return m
	}
	if n, _ := limitRuntime(memorySystem{physical: 1 << 30}); n != 0 {
		t.Errorf("without a cgroup it is %v", n)
	}
	if n, source := limitRuntime(inGroup(4 << 30)); n != 3686<<20 || !strings.Contains(source, "90% of memory.max of the cgroup /a, 4GiB") {
		t.Errorf("it is %v, %s", n, source)
	}
	if m := inGroup(4 << 30); m.runtime != 0 {
		t.Errorf("the server takes it for a limit: %+v", m)
	}
	limitRuntimeAgain(inGroup(8 << 30))
	if n := debug.SetMemoryLimit(-1); n != 7372<<20 {
		t.Errorf("after a change it is %v", Size(n))
	}
	debug.SetMemoryLimit(5 << 30) // the application's own
	limitRuntimeAgain(inGroup(4 << 30))
	if n := debug.SetMemoryLimit(-1); n != 5<<30 || inGroup(4<<30).runtime != 5<<30 {
		t.Errorf("the application's limit became %v", Size(n))
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	if n, _ := LimitRuntimeMemory(); n != 0 {
		t.Errorf("with GOMEMLIMIT it is %v", n)
	}
}

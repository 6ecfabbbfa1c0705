package report

import (
	"io/fs"
	"runtime"
	"testing"
	"testing/fstest"
)

func TestMachineIsReadFromTheSystemsFiles(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	bare := Machine{OS: runtime.GOOS, CPU: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	whole := bare
	whole.OS, whole.CPU, whole.Memory, whole.OpenFiles = "Exemplix 9, Linux 7.1.2", "Example CPU 3000", 16384<<10, 1024
	for _, c := range []struct {
		name string
		root fs.FS
		want Machine
	}{
		{"a system that tells nothing", fstest.MapFS{}, bare},
		{"Linux", fstest.MapFS{
			"etc/os-release":            file("NAME=x\nPRETTY_NAME=\"Exemplix 9\"\n"),
			"proc/sys/kernel/osrelease": file("7.1.2\n"),
			"proc/cpuinfo":              file("processor\t: 0\nmodel name\t: Example CPU 3000\n"),
			"proc/meminfo":              file("MemTotal:       16384 kB\nMemFree: 1 kB\n"),
			"proc/self/limits":          file("Max processes  5 5 x\nMax open files            1024                 4096                 files\n"),
		}, whole},
		{"files that make no sense", fstest.MapFS{
			"proc/meminfo":     file("MemTotal: much\n"),
			"proc/self/limits": file("Max open files\n"),
		}, bare},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := machineFrom(c.root); got != c.want {
				t.Errorf("got %+v\nexpected %+v", got, c.want)
			}
		})
	}
	if m := ThisMachine(); m.Cores < 1 || m.Go == "" || m.OS == "" {
		t.Errorf("this machine is %+v", m)
	}
}

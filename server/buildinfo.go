package server

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Build says what the running program was made of.
type Build struct {
	Version  string `json:"version"`            // of the program's module; "(unknown)" when it was not recorded
	Revision string `json:"revision,omitempty"` // of its source, when it was built from a repository
	Changed  bool   `json:"changed"`            // the source had changes that were in no commit
	Go       string `json:"go"`
	Platform string `json:"platform"` // system and processor
}

// BuildInfo reads it from the program.
func BuildInfo() Build {
	b := Build{Version: "(unknown)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = cmp.Or(info.Main.Version, b.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Changed = s.Value == "true"
		}
	}
	return b
}

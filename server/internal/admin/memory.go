package admin

import "net/http"

// Memory is what /v1/memory shows. Sizes are in bytes.
type Memory struct {
	Max      int64  `json:"max"`      // Limits.MaxMemory in force; -1 is off
	Source   string `json:"source"`   // where that comes from
	Used     int64  `json:"used"`     // by the Go runtime, garbage included; 0 while it is off
	Held     int64  `json:"held"`     // what closing connections would free, about
	Refusing bool   `json:"refusing"` // new connections are refused
}

func (a *api) memory(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return reply(w, a.backend.Memory())
}

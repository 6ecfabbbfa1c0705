package server

import (
	"net/http"

	"carillon/server/internal/envelope"
)

// drainInfo is a [DrainStatus] as the interface shows it.
type drainInfo struct {
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Began     int64  `json:"began,omitempty"` // milliseconds since 1970
	Listening bool   `json:"listening"`
	Total     int    `json:"total"`
	Remaining int    `json:"remaining"`
	ETA       int64  `json:"eta,omitempty"` // milliseconds since 1970
}

func (a *api) drainInfo() drainInfo {
	st := a.srv.Drain()
	info := drainInfo{State: st.State, Reason: st.Reason, Listening: st.Listening, Total: st.Total, Remaining: st.Remaining}
	if !st.Began.IsZero() {
		info.Began, info.ETA = st.Began.UnixMilli(), st.ETA.UnixMilli()
	}
	return info
}

func (a *api) drainStatus(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return reply(w, a.drainInfo())
}

// startDrain does what SIGTERM does to the program.
func (a *api) startDrain(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	a.srv.StartDrain("requested over HTTP", a.srv.opts().Drain.Delay)
	body := append(envelope.AppendJSON(nil, a.drainInfo()), '\n')
	w.Header()["Content-Type"] = contentJSON
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(body)
	return nil
}

func (a *api) callOffDrain(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if err := a.srv.CallOffDrain(); err != nil {
		return err
	}
	return reply(w, a.drainInfo())
}

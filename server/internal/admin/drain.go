package admin

import (
	"net/http"

	"carillon/server/internal/envelope"
)

// Drain says how far the server has come with its end.
type Drain struct {
	State     string `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Began     int64  `json:"began,omitempty"` // milliseconds since 1970
	Listening bool   `json:"listening"`
	Total     int    `json:"total"`
	Remaining int    `json:"remaining"`
	ETA       int64  `json:"eta,omitempty"` // milliseconds since 1970
}

func (a *api) drainStatus(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return reply(w, a.backend.Drain())
}

func (a *api) startDrain(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	a.backend.StartDrain()
	body := append(envelope.AppendJSON(nil, a.backend.Drain()), '\n')
	w.Header()["Content-Type"] = contentJSON
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(body)
	return nil
}

func (a *api) cancelDrain(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	if err := a.backend.CancelDrain(); err != nil {
		return err
	}
	return reply(w, a.backend.Drain())
}

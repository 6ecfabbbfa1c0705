package admin

import (
	"net/http"

	"carillon/server/internal/strictjson"
)

// Condition is one thing that keeps the server from being ready, or shows that it is not alive.
type Condition struct {
	Reason string `json:"reason"` // one of a closed set, which openapi.json lists
	Detail string `json:"detail"`
}

// healthy is the body of a good answer.
var healthy = []byte(`{"status":"ok"}` + "\n")

func (a *api) ready(w http.ResponseWriter, _ *http.Request) error {
	return answerHealth(w, problemNotReady, a.backend.Unready())
}

func (a *api) live(w http.ResponseWriter, _ *http.Request) error {
	return answerHealth(w, problemNotLive, a.backend.Stuck())
}

func answerHealth(w http.ResponseWriter, not *problem, list []Condition) error {
	w.Header().Set("Cache-Control", "no-store")
	if len(list) > 0 {
		p := not.because("%s", list[0].Detail)
		p.Reasons = list
		return p
	}
	replyBytes(w, healthy)
	return nil
}

// maintenanceState is what /v1/maintenance shows and takes.
type maintenanceState struct {
	On *bool `json:"on"`
}

var maintenanceShape = strictjson.ShapeOf[maintenanceState](strictjson.Rules{})

func (a *api) maintenance(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	return a.showMaintenance(w)
}

func (a *api) setMaintenance(w http.ResponseWriter, r *http.Request) error {
	var state maintenanceState
	if err := a.order(w, r, maintenanceShape, &state); err != nil {
		return err
	}
	if state.On == nil {
		return bad("on is missing: expected true or false")
	}
	a.backend.SetMaintenance(*state.On)
	return a.showMaintenance(w)
}

func (a *api) showMaintenance(w http.ResponseWriter) error {
	on := a.backend.Maintenance()
	return reply(w, maintenanceState{&on})
}

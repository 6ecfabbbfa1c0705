package protocol

import (
	"encoding/json"
	"errors"
	"strings"

	"carillon/server/internal/envelope"
	"carillon/server/internal/strictjson"
	"carillon/server/topic"
)

// request is what a client of the JSON protocol asks for: see docs/protocol.md. Exactly one of the fields
// behind ID is set.
type request struct {
	ID          json.RawMessage   `json:"id"`
	Subscribe   *subscribeRequest `json:"subscribe"`
	Unsubscribe *topicRequest     `json:"unsubscribe"`
	Publish     *envelope.Publish `json:"publish"`
	History     *historyRequest   `json:"history"`
	Presence    *topicRequest     `json:"presence"`
	Ping        *struct{}         `json:"ping"`
	Refresh     *refreshRequest   `json:"refresh"`
}

// isQuick reports whether a request costs no more than a message does.
func (r *request) isQuick() bool {
	if s := r.Subscribe; s != nil {
		return s.Since == nil && s.Last == 0 && !topic.IsPattern(s.Topic)
	}
	return r.Unsubscribe != nil || r.Publish != nil || r.Ping != nil
}

type topicRequest struct {
	Topic string `json:"topic"`
}

type subscribeRequest struct {
	Topic string          `json:"topic"`
	Since *topic.Position `json:"since"`
	Last  int             `json:"last"`
}

type historyRequest struct {
	Topic string          `json:"topic"`
	Since *topic.Position `json:"since"`
	Limit *int            `json:"limit"`
}

// Unknown members are ignored, and null stands for an absent one. But with a member that is there twice, or in other
// case, what the client asks for would depend on the reader. An id decides nothing.
var requestShape = strictjson.ShapeOf[request](strictjson.Rules{Unknown: true, Null: true}).Without("id")

// parseRequest returns a request also when it returns an error: one that has the ID, if that can be
// repeated.
func parseRequest(payload []byte) (*request, error) {
	r := &request{}
	err := json.Unmarshal(payload, r)
	if wrong := checkID(r.ID); wrong != nil {
		return &request{}, wrong
	}
	if err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return r, envelope.BadRequest("%s must not be a JSON %.20s", kind.Field, kind.Value)
		}
		return r, envelope.BadRequest("expected a JSON object: %v", err)
	}
	if err := requestShape.Check(payload); err != nil {
		return r, envelope.BadRequest("%v", err)
	}
	asked := 0
	for _, set := range []bool{r.Subscribe != nil, r.Unsubscribe != nil, r.Publish != nil, r.History != nil, r.Presence != nil, r.Ping != nil, r.Refresh != nil} {
		if set {
			asked++
		}
	}
	if asked != 1 {
		return r, envelope.BadRequest("expected exactly one of subscribe, unsubscribe, publish, history, presence, ping and refresh, each with an object")
	}
	return r, nil
}

// maxID is the longest id of a request, in bytes.
const maxID = 64

// checkID allows what can be repeated in a reply without harm: a short string or an integer.
func checkID(id json.RawMessage) error {
	if len(id) == 0 {
		return nil
	}
	n := len(id)
	if id[0] == '"' {
		var text string
		if json.Unmarshal(id, &text) != nil || len(id) > 2+6*maxID { // at most six bytes escape one
			return envelope.BadRequest("id is longer than %d bytes", maxID)
		}
		n = len(text)
	} else if strings.Trim(string(id), "-0123456789") != "" {
		return envelope.BadRequest("id is %.20s: expected a string or an integer", id)
	}
	if n > maxID {
		return envelope.BadRequest("id is longer than %d bytes", maxID)
	}
	return nil
}

// isUnanswered reports whether a request asks only for an answer, and has no id that the answer could have.
func (r *request) isUnanswered() bool {
	return len(r.ID) == 0 && (r.History != nil || r.Presence != nil || r.Ping != nil)
}

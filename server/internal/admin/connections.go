package admin

import (
	"net/http"
	"strconv"
	"unicode/utf8"

	"carillon/codec"
)

// Connection is a connection as the interface shows it.
type Connection struct {
	ID            string   `json:"id"`
	Node          string   `json:"node,omitempty"` // the server that it is at, in a cluster
	Address       string   `json:"address"`
	Path          string   `json:"path"`
	Transport     string   `json:"transport"` // "websocket" or "sse"
	Subprotocol   string   `json:"subprotocol"`
	Age           uint32   `json:"age"`           // seconds
	QueuedBytes   *int     `json:"queuedBytes"`   // nil when the loop did not say in time
	Subscriptions int      `json:"subscriptions"` // how many
	Topics        []string `json:"topics,omitempty"`
}

// connections lists connections by their ids, a page at a time.
func (a *api) connections(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "limit", "after")
	if err != nil {
		return err
	}
	limit, err := limitOf(query)
	if err != nil {
		return err
	}
	after := uint64(0)
	if text := query.Get("after"); text != "" {
		if after, err = strconv.ParseUint(text, 10, 64); err != nil {
			return bad("after=%.40q is not the id of a connection", text)
		}
	}
	page := struct {
		Connections []Connection `json:"connections"`
		Next        string       `json:"next,omitempty"`
	}{Connections: []Connection{}}
	list, more := a.backend.Connections(after, limit)
	page.Connections = append(page.Connections, list...)
	if more {
		page.Next = page.Connections[len(list)-1].ID
	}
	return reply(w, page)
}

// connectionID is the id in the request's path.
func connectionID(r *http.Request) (uint64, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, bad("%.40q is not the id of a connection", r.PathValue("id"))
	}
	return id, nil
}

func (a *api) connection(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	id, err := connectionID(r)
	if err != nil {
		return err
	}
	info, err := a.backend.Connection(r.Context(), id)
	if err != nil {
		return err
	}
	replyBytes(w, append(info, '\n'))
	return nil
}

// maxReason is what fits into a close frame besides the code.
const maxReason = 123

func (a *api) closeConnection(w http.ResponseWriter, r *http.Request) error {
	query, err := parameters(r, "code", "reason")
	if err != nil {
		return err
	}
	code, reason := codec.CloseGoingAway, query.Get("reason")
	if text := query.Get("code"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if code = codec.CloseCode(n); err != nil || !code.Valid() {
			return bad("code=%.40q is not allowed: expected 1000 to 1003, 1007 to 1014 or 3000 to 4999", text)
		}
	}
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return bad("reason has %d bytes: expected at most %d, in UTF-8", len(reason), maxReason)
	}
	id, err := connectionID(r)
	if err != nil {
		return err
	}
	if err := a.backend.CloseConnection(r.Context(), id, code, reason); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

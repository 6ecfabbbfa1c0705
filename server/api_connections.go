package server

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"carillon/codec"
)

// connectionInfo is a connection as the interface shows it.
type connectionInfo struct {
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

func (c *Conn) info(queued *int) connectionInfo {
	info := connectionInfo{
		ID:            strconv.FormatUint(c.id, 10),
		Node:          c.sh.srv.hub.remote.nodeID(),
		Address:       addressText(c.RemoteAddr()),
		Path:          c.Path(),
		Transport:     "websocket",
		Subprotocol:   c.Subprotocol(),
		Age:           c.sh.srv.second() - c.opened,
		QueuedBytes:   queued,
		Subscriptions: c.subscriptions(),
	}
	if c.isEvents() {
		info.Transport = "sse"
	}
	return info
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
		Connections []connectionInfo `json:"connections"`
		Next        string           `json:"next,omitempty"`
	}{Connections: []connectionInfo{}}
	list, more := a.srv.roster.page(a.srv, after, limit)
	queued := queuedBytes(list)
	for i, c := range list {
		page.Connections = append(page.Connections, c.info(queued[i]))
	}
	if more {
		page.Next = page.Connections[len(list)-1].ID
	}
	return reply(w, page)
}

// queueTime is how long a loop may take to say what waits for its connections.
const queueTime = time.Second

// queuedBytes asks the loops how many bytes wait for connections: nobody else can know. It is nil for those
// whose loop has too much to do to answer in time.
func queuedBytes(conns []*Conn) []*int {
	ofShard := map[*shard][]int{}
	for i, c := range conns {
		ofShard[c.sh] = append(ofShard[c.sh], i)
	}
	type answer struct{ at, bytes []int }
	answers := make(chan answer, len(ofShard)) // so that a late one does not hold the loop up
	for _, at := range ofShard {
		conns[at[0]].sh.postDo(conns[at[0]], 0, func() {
			bytes := make([]int, len(at))
			for i, n := range at {
				if o := conns[n].out; o != nil {
					bytes[i] = o.bytes
				}
			}
			answers <- answer{at, bytes}
		})
	}
	all := make([]*int, len(conns))
	late := time.NewTimer(queueTime)
	defer late.Stop()
	for range ofShard {
		select {
		case got := <-answers:
			for i, n := range got.at {
				all[n] = &got.bytes[i]
			}
		case <-late.C:
			return all
		}
	}
	return all
}

// connectionOf finds the connection in the request's path.
func (a *api) connectionOf(r *http.Request) (*Conn, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return nil, bad("%.40q is not the id of a connection", r.PathValue("id"))
	}
	if c := a.srv.roster.find(a.srv, id); c != nil {
		return c, nil
	}
	return nil, &absent{id}
}

// absent is a connection that is not open at this server.
type absent struct{ id uint64 }

func (e *absent) Error() string { return fmt.Sprintf("connection %d is not open", e.id) }

// elsewhere asks other servers about a connection that is not open here; err is what this one says. It returns the
// answer of the one that has it.
func (a *api) elsewhere(r *http.Request, err error, subject string, question askConnection) ([]byte, error) {
	var missing *absent
	if !errors.As(err, &missing) {
		return nil, err
	}
	question.ID = missing.id
	answers, all := a.srv.hub.askAndWait(r.Context(), subject, question)
	for _, one := range answers {
		if len(one.Body) > 0 {
			return one.Body, nil
		}
	}
	if all != nil && !*all {
		return nil, problemNoCluster.because("%v here, and not every server answered", err)
	}
	return nil, problemNoConnection.because("%v", err)
}

// fullInfo is all that is told of one connection.
func (c *Conn) fullInfo() connectionInfo {
	info := c.info(queuedBytes([]*Conn{c})[0])
	names := c.Subscriptions()
	info.Topics = names[:min(len(names), mostNames)]
	return info
}

// mostNames bounds the subscriptions that are listed for a connection.
const mostNames = 1000

func (a *api) connection(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	c, err := a.connectionOf(r)
	if err != nil {
		body, err := a.elsewhere(r, err, askAboutConnection, askConnection{})
		if err == nil {
			replyBytes(w, append(body, '\n'))
		}
		return err
	}
	return reply(w, c.fullInfo())
}

// mostReason is what fits into a close frame beside the code.
const mostReason = 123

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
	if len(reason) > mostReason || !utf8.ValidString(reason) {
		return bad("reason has %d bytes: expected at most %d, in UTF-8", len(reason), mostReason)
	}
	c, err := a.connectionOf(r)
	if err == nil {
		err = c.Close(code, reason)
	} else {
		_, err = a.elsewhere(r, err, askToClose, askConnection{Code: code, Reason: reason})
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"carillon/codec"
	"carillon/server/internal/admin"
	"carillon/server/internal/envelope"
	"carillon/server/internal/hub"
	"carillon/server/internal/reactor"
)

func (b backend) Connections(after uint64, limit int) (list []admin.Connection, more bool) {
	conns, more := b.srv.index.page(b.srv, after, limit)
	queued := queuedBytes(conns)
	for i, c := range conns {
		list = append(list, c.info(queued[i]))
	}
	return list, more
}

func (b backend) Connection(ctx context.Context, id uint64) (json.RawMessage, error) {
	if c := b.srv.index.find(b.srv, id); c != nil {
		return envelope.AppendJSON(nil, c.fullInfo()), nil
	}
	return b.elsewhere(ctx, hub.AskAboutConnection, hub.AskConnection{ID: id})
}

func (b backend) CloseConnection(ctx context.Context, id uint64, code codec.CloseCode, reason string) error {
	if c := b.srv.index.find(b.srv, id); c != nil {
		return c.Close(code, reason)
	}
	_, err := b.elsewhere(ctx, hub.AskToClose, hub.AskConnection{ID: id, Code: code, Reason: reason})
	return err
}

// elsewhere asks other servers about a connection that is not open here. It returns the answer of the one that has it.
func (b backend) elsewhere(ctx context.Context, subject string, question hub.AskConnection) ([]byte, error) {
	answers, all := b.srv.hub.AskAndWait(ctx, subject, question)
	for _, one := range answers {
		if len(one.Body) > 0 {
			return one.Body, nil
		}
	}
	if all != nil && !*all {
		return nil, fmt.Errorf("%w: connection %d is not open here, and not every server answered", ErrNoCluster, question.ID)
	}
	return nil, fmt.Errorf("%w: connection %d is not open", admin.ErrNoConnection, question.ID)
}

func (c *Conn) info(queued *int) admin.Connection {
	info := admin.Connection{
		ID:            strconv.FormatUint(c.ID(), 10),
		Node:          c.Server().hub.Remote.NodeID(),
		Address:       reactor.AddressText(c.RemoteAddr()),
		Path:          c.Path(),
		Transport:     "websocket",
		Subprotocol:   c.Subprotocol(),
		Age:           c.shard().Engine.UptimeSeconds() - c.core().OpenedAt(),
		QueuedBytes:   queued,
		Subscriptions: c.core().SubscriptionCount(),
	}
	if c.core().IsEvents() {
		info.Transport = "sse"
	}
	return info
}

// fullInfo is the full description of one connection.
func (c *Conn) fullInfo() admin.Connection {
	info := c.info(queuedBytes([]*Conn{c})[0])
	names := c.Subscriptions()
	info.Topics = names[:min(len(names), maxNames)]
	return info
}

// maxNames bounds the subscriptions that are listed for a connection.
const maxNames = 1000

// queueTime is how long a loop may take to say what waits for its connections.
const queueTime = time.Second

// queuedBytes asks the loops how many bytes wait for connections: only they know. It is nil for those
// whose loop has too much to do to answer in time.
func queuedBytes(conns []*Conn) []*int {
	ofShard := map[*reactor.Shard][]int{}
	for i, c := range conns {
		ofShard[c.shard()] = append(ofShard[c.shard()], i)
	}
	type answer struct{ at, bytes []int }
	answers := make(chan answer, len(ofShard)) // so that a late one does not hold the loop up
	for _, at := range ofShard {
		conns[at[0]].core().Shard().PostDo(conns[at[0]].core(), 0, func() {
			bytes := make([]int, len(at))
			for i, n := range at {
				if o := conns[n].core().Outbox(); o != nil {
					bytes[i] = o.Bytes
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

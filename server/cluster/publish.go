package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"carillon/codec"
	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// What may wait for NATS, or for its acknowledgement; more is refused as overload. A large message leaves room for
// small ones: three times its size, or a quarter of all.
const (
	maxWaiting      = 100_000
	maxWaitingBytes = 64 << 20
	costOfWaiting   = 256 // besides the payload
)

// outgoing is a message on its way to NATS.
type outgoing struct {
	subject string
	data    []byte
	key     string  // of a message for a stream
	stream  *stream // nil for a transient message
	epoch   string  // of the stream

	done func(topic.Position, error)
	size int       // set when it is put into the outbox
	held time.Time // since when it has waited for the stream to be beyond doubt; zero if it has not
}

// outbox is the queue of the goroutine that writes to NATS, so that no other goroutine waits for a socket.
type outbox struct {
	wake chan struct{} // immutable

	mu      sync.Mutex
	list    []*outgoing      // guarded by mu
	waiting int              // guarded by mu: in the list, or not acknowledged
	bytes   int              // guarded by mu
	closed  bool             // guarded by mu
	failing map[*stream]bool // guarded by mu: what waits for these has waited in vain
	count   uint64           // of transient messages; owned by the writer
}

func (q *outbox) put(o *outgoing) error {
	o.size = len(o.data) + len(o.subject) + len(o.key) + costOfWaiting
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return topic.ErrNoCluster
	case q.waiting >= maxWaiting || q.bytes+o.size+min(3*o.size, maxWaitingBytes/4) > maxWaitingBytes:
		return topic.ErrOverloaded
	}
	q.waiting++
	q.bytes += o.size
	if q.list = append(q.list, o); len(q.list) == 1 {
		wake(q.wake)
	}
	return nil
}

func (q *outbox) take() []*outgoing {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list
	q.list = nil
	return list
}

func (q *outbox) release(o *outgoing) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting--
	q.bytes -= o.size
}

// drainTime is how long the end waits for acknowledgements.
const drainTime = 2 * time.Second

// drained waits until everything is acknowledged.
func (q *outbox) drained(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for ctx.Err() == nil {
		q.mu.Lock()
		n := q.waiting
		q.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// nudge has the writer look at what waits for a stream.
func (q *outbox) nudge() { wake(q.wake) }

// fail has the writer give up what waits for a stream: it could not be looked at.
func (q *outbox) fail(st *stream) {
	q.mu.Lock()
	if q.failing == nil {
		q.failing = map[*stream]bool{}
	}
	q.failing[st] = true
	q.mu.Unlock()
	wake(q.wake)
}

// failed returns the streams of fail since the last call.
func (q *outbox) failed() map[*stream]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.failing
	q.failing = nil
	return list
}

func (q *outbox) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	wake(q.wake)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// PublishTransient implements [topic.Broker].
func (b *Broker) PublishTransient(p topic.Publication, incarnation, seq uint64, done func(error)) {
	e := envelope{from: b.number, incarnation: incarnation, seq: seq, at: time.Now().UnixMilli(), format: byte(p.Format)}
	b.put(&outgoing{subject: b.names.passing(p.Topic), data: e.seal(p.Payload), done: func(_ topic.Position, err error) { done(err) }})
}

// Broadcast implements [topic.Broker].
func (b *Broker) Broadcast(path string, op codec.Opcode, payload []byte, seq uint64, done func(error)) {
	e := envelope{from: b.number, seq: seq, at: time.Now().UnixMilli(), format: byte(op)}
	b.put(&outgoing{subject: b.names.broadcast(path), data: e.seal(payload), done: func(_ topic.Position, err error) { done(err) }})
}

// PublishPersistent implements [topic.Broker].
func (b *Broker) PublishPersistent(p topic.Publication, rule int, done func(topic.Position, error)) {
	st := b.streamOf(rule)
	if st == nil {
		go done(topic.Position{}, errNotStarted)
		return
	}
	if err := st.fullErr(); err != nil {
		b.stats.refused.Add(1)
		go done(topic.Position{}, err)
		return
	}
	epoch := st.epochNow()
	o := &outgoing{subject: b.names.store(st.id, epoch, p.Topic), data: sealKept(&p), stream: st, epoch: epoch, done: done}
	if p.Key != "" {
		o.key = messageID(epoch, b.keySpace(&p), p.Topic, p.Key)
	}
	b.put(o)
}

// keySpace is the publisher that a message's key belongs to. Nodes of older versions know of none, and a client that
// has to publish a message again may have come from one of them: so until the last of them is gone, and JetStream has
// forgotten the keys that it wrote, all keys are the application's, as they are there.
func (b *Broker) keySpace(p *topic.Publication) string {
	if p.Publisher != "" && b.peers.sharesKeys(time.Now()) {
		return ""
	}
	return p.Publisher
}

// messageID is what JetStream knows a message with a key by. A header loses white space at its end, and line breaks
// become spaces in it: a key that would not get there as it is, is escaped, and the first word says so. Other keys of
// the application stay as they are, so that nodes of older versions say the same.
func messageID(epoch, publisher, topic, key string) string {
	if publisher != "" {
		sum := sha256.Sum256([]byte(publisher)) // which may be long
		return epoch + "~" + hex.EncodeToString(sum[:16]) + " " + topic + " " + url.QueryEscape(key)
	}
	if strings.ContainsAny(key, "\r\n") || strings.TrimRight(key, " \t") != key {
		return epoch + "%" + topic + " " + url.QueryEscape(key)
	}
	return epoch + " " + topic + " " + key // only the key may have spaces
}

func (b *Broker) put(o *outgoing) {
	err := errNotStarted
	if b.ready.Load() {
		err = b.out.put(o)
	}
	if err != nil {
		b.stats.refused.Add(1)
		go o.done(topic.Position{}, err) // the caller may hold a lock that done needs
	}
}

func (b *Broker) finish(o *outgoing, p topic.Position, err error) {
	b.out.release(o)
	switch {
	case err == nil:
		b.stats.published.Add(1)
	case errors.Is(err, topic.ErrNoCluster) || errors.Is(err, topic.ErrOverloaded) || errors.Is(err, topic.ErrTooLarge):
		b.stats.refused.Add(1)
	default:
		b.stats.unknown.Add(1)
	}
	o.done(p, err)
}

// writer hands everything to the NATS client in the order in which it was published.
func (b *Broker) writer() {
	for {
		select {
		case <-b.out.wake:
		case <-b.quit:
			for _, st := range b.byRule {
				b.giveUp(st, topic.ErrNoCluster)
			}
			for _, o := range b.out.take() {
				b.finish(o, topic.Position{}, topic.ErrNoCluster)
			}
			return
		}
		b.release()
		list := b.out.take()
		connection := b.nc.Stats().Reconnects
		var sent []*outgoing
		for _, o := range list {
			if o.stream != nil {
				b.hold(o)
				continue
			}
			b.out.count++
			setCount(o.data, b.out.count)
			if err := b.nc.Publish(o.subject, o.data); err != nil {
				b.finish(o, topic.Position{}, b.publishError(err))
				continue
			}
			o.data = nil // the client has copied it
			sent = append(sent, o)
		}
		b.commits.add(sent, connection)
	}
}

// hold publishes a message for a stream, or has it wait while the stream is in doubt: what is published then may be
// lost by the epoch that begins.
func (b *Broker) hold(o *outgoing) {
	st := o.stream
	switch doubtful := len(st.held) > 0 || st.isDoubtful(); {
	case doubtful && b.away.Load() != nil:
		b.finish(o, topic.Position{}, b.publishError(nats.ErrDisconnected))
		return
	case doubtful:
		o.held = time.Now()
		st.held = append(st.held, o)
		return
	}
	b.store(o)
}

// release publishes what has waited for streams that are not in doubt any more.
func (b *Broker) release() {
	failed := b.out.failed()
	for _, st := range b.byRule {
		switch {
		case len(st.held) == 0:
		case !st.isDoubtful():
			list, epoch := st.held, st.epochNow()
			st.held = nil
			for _, o := range list {
				if o.epoch != epoch {
					b.finish(o, topic.Position{}, fmt.Errorf("%w: a new epoch has begun", topic.ErrNoCluster))
					continue
				}
				b.store(o)
			}
		case failed[st] || time.Since(st.held[0].held) > b.o.Timeout:
			b.giveUp(st, fmt.Errorf("%w: %w", topic.ErrNoCluster, errUnsettled))
		}
	}
}

// giveUp refuses what waits for a stream.
func (b *Broker) giveUp(st *stream, err error) {
	list := st.held
	st.held = nil
	for _, o := range list {
		b.finish(o, topic.Position{}, err)
	}
}

// publishError says what an error of the NATS client means for the message.
func (b *Broker) publishError(err error) error {
	switch {
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionReconnecting),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionDraining):
		return fmt.Errorf("%w: not connected to NATS", topic.ErrNoCluster)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w, or than NATS accepts: max_payload is %d bytes", topic.ErrTooLarge, b.nc.MaxPayload())
	}
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// commits are messages that have been written. One PING and PONG says of all of them that NATS has them.
type commits struct {
	wake chan struct{} // immutable

	mu   sync.Mutex
	list []commit // guarded by mu
}

type commit struct {
	sent       []*outgoing
	connection uint64 // over which they were sent
}

func (c *commits) add(sent []*outgoing, connection uint64) {
	if len(sent) == 0 {
		return
	}
	c.mu.Lock()
	c.list = append(c.list, commit{sent, connection})
	c.mu.Unlock()
	wake(c.wake)
}

func (c *commits) take() []commit {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.list
	c.list = nil
	return list
}

func (b *Broker) committer() {
	for {
		select {
		case <-b.commits.wake:
		case <-b.quit:
			b.commit(errUnknown)
			return
		}
		list := b.commits.take()
		err := b.nc.FlushTimeout(b.o.Timeout)
		connection := b.nc.Stats().Reconnects
		for _, c := range list {
			err := err
			if err != nil {
				err = fmt.Errorf("%w: %w", errUnknown, err)
			} else if c.connection != connection {
				err = fmt.Errorf("%w: the connection was lost", errUnknown)
			}
			for _, o := range c.sent {
				b.finish(o, topic.Position{}, err)
			}
		}
	}
}

func (b *Broker) commit(err error) {
	for _, c := range b.commits.take() {
		for _, o := range c.sent {
			b.finish(o, topic.Position{}, err)
		}
	}
}

// apiError is how JetStream refuses.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string { return "JetStream: " + e.Description }

// store publishes a message for a stream.
func (b *Broker) store(o *outgoing) {
	m := &nats.Msg{Subject: o.subject, Data: o.data}
	o.data = nil
	if o.key != "" {
		m.Header = nats.Header{"Nats-Msg-Id": {o.key}}
	}
	var token string
	given, timeout := o.stream.given(o.epoch), b.o.Timeout
	if !o.held.IsZero() {
		timeout = max(timeout-time.Since(o.held), timeout/2)
	}
	m.Reply, token = b.calls.open(timeout, func(ack *nats.Msg, err error) bool {
		p, err := o.stream.acknowledged(ack, given, err)
		p.Epoch = o.epoch
		switch {
		case errors.Is(err, errTwice):
			o.stream.condemn(o.epoch, fmt.Sprintf("a message got sequence %d after %d had been assigned", p.Offset, given))
			b.suspect(o.stream, "it assigns sequences again")
		case errors.Is(err, topic.ErrStoreFull):
			b.filled(o.stream, err)
		case err == nil:
			b.see(o.stream, mark{o.epoch, p.Offset, timeOf(b.clock()), true})
		}
		b.finish(o, p, err)
		return false
	})
	if err := b.nc.PublishMsg(m); err != nil && b.calls.close(token) {
		b.finish(o, topic.Position{}, b.publishError(err))
	}
}

// errTwice means that a message was stored with a sequence that had been given to another one. The epoch that begins
// for that does not have the message.
var errTwice = fmt.Errorf("%w: the stream has lost messages", errUnknown)

// acknowledged reads JetStream's answer to a message. The sequence that was given out before it was published is given.
func (st *stream) acknowledged(ack *nats.Msg, given uint64, err error) (p topic.Position, _ error) {
	if err != nil {
		if errors.Is(err, errTimeout) {
			st.late.Store(time.Now().UnixNano())
			return p, fmt.Errorf("%w: no response from JetStream", errUnknown)
		}
		return p, err
	}
	if isStatus(ack, "503") {
		return p, fmt.Errorf("%w: no JetStream server handles the topic", topic.ErrNoCluster)
	}
	var answer struct {
		Seq       uint64    `json:"seq"`
		Duplicate bool      `json:"duplicate"` // it is that of the first one with the same key
		Error     *apiError `json:"error"`
	}
	if err := json.Unmarshal(ack.Data, &answer); err != nil {
		return p, fmt.Errorf("%w: response from JetStream: %w", errUnknown, err)
	}
	switch {
	case answer.Error != nil && answer.Error.ErrCode == 10158, answer.Error == nil && answer.Seq == 0:
		// One with its key came before, and is not stored yet. 2.10 says so by a success without a sequence.
		return p, fmt.Errorf("%w: another message with its key is in progress", errUnknown)
	case answer.Error != nil && answer.Error.isFull():
		st.late.Store(0)
		return p, fmt.Errorf("%w: %w", topic.ErrStoreFull, answer.Error)
	case answer.Error != nil:
		return p, fmt.Errorf("%w: %w", topic.ErrNoCluster, answer.Error)
	}
	st.late.Store(0)
	p.Offset = answer.Seq
	if !answer.Duplicate && answer.Seq <= given {
		return p, errTwice
	}
	return p, nil
}

func isStatus(m *nats.Msg, code string) bool {
	return len(m.Data) == 0 && m.Header != nil && m.Header.Get("Status") == code
}

package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"carillon/codec"
	"carillon/server"
)

// What the page and the chat say to each other is JSON, one object a message:
//
//	{"join":{"name":"Ada","session":"4f1c","since":{"offset":17,"epoch":"k3f9"}}}
//	{"say":{"ref":"m1","text":"hello"}}
//
//	{"welcome":{"people":["Ada"],"name":"Ada","text":"Welcome, Ada.","idle":300,"at":{...}}}
//	{"refused":{"code":"too_fast","text":"Slow down: ...","ref":"m1"}}
//	{"topic":"demo.chat","offset":18,"time":1795000000000,"data":{"kind":"say","name":"Ada","text":"hello","ref":"m1"}}
//
// The last is the server's own form of a message of a topic; so is "subscribed", which comes before the
// first. data.kind is say, join or leave. The ref is the page's own name for what it says, so that it
// knows it again, and may say it again after the connection broke, without its being heard twice.

const chatTopic = "demo.chat"

// The rules of the house.
const (
	maxPeople    = 200
	maxName      = 32       // characters
	maxNameBytes = 1 << 10  // and what is dropped from it
	maxText      = 2000     // characters
	maxPayload   = 16 << 10 // bytes of JSON, which are parsed on an event loop
	maxTokens    = 64       // in it, see isSimple; a join has 12
	history      = 50       // messages that a new guest sees
	burst        = 5        // messages at once
	maxStrikes   = 50       // messages in a row that are refused: no person sends so many
	maxWaiting   = 256      // connections that have not joined
	joinPatience = 10 * time.Second

	// For all guests together, in messages a second and at once: each goes to all people.
	sayRate, sayBurst           = 20, 100
	announceRate, announceBurst = 20, 20
)

const (
	closeIdle     codec.CloseCode = 4000 // nothing was said for too long
	closeReplaced codec.CloseCode = 4001 // the same page has come back on another connection
)

// room is the chat. Its handlers run on several loops.
type room struct {
	server *atomic.Pointer[server.Server]
	idle   time.Duration

	// mu is shared by the loops: what is done under it must not take longer with more guests. Guards what follows.
	mu     sync.Mutex
	guests guests
	news   announcements
	talk   bucket // of what all guests say
}

func newRoom(s *atomic.Pointer[server.Server], idle time.Duration) *room {
	return &room{server: s, idle: idle, guests: newGuests(), news: newAnnouncements()}
}

func (r *room) handler() server.Handler {
	return server.Handler{Open: r.open, Message: r.message, Close: r.closed}
}

type joining struct {
	Name    string           `json:"name"`
	Session string           `json:"session"`
	Since   *server.Position `json:"since"`
}

type saying struct {
	Ref  string `json:"ref"`
	Text string `json:"text"`
}

type welcome struct {
	Name   string          `json:"name"`
	Text   string          `json:"text"`
	Idle   int             `json:"idle"` // seconds
	People nameList        `json:"-"`    // see encode
	At     server.Position `json:"at"`   // joins and leaves behind it are not in people yet
}

// encode returns the message. The names in it are encoded already, as each is for many welcomes.
func (w welcome) encode() []byte {
	b := w.People.appendJSON([]byte(`{"welcome":{"people":`))
	b = append(b, ',')
	b = append(b, encode(w)[1:]...)
	return append(b, '}')
}

type refusal struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Ref  string `json:"ref,omitempty"`
}

func (e *refusal) Error() string { return e.Text }

func refuse(code, ref, format string, args ...any) error {
	return &refusal{Code: code, Ref: ref, Text: fmt.Sprintf(format, args...)}
}

// event is what all guests get.
type event struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Text string `json:"text,omitempty"`
	Ref  string `json:"ref,omitempty"`
	Why  string `json:"why,omitempty"`
}

func (r *room) open(c *server.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := r.guests.add(c, time.Now()); oldest != nil {
		_ = oldest.conn.Close(codec.CloseTryAgainLater, "too many connections have not joined")
	}
}

func (r *room) message(c *server.Conn, op codec.Opcode, payload []byte) {
	err := r.hear(c, op, payload)
	if err == nil {
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		no = &refusal{Code: "failed", Text: "The server could not accept this: " + err.Error() + "."}
	}
	send(c, "refused", no)
	r.strike(c)
}

// strike counts a message that was refused.
func (r *room) strike(c *server.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests.byConn[c]
	if g == nil {
		return
	}
	if g.strikes++; g.strikes >= maxStrikes {
		_ = c.Close(codec.ClosePolicyViolation, "too many refused messages")
	}
}

func (r *room) hear(c *server.Conn, op codec.Opcode, payload []byte) error {
	if len(payload) > maxPayload {
		return refuse("too_long", "", "A message has at most %d characters.", maxText)
	}
	var said struct {
		Join *joining
		Say  *saying
	}
	if op != server.Text || !isSimple(payload) || json.Unmarshal(payload, &said) != nil || (said.Join == nil) == (said.Say == nil) {
		return refuse("bad_request", "", "Expected a JSON object with join or say.")
	}
	if said.Join != nil {
		return r.join(c, said.Join)
	}
	return r.say(c, said.Say)
}

// isSimple reports whether JSON has at most maxTokens brackets, colons and commas outside its strings. Thousands of
// them take long to parse.
func isSimple(payload []byte) bool {
	tokens, quoted := 0, false
	for i := 0; i < len(payload) && tokens <= maxTokens; i++ {
		switch payload[i] {
		case '"':
			quoted = !quoted
		case '\\':
			i++ // what is escaped; outside of strings it is no JSON
		case '{', '[', ':', ',':
			if !quoted {
				tokens++
			}
		}
	}
	return tokens <= maxTokens
}

func (r *room) join(c *server.Conn, j *joining) error {
	name, err := cleanName(j.Name)
	if err != nil {
		return err
	}
	if j.Session == "" || len(j.Session) > 64 {
		return refuse("bad_request", "", "Expected a session of 1 to 64 bytes.")
	}
	w, err := r.admit(c, name, j.Session)
	if err != nil {
		return err
	}
	_ = c.Send(server.Text, w.encode()) // see send
	from := server.Start{Since: j.Since}
	if from.Since == nil {
		from.Last = history
	}
	return c.Subscribe(chatTopic, server.SubscribeOptions{Start: from, Envelope: true, Done: func(_ server.Subscribed, err error) {
		if err != nil {
			_ = c.Close(codec.CloseTryAgainLater, err.Error())
		}
	}})
}

// admit gives a connection a name and its place among the people. A connection that the same page had before, and that
// may not know yet that it is lost, makes room for it.
func (r *room) admit(c *server.Conn, name, session string) (w welcome, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests.byConn[c]
	if g == nil || g.name != "" {
		return w, refuse("bad_request", "", "You have already joined.")
	}
	before := ""
	if old := r.guests.bySession[session]; old != nil {
		before = old.name
		r.guests.remove(old)
		_ = old.conn.Close(closeReplaced, "you joined on another connection")
	} else if len(r.guests.byKey) >= maxPeople {
		return w, refuse("full", "", "The room is full: %d people are here.", maxPeople)
	}
	free, key := r.guests.freeName(name)
	now := time.Now()
	if free != before {
		if before != "" {
			_ = r.announce(event{Kind: "leave", Name: before, Why: "left"}, now)
		}
		if err := r.announce(event{Kind: "join", Name: free}, now); err != nil {
			r.news.add(event{Kind: "leave", Name: free})
			return w, err
		}
	}
	r.guests.join(g, free, key, session, now)
	w = welcome{Name: free, Text: "Welcome, " + free + ".", Idle: int(r.idle.Seconds())}
	w.People = slices.Clone(r.news.people).with(free) // the join may have to wait
	if free != name {
		w.Text += " There is a " + name + " already."
	}
	if topic, ok := r.server.Load().Topic(chatTopic); ok {
		w.At = topic.Position
	}
	return w, nil
}

// announce tells all guests that one has come or gone. The caller holds mu, so that this is heard in the order in
// which it is so.
func (r *room) announce(e event, now time.Time) error {
	r.news.add(e)
	return r.flush(now)
}

func (r *room) flush(now time.Time) error {
	return r.news.flush(now, func(e event) error { return r.publish(e, "") })
}

func (r *room) say(c *server.Conn, s *saying) error {
	if len(s.Ref) > 32 {
		return refuse("bad_request", "", "Expected a ref of at most 32 bytes.")
	}
	n := utf8.RuneCountInString(s.Text)
	text := ""
	if n <= 2*maxText { // what is much too long is not worth the work
		text = strings.TrimSpace(clean(s.Text, "\n\t"))
		n = utf8.RuneCountInString(text)
	}
	switch {
	case n == 0:
		return refuse("empty", s.Ref, "This message is empty.")
	case n > maxText:
		return refuse("too_long", s.Ref, "A message has at most %d characters; this one has %d.", maxText, n)
	}
	name, key, err := r.mayTalk(c, s.Ref)
	if err != nil {
		return err
	}
	return r.publish(event{Kind: "say", Name: name, Text: text, Ref: s.Ref}, key)
}

// mayTalk looks at the house rules, and returns the speaker's name and the key of what is said.
func (r *room) mayTalk(c *server.Conn, ref string) (name, key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests.byConn[c]
	if g == nil || g.name == "" {
		return "", "", refuse("bad_request", ref, "Join first.")
	}
	now := time.Now()
	r.guests.noteHeard(g, now)
	if !g.rate.take(now, 1, burst) {
		return "", "", refuse("too_fast", ref, "Slow down: at most %d messages at once, then one per second.", burst)
	}
	if !r.talk.take(now, sayRate, sayBurst) {
		return "", "", refuse("busy", ref, "Too many people are talking at once: try again in a moment.")
	}
	g.strikes = 0
	if ref != "" {
		key = g.session + " " + ref
	}
	return g.name, key, nil
}

// sweep shows out those who are silent, and publishes joins and leaves that had to wait.
func (r *room) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for g := first(&r.guests.waiting); g != nil && now.Sub(g.heard) > joinPatience; g = first(&r.guests.waiting) {
		r.guests.remove(g)
		_ = g.conn.Close(codec.ClosePolicyViolation, "no name was given in time")
	}
	for g := first(&r.guests.silence); g != nil && now.Sub(g.heard) >= r.idle; g = first(&r.guests.silence) {
		g.why = "idle"
		r.guests.silence.Remove(g.place)
		_ = g.conn.Close(closeIdle, "you were silent for "+words(r.idle))
	}
	_ = r.flush(now)
}

// words writes a time as one says it.
func words(d time.Duration) string {
	unit, one := "second", time.Second
	if d >= time.Minute {
		unit, one = "minute", time.Minute
	}
	n := (d + one/2) / one
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}

func (r *room) closed(c *server.Conn, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests.byConn[c]
	if g == nil {
		return
	}
	r.guests.remove(g)
	if g.name == "" {
		return
	}
	why := g.why
	if gone, ok := errors.AsType[*server.CloseError](err); why == "" && ok {
		why = "lost"
		if gone.Remote && gone.Code != codec.CloseAbnormal {
			why = "left"
		}
	}
	_ = r.announce(event{Kind: "leave", Name: g.name, Why: why}, time.Now())
}

// publisher is the namespace of the chat's idempotency keys, so that guests do not use up the application's.
const publisher = "demo.chat"

func (r *room) publish(e event, key string) error {
	s := r.server.Load()
	if s == nil {
		return errors.New("the demo has no server")
	}
	_, err := s.Publish(server.Publication{Topic: chatTopic, Format: server.FormatJSON, Payload: encode(e), Key: key, Publisher: publisher})
	return err
}

func send(c *server.Conn, what string, v any) {
	// If it fails, the connection is closed, or the server has too much to do for courtesies.
	_ = c.Send(server.Text, encode(map[string]any{what: v}))
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("demo: encode: " + err.Error())
	}
	return b
}

// cleanName returns a name as it is shown: without what cannot be seen, and with single spaces.
func cleanName(name string) (string, error) {
	if len(name) <= maxNameBytes {
		name = strings.Join(strings.Fields(clean(name, " \t")), " ")
	}
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName {
		return "", refuse("bad_name", "", "A name has 1 to %d characters.", maxName)
	}
	return strings.Clone(name), nil // not a part of something longer
}

// clean drops characters that cannot be seen but change how others are shown, such as those that turn the
// direction of writing, all but the ones to keep, which are ASCII. Joiners stay: scripts and emoji need them.
func clean(text, keep string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c <= unicode.MaxASCII && (c >= ' ' && c != '\x7f' || strings.ContainsRune(keep, c)):
			return c
		case c == '\u200c', c == '\u200d':
			return c
		case unicode.IsControl(c), unicode.Is(unicode.Cf, c):
			return -1
		}
		return c
	}, text)
}

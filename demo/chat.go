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
//	{"welcome":{"name":"Ada","text":"Welcome, Ada.","idle":300,"people":["Ada"],"at":{...}}}
//	{"refused":{"code":"too_fast","text":"Not so fast: ...","ref":"m1"}}
//	{"topic":"demo.chat","offset":18,"time":1795000000000,"data":{"kind":"say","name":"Ada","text":"hello","ref":"m1"}}
//
// The last is the server's own form of a message of a topic; so is "subscribed", which comes before the
// first. data.kind is say, join or leave. The ref is the page's own name for what it says, so that it
// knows it again, and may say it again after the connection broke, without its being heard twice.

const chatTopic = "demo.chat"

// The rules of the house.
const (
	mostPeople   = 200
	mostName     = 32   // characters
	mostText     = 2000 // characters
	mostPayload  = 32 << 10
	history      = 50 // messages that somebody new gets to see
	burst        = 5  // messages at once
	mostStrikes  = 50 // messages in a row that came too fast, and then it is no person
	joinPatience = 10 * time.Second
)

const (
	closeIdle     codec.CloseCode = 4000 // nothing was said for too long
	closeReplaced codec.CloseCode = 4001 // the same page has come back on another connection
)

// room is the chat. Its handlers run on several loops.
type room struct {
	server *atomic.Pointer[server.Server]
	idle   time.Duration

	mu     sync.Mutex
	guests map[*server.Conn]*guest // guarded by mu, as are the guests
}

// guest is somebody who has come through the door, and has said a name or not.
type guest struct {
	name    string // "" before joining
	session string
	heard   time.Time // when something was said last
	why     string    // of leaving, if the room knows it
	tokens  float64   // messages that may be said at once
	filled  time.Time
	strikes int
}

func newRoom(s *atomic.Pointer[server.Server], idle time.Duration) *room {
	return &room{server: s, idle: idle, guests: map[*server.Conn]*guest{}}
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
	People []string        `json:"people"`
	At     server.Position `json:"at"` // joins and leaves behind it are not in people yet
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

// event is what everybody gets.
type event struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Text string `json:"text,omitempty"`
	Ref  string `json:"ref,omitempty"`
	Why  string `json:"why,omitempty"`
}

func (r *room) open(c *server.Conn) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guests[c] = &guest{heard: now, filled: now, tokens: burst}
}

func (r *room) message(c *server.Conn, op codec.Opcode, payload []byte) {
	err := r.hear(c, op, payload)
	if err == nil {
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		no = &refusal{Code: "failed", Text: "The server could not take this: " + err.Error() + "."}
	}
	send(c, "refused", no)
}

func (r *room) hear(c *server.Conn, op codec.Opcode, payload []byte) error {
	if len(payload) > mostPayload {
		return refuse("too_long", "", "A message has at most %d characters.", mostText)
	}
	var said struct {
		Join *joining
		Say  *saying
	}
	if op != server.Text || json.Unmarshal(payload, &said) != nil || (said.Join == nil) == (said.Say == nil) {
		return refuse("bad_request", "", "Expected a JSON object with join or say.")
	}
	if said.Join != nil {
		return r.join(c, said.Join)
	}
	return r.say(c, said.Say)
}

func (r *room) join(c *server.Conn, j *joining) error {
	name, err := cleanName(j.Name)
	if err != nil {
		return err
	}
	if j.Session == "" || len(j.Session) > 64 {
		return refuse("bad_request", "", "Expected a session of 1 to 64 bytes.")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[c]
	if g == nil || g.name != "" {
		return refuse("bad_request", "", "You have joined already.")
	}
	before := r.replace(j.Session)
	if before == "" && len(r.people()) >= mostPeople {
		return refuse("full", "", "The room is full: %d people are here.", mostPeople)
	}
	free := r.freeName(name)
	if free != before {
		if before != "" {
			_ = r.publish(event{Kind: "leave", Name: before, Why: "left"}, "")
		}
		if err := r.publish(event{Kind: "join", Name: free}, ""); err != nil {
			return err
		}
	}
	g.name, g.session, g.heard = free, j.Session, time.Now()
	w := welcome{Name: g.name, Text: "Welcome, " + g.name + ".", Idle: int(r.idle.Seconds()), People: r.people()}
	if g.name != name {
		w.Text += " There is a " + name + " already."
	}
	if topic, ok := r.server.Load().Topic(chatTopic); ok {
		w.At = topic.Position
	}
	send(c, "welcome", w)
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

// replace takes the place of a connection that the same page had before, which may not know yet that it is
// lost, and returns the name that it had.
func (r *room) replace(session string) string {
	for c, g := range r.guests {
		if g.name != "" && g.session == session {
			delete(r.guests, c)
			_ = c.Close(closeReplaced, "you are here on another connection")
			return g.name
		}
	}
	return ""
}

func (r *room) people() []string {
	list := []string{}
	for _, g := range r.guests {
		if g.name != "" {
			list = append(list, g.name)
		}
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return list
}

// freeName numbers those who have the same name.
func (r *room) freeName(name string) string {
	taken := map[string]bool{}
	for _, other := range r.people() {
		taken[strings.ToLower(other)] = true
	}
	free := name
	for n := 2; taken[strings.ToLower(free)]; n++ {
		number := fmt.Sprintf(" %d", n)
		runes := []rune(name)
		free = strings.TrimSpace(string(runes[:min(len(runes), mostName-len(number))])) + number
	}
	return free
}

func (r *room) say(c *server.Conn, s *saying) error {
	if len(s.Ref) > 32 {
		return refuse("bad_request", "", "Expected a ref of at most 32 bytes.")
	}
	text := strings.TrimSpace(clean(s.Text, "\n\t"))
	switch {
	case text == "":
		return refuse("empty", s.Ref, "There is nothing in this message.")
	case utf8.RuneCountInString(text) > mostText:
		return refuse("too_long", s.Ref, "A message has at most %d characters; this one has %d.", mostText, utf8.RuneCountInString(text))
	}
	name, key, err := r.mayTalk(c, s.Ref)
	if err != nil {
		return err
	}
	return r.publish(event{Kind: "say", Name: name, Text: text, Ref: s.Ref}, key)
}

// mayTalk looks at the house rules, and returns the name of who talks and the key of what is said.
func (r *room) mayTalk(c *server.Conn, ref string) (name, key string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[c]
	if g == nil || g.name == "" {
		return "", "", refuse("bad_request", ref, "Say who you are first.")
	}
	now := time.Now()
	g.heard = now
	g.tokens = min(burst, g.tokens+now.Sub(g.filled).Seconds())
	g.filled = now
	if g.tokens < 1 {
		if g.strikes++; g.strikes >= mostStrikes {
			_ = c.Close(codec.ClosePolicyViolation, "far too many messages")
		}
		return "", "", refuse("too_fast", ref, "Not so fast: at most %d messages at once, then one a second.", burst)
	}
	g.tokens--
	g.strikes = 0
	if ref != "" {
		key = g.session + " " + ref
	}
	return g.name, key, nil
}

// sweep shows out those who are silent.
func (r *room) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, g := range r.guests {
		switch {
		case g.why != "":
		case g.name == "" && now.Sub(g.heard) > joinPatience:
			g.why = "silent"
			_ = c.Close(codec.ClosePolicyViolation, "nobody said a name")
		case g.name != "" && now.Sub(g.heard) >= r.idle:
			g.why = "idle"
			_ = c.Close(closeIdle, "you said nothing for "+words(r.idle))
		}
	}
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
	g := r.guests[c]
	if g == nil {
		return
	}
	delete(r.guests, c)
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
	// If the server is overloaded, the name stays on some lists until these people come back.
	_ = r.publish(event{Kind: "leave", Name: g.name, Why: why}, "")
}

// publish is called under mu for who comes and goes, so that this is heard in the order in which it is so.
func (r *room) publish(e event, key string) error {
	s := r.server.Load()
	if s == nil {
		return errors.New("the demo has no server")
	}
	_, err := s.Publish(server.Publication{Topic: chatTopic, Format: server.FormatJSON, Payload: encode(e), Key: key})
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
	name = strings.Join(strings.Fields(clean(name, " \t")), " ")
	if n := utf8.RuneCountInString(name); n < 1 || n > mostName {
		return "", refuse("bad_name", "", "A name has 1 to %d characters.", mostName)
	}
	return name, nil
}

// clean drops characters that cannot be seen but change how others are shown, such as those that turn the
// direction of writing, all but the ones to keep. Joiners stay: scripts and emoji need them.
func clean(text, keep string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case strings.ContainsRune(keep, c), c == '\u200c', c == '\u200d':
			return c
		case unicode.IsControl(c), unicode.Is(unicode.Cf, c):
			return -1
		}
		return c
	}, text)
}

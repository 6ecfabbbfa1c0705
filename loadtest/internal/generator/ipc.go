package generator

import (
	"net/netip"
	"time"

	"carillon/loadtest/internal/wsclient"
)

// The parent and the processes that it starts talk in lines of JSON: orders go down, reports come up.

// Command tells a process what to do next.
type Command struct {
	Name string   `json:"do"`
	Spec *Spec    `json:"spec,omitempty"`
	At   int64    `json:"at,omitempty"`   // when, on the monotonic clock
	Sent []uint32 `json:"sent,omitempty"` // drain: by sender, over all processes
}

// The orders, in the order in which they come.
const (
	CmdPrepare = "prepare" // take the spec
	CmdConnect = "connect" // open the connections
	CmdStart   = "start"   // at a given moment: send, or hold, or be cut off
	CmdStop    = "stop"    // end the window before its time
	CmdDrain   = "drain"   // wait for what is under way
	CmdFinish  = "finish"  // close the connections and end
)

// Spec is one process's part in a run. Of all connections it has those whose number is Index modulo
// Count. Which of the targets a connection goes to is what spread says.
type Spec struct {
	Command string `json:"command"`
	Index   int    `json:"index"`
	Count   int    `json:"count"`
	Run     uint64 `json:"run"`

	Targets     []Target      `json:"targets"`
	Sources     SourceRange   `json:"sources"`
	Connections int           `json:"connections"` // of all processes
	Ramp        time.Duration `json:"ramp"`

	Senders  int           `json:"senders"` // of all processes
	Size     int           `json:"size"`
	Text     bool          `json:"text,omitempty"`
	Rate     float64       `json:"rate"` // of all senders
	Depth    int           `json:"depth"`
	Duration time.Duration `json:"duration"`

	PublishURL    string   `json:"publishURL,omitempty"`
	PublishHeader []string `json:"publishHeader,omitempty"`

	CutBy    string        `json:"cutBy,omitempty"`
	Backoff  time.Duration `json:"backOff,omitempty"`
	MaxDelay time.Duration `json:"mostDelay,omitempty"`
}

// Target is one URL under test, as the processes of the generator need it.
type Target struct {
	URL       string             `json:"url"` // for people: see shownURL
	Address   netip.AddrPort     `json:"address"`
	Handshake wsclient.Handshake `json:"handshake"`
}

// MaxSources bounds a range of source addresses.
const MaxSources = 65_536

// SourceRange is a range of addresses to connect from. The zero value leaves the choice to the system.
type SourceRange struct {
	First, Last netip.Addr
}

// Count is how many addresses the range has, up to one more than are allowed.
func (r SourceRange) Count() int {
	if !r.First.IsValid() {
		return 0
	}
	n := 1
	for a := r.First; a != r.Last && n <= MaxSources; a = a.Next() {
		n++
	}
	return n
}

// All lists the addresses.
func (r SourceRange) All() []netip.Addr {
	list := make([]netip.Addr, 0, r.Count())
	for a := r.First; len(list) < cap(list); a = a.Next() {
		list = append(list, a)
	}
	return list
}

// mine is how many of n numbered things fall to this process.
func (s *Spec) mine(n int) int { return (n - s.Index + s.Count - 1) / s.Count }

// Report is what a process has to say. Counters are totals since its start; histograms hold what was
// new since its last workerReport.
type Report struct {
	Event string `json:"say"`
	Counters

	FailedBy          map[string]int `json:"failedBy,omitempty"`
	LostBy            map[string]int `json:"lostBy,omitempty"`
	PublishFailedBy   map[string]int `json:"publishBy,omitempty"` // failed requests to publish
	ReconnectFailedBy map[string]int `json:"againBy,omitempty"`   // storm: failed attempts
	Handshake         []byte         `json:"handshake,omitempty"`
	Latency           []byte         `json:"latency,omitempty"`
	SentBy            []uint32       `json:"sentBy,omitempty"`   // by own sender
	Arrivals          [][]byte       `json:"arrivals,omitempty"` // fanout: by sender
	NoEcho            []uint32       `json:"deaf,omitempty"`     // senders that get no message of their own back
	Back              []int64        `json:"back,omitempty"`     // storm: when each connection was back
	Shares            []Share        `json:"shares,omitempty"`   // by target
	Error             string         `json:"error,omitempty"`
}

// Share counts the connections to one of several targets.
type Share struct {
	Opened int `json:"opened"`
	Lost   int `json:"lost"`
}

// What a report says.
const (
	EventReady     = "ready"
	eventProgress  = "progress"
	EventConnected = "connected" // every connection is open or has failed
	EventEnded     = "ended"     // the window is over
	EventDrained   = "drained"   // with all that is only known at the end
	EventFinished  = "finished"
)

type Counters struct {
	Open    int `json:"open"`
	Opened  int `json:"opened"`
	Failed  int `json:"failed"`
	Lost    int `json:"lost"`
	Members int `json:"members"` // were open when the window began

	Sent       int64 `json:"sent"`
	Unsent     int64 `json:"unsent"`
	Received   int64 `json:"received"`
	Expected   int64 `json:"expected"`
	Duplicated int64 `json:"duplicated"`
	Reordered  int64 `json:"reordered"`
	Foreign    int64 `json:"foreign"`
	Bytes      int64 `json:"bytes"`

	MaxLate int64 `json:"mostLate"` // nanoseconds
	LastAt  int64 `json:"lastAt"`   // when the last message came

	CPU      int64 `json:"cpu"`      // nanoseconds, since the process began: now,
	CPUStart int64 `json:"cpuStart"` // when the window began,
	CPUEnd   int64 `json:"cpuEnd"`   // when it was over,
	CPUDrain int64 `json:"cpuDrain"` // and when nothing was under way any more

	Attempts int64 `json:"attempts"`
	CutAt    int64 `json:"cutAt"`
}

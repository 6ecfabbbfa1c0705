package generator

import (
	"net/netip"
	"time"

	"carillon/loadtest/internal/wsclient"
)

// The parent and its worker processes exchange lines of JSON: commands go down, reports come up.

// Command tells a worker what to do next.
type Command struct {
	Name string   `json:"name"`
	Spec *Spec    `json:"spec,omitempty"`
	At   int64    `json:"at,omitempty"`   // when, on the monotonic clock
	Sent []uint32 `json:"sent,omitempty"` // drain: messages sent, by sender, over all processes
}

// The commands, in the order in which they are sent.
const (
	CmdPrepare = "prepare" // take the spec
	CmdConnect = "connect" // open the connections
	CmdStart   = "start"   // begin the measured window at a given time
	CmdStop    = "stop"    // end the window early
	CmdDrain   = "drain"   // wait for messages in flight
	CmdFinish  = "finish"  // close the connections and end
)

// Spec is the share of one worker in a run. It has the connections whose number is Index modulo Count;
// spread assigns them to targets.
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
	MaxDelay time.Duration `json:"maxDelay,omitempty"`
}

// Target is one URL under test, as the workers need it.
type Target struct {
	URL       string             `json:"url"` // redacted, for messages
	Address   netip.AddrPort     `json:"address"`
	Handshake wsclient.Handshake `json:"handshake"`
}

// MaxSources is the largest number of source addresses.
const MaxSources = 65_536

// SourceRange is a range of addresses to connect from. With the zero value the system chooses.
type SourceRange struct {
	First, Last netip.Addr
}

// Count is the number of addresses in the range, at most MaxSources+1.
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

// mine returns how many of n numbered items belong to this worker.
func (s *Spec) mine(n int) int { return (n - s.Index + s.Count - 1) / s.Count }

// Report is the state of a worker. Counters are totals since its start; histograms hold only what was
// recorded since its previous report.
type Report struct {
	Event string `json:"event"`
	Counters

	FailedBy          map[string]int `json:"failedBy,omitempty"`
	LostBy            map[string]int `json:"lostBy,omitempty"`
	PublishFailedBy   map[string]int `json:"publishFailedBy,omitempty"`
	ReconnectFailedBy map[string]int `json:"reconnectFailedBy,omitempty"`
	Handshake         []byte         `json:"handshake,omitempty"`
	Latency           []byte         `json:"latency,omitempty"`
	SentBy            []uint32       `json:"sentBy,omitempty"`   // by sender of this worker
	Arrivals          [][]byte       `json:"arrivals,omitempty"` // fanout: by sender
	NoEcho            []uint32       `json:"noEcho,omitempty"`   // senders that the server excludes from their own messages
	Back              []int64        `json:"back,omitempty"`     // storm: when each connection was back
	Shares            []Share        `json:"shares,omitempty"`   // by target
	Error             string         `json:"error,omitempty"`
}

// Share counts the connections to one of several targets.
type Share struct {
	Opened int `json:"opened"`
	Lost   int `json:"lost"`
}

// The events that a report announces.
const (
	EventReady     = "ready"
	eventProgress  = "progress"
	EventConnected = "connected" // every connection is open or has failed
	EventEnded     = "ended"     // the window is over
	EventDrained   = "drained"   // with everything that is only known at the end
	EventFinished  = "finished"
)

type Counters struct {
	Open    int `json:"open"`
	Opened  int `json:"opened"`
	Failed  int `json:"failed"`
	Lost    int `json:"lost"`
	Members int `json:"members"` // connections open when the window began

	Sent       int64 `json:"sent"`
	Unsent     int64 `json:"unsent"`
	Received   int64 `json:"received"`
	Expected   int64 `json:"expected"`
	Duplicated int64 `json:"duplicated"`
	Reordered  int64 `json:"reordered"`
	Foreign    int64 `json:"foreign"`
	Bytes      int64 `json:"bytes"`

	MaxLate int64 `json:"maxLate"` // nanoseconds
	LastAt  int64 `json:"lastAt"`  // when the last message arrived

	CPU      int64 `json:"cpu"`      // nanoseconds, since the process began: now,
	CPUStart int64 `json:"cpuStart"` // when the window began,
	CPUEnd   int64 `json:"cpuEnd"`   // when it was over,
	CPUDrain int64 `json:"cpuDrain"` // and when all messages in flight had arrived

	Attempts int64 `json:"attempts"`
	CutAt    int64 `json:"cutAt"`
}

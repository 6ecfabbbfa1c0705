package main

import "time"

// The parent and the processes that it starts talk in lines of JSON: orders go down, reports come up.

// order tells a process what to do next.
type order struct {
	Do   string   `json:"do"`
	Spec *spec    `json:"spec,omitempty"`
	At   int64    `json:"at,omitempty"`   // when, on the monotonic clock
	Sent []uint32 `json:"sent,omitempty"` // drain: by sender, over all processes
}

// The orders, in the order in which they come.
const (
	doPrepare = "prepare" // take the spec
	doConnect = "connect" // open the connections
	doStart   = "start"   // at a given moment: send, or hold, or be cut off
	doStop    = "stop"    // end the window before its time
	doDrain   = "drain"   // wait for what is under way
	doFinish  = "finish"  // close the connections and end
)

// spec is one process's part in a run. Of all connections it has those whose number is Index modulo
// Count. Which of the targets a connection goes to is what spread says.
type spec struct {
	Command string `json:"command"`
	Index   int    `json:"index"`
	Count   int    `json:"count"`
	Run     uint64 `json:"run"`

	Targets     []target      `json:"targets"`
	Sources     sourceRange   `json:"sources"`
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

	CutBy     string        `json:"cutBy,omitempty"`
	BackOff   time.Duration `json:"backOff,omitempty"`
	MostDelay time.Duration `json:"mostDelay,omitempty"`
}

// mine is how many of n numbered things fall to this process.
func (s *spec) mine(n int) int { return (n - s.Index + s.Count - 1) / s.Count }

// report is what a process has to say. Counters are totals since its start; histograms hold what was
// new since its last report.
type report struct {
	Say string `json:"say"`
	counters

	FailedBy  map[string]int `json:"failedBy,omitempty"`
	LostBy    map[string]int `json:"lostBy,omitempty"`
	PublishBy map[string]int `json:"publishBy,omitempty"` // failed requests to publish
	AgainBy   map[string]int `json:"againBy,omitempty"`   // storm: failed attempts
	Handshake []byte         `json:"handshake,omitempty"`
	Latency   []byte         `json:"latency,omitempty"`
	SentBy    []uint32       `json:"sentBy,omitempty"`   // by own sender
	Arrivals  [][]byte       `json:"arrivals,omitempty"` // fanout: by sender
	Deaf      []uint32       `json:"deaf,omitempty"`     // senders that get no message of their own back
	Back      []int64        `json:"back,omitempty"`     // storm: when each connection was back
	Shares    []share        `json:"shares,omitempty"`   // by target
	Error     string         `json:"error,omitempty"`
}

// share counts the connections to one of several targets.
type share struct {
	Opened int `json:"opened"`
	Lost   int `json:"lost"`
}

// What a report says.
const (
	sayReady     = "ready"
	sayProgress  = "progress"
	sayConnected = "connected" // every connection is open or has failed
	sayEnded     = "ended"     // the window is over
	sayDrained   = "drained"   // with all that is only known at the end
	sayFinished  = "finished"
)

type counters struct {
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

	MostLate int64 `json:"mostLate"` // nanoseconds
	LastAt   int64 `json:"lastAt"`   // when the last message came

	CPU      int64 `json:"cpu"`      // nanoseconds, since the process began: now,
	CPUStart int64 `json:"cpuStart"` // when the window began,
	CPUEnd   int64 `json:"cpuEnd"`   // when it was over,
	CPUDrain int64 `json:"cpuDrain"` // and when nothing was under way any more

	Attempts int64 `json:"attempts"`
	CutAt    int64 `json:"cutAt"`
}

package report

import "time"

// Schema names the form of the JSON that --json writes. Its number changes when a field changes its
// meaning or goes; new fields do not change it.
const Schema = "carillon-loadtest/1"

// Result is one run of one command against one server.
type Result struct {
	Schema   string    `json:"schema"`
	Command  string    `json:"command"`         // idle, echo, fanout or storm
	Name     string    `json:"name"`            // what the server is called in tables
	Round    int       `json:"round,omitempty"` // compare: which one, from 1; 0 if it is not stated
	URL      string    `json:"url"`             // several are separated by spaces
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"` // of the measured window
	Settings Settings  `json:"settings"`
	Machine  Machine   `json:"machine"`

	Connections Connections `json:"connections"`
	Messages    *Messages   `json:"messages,omitempty"`   // echo and fanout
	Latency     *Latency    `json:"latency,omitempty"`    // of each received message, from the moment it was due to be sent
	Completion  *Latency    `json:"completion,omitempty"` // fanout: of each message, until its last receiver had it
	Storm       *Storm      `json:"storm,omitempty"`
	Server      *Server     `json:"server,omitempty"` // when its process is known
	Generator   Generator   `json:"generator"`
	Series      []Point     `json:"series,omitempty"`

	// Warnings say what makes the figures doubtful, such as a generator that was the bottleneck.
	Warnings []string `json:"warnings,omitempty"`

	// Error is why the run ended early. What was measured until then stands.
	Error string `json:"error,omitempty"`
}

// Settings are the options that shaped the run, as they were in force.
type Settings struct {
	Connections int      `json:"connections"`
	Publishers  int      `json:"publishers,omitempty"`
	Size        int      `json:"size"`                 // payload bytes of a message
	Rate        float64  `json:"rate"`                 // messages a second, of all senders together; 0 is as fast as possible
	Depth       int      `json:"depth,omitempty"`      // echo: messages under way on each connection
	Duration    float64  `json:"duration"`             // seconds asked for
	Ramp        float64  `json:"ramp"`                 // seconds over which connections are opened; 0 is as fast as possible
	Binary      bool     `json:"binary"`               // else text
	Compression bool     `json:"compression"`          // permessage-deflate was offered
	Sources     []string `json:"sources,omitempty"`    // first and last source address
	Processes   int      `json:"processes"`            // of the generator
	PublishURL  string   `json:"publishURL,omitempty"` // fanout: messages were published by HTTP POST
}

// Machine is where generator and server ran.
type Machine struct {
	OS        string `json:"os"` // with its version
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	Memory    int64  `json:"memory"` // bytes
	Go        string `json:"go"`
	OpenFiles int    `json:"openFiles"` // the descriptor limit of one process
}

// Connections counts handshakes.
type Connections struct {
	Wanted    int            `json:"wanted"`
	Opened    int            `json:"opened"`
	Lost      int            `json:"lost"`             // opened, and ended before the run did
	Failed    map[string]int `json:"failed,omitempty"` // by reason
	LostBy    map[string]int `json:"lostBy,omitempty"` // by reason
	Seconds   float64        `json:"seconds"`          // until all were open or had failed
	PerSecond float64        `json:"perSecond"`
	Handshake *Latency       `json:"handshake,omitempty"` // from connect(2) to the last byte of the 101
}

// Messages counts what was sent and what arrived.
type Messages struct {
	Sent           int64   `json:"sent"`
	Received       int64   `json:"received"`
	Expected       int64   `json:"expected"` // what should have been received
	Missing        int64   `json:"missing"`
	Duplicated     int64   `json:"duplicated"`
	Reordered      int64   `json:"reordered"`
	Foreign        int64   `json:"foreign"` // not one of ours, or damaged
	Unsent         int64   `json:"unsent"`  // due by the schedule and never sent
	SentPerSecond  float64 `json:"sentPerSecond"`
	ReceivedPerSec float64 `json:"receivedPerSecond"`
	ReceivedBytes  int64   `json:"receivedBytes"` // from sockets, framing included
}

// Latency is a distribution in microseconds.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`

	// Histogram is the whole distribution, as HdrHistogram's compressed V2 encoding in base64, in
	// microseconds.
	Histogram string `json:"histogram,omitempty"`
}

// Storm is how all clients came back after they had been cut off.
type Storm struct {
	CutBy      string         `json:"cutBy"` // "tool" or "server"
	Back50     float64        `json:"back50"`
	Back95     float64        `json:"back95"`
	Back100    float64        `json:"back100"`              // seconds until so many per cent were back; 0 if they never were
	Attempts   int64          `json:"attempts"`             // to connect again
	Failed     map[string]int `json:"failed,omitempty"`     // attempts by reason
	PeakCPU    float64        `json:"peakCPU,omitempty"`    // of the server, in cores
	PeakMemory int64          `json:"peakMemory,omitempty"` // of the server, RSS in bytes
	Handshake  *Latency       `json:"handshake,omitempty"`  // of those that came back
}

// Server is what the server cost, from /proc: the sum over all of its processes.
type Server struct {
	PID           int     `json:"pid"`                        // of the first process
	Processes     int     `json:"processes,omitempty"`        // how many there are
	CPUSeconds    float64 `json:"cpuSeconds"`                 // user and system, in the measured window
	Cores         float64 `json:"cores"`                      // CPUSeconds for each second
	CPUPerMessage float64 `json:"cpuPerMessage,omitempty"`    // microseconds for each message received by a client
	CPUPerConn    float64 `json:"cpuPerConnection,omitempty"` // microseconds for each handshake
	RSSBefore     int64   `json:"rssBefore"`                  // bytes, before the first connection
	RSS           int64   `json:"rss"`                        // bytes, with all connections
	PSS           int64   `json:"pss,omitempty"`
	Threads       int     `json:"threads"`
	RSSPerConn    float64 `json:"rssPerConnection,omitempty"`

	// KernelPerConn is the memory of both ends of a connection that the kernel counts in
	// /proc/net/sockstat, in bytes. That is the whole machine's, generator included.
	KernelPerConn float64 `json:"kernelPerConnection,omitempty"`

	// SlabPerConn is by how much all of the kernel's objects (Slab in /proc/meminfo) have grown for each
	// connection, sockets of both ends included, in bytes. Whatever else the machine does is in it too.
	SlabPerConn float64 `json:"slabPerConnection,omitempty"`
}

// Generator is what the measuring itself cost.
type Generator struct {
	Processes     int     `json:"processes"`
	CPUSeconds    float64 `json:"cpuSeconds"` // of all its processes, in the measured window
	Cores         float64 `json:"cores"`
	CPUPerMessage float64 `json:"cpuPerMessage,omitempty"` // microseconds for each message received
	Bottleneck    bool    `json:"bottleneck"`              // it, and not the server, may have set the pace
	MaxLate       float64 `json:"mostLate,omitempty"`      // microseconds by which a send missed its schedule at worst
}

// Point is one moment of a time series.
type Point struct {
	At          float64 `json:"at"` // seconds since the run began
	Connections int     `json:"connections"`
	Received    float64 `json:"received"` // messages a second
	P99         float64 `json:"p99,omitempty"`
	ServerCores float64 `json:"serverCores,omitempty"`
	ServerRSS   int64   `json:"serverRSS,omitempty"`
}

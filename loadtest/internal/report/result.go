// Package report holds the results of load tests and presents them: JSON files, tables, differences between
// files, and HTML pages with charts.
package report

import "time"

// Schema identifies the format of JSON files. Its number changes when a field is removed or changes its
// meaning, not when one is added.
const Schema = "carillon-loadtest/1"

// Result is one run of one command against one server.
type Result struct {
	Schema   string    `json:"schema"`
	Command  string    `json:"command"`         // idle, echo, fanout or storm
	Name     string    `json:"name"`            // the server's name in tables
	Round    int       `json:"round,omitempty"` // compare: from 1; 0 if unknown
	URL      string    `json:"url"`             // several are separated by spaces
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"` // of the measured window
	Settings Settings  `json:"settings"`
	Machine  Machine   `json:"machine"`

	Connections Connections `json:"connections"`
	Messages    *Messages   `json:"messages,omitempty"`   // echo and fanout
	Latency     *Latency    `json:"latency,omitempty"`    // of each received message, from when it was due to be sent
	Completion  *Latency    `json:"completion,omitempty"` // fanout: of each message, until its last receiver had it
	Storm       *Storm      `json:"storm,omitempty"`
	Server      *Server     `json:"server,omitempty"` // when its process is known
	Generator   Generator   `json:"generator"`
	Series      []Point     `json:"series,omitempty"`

	// Warnings are reasons to doubt the metrics, such as a generator that was the bottleneck.
	Warnings []string `json:"warnings,omitempty"`

	// Error is why the run ended early. Everything measured until then is valid.
	Error string `json:"error,omitempty"`
}

// Settings are the options of the run, with defaults resolved.
type Settings struct {
	Connections int      `json:"connections"`
	Publishers  int      `json:"publishers,omitempty"`
	Size        int      `json:"size"`                 // payload bytes of a message
	Rate        float64  `json:"rate"`                 // messages per second, all senders together; 0 is as fast as possible
	Depth       int      `json:"depth,omitempty"`      // messages in flight per sender
	Duration    float64  `json:"duration"`             // requested, in seconds
	Ramp        float64  `json:"ramp"`                 // seconds over which connections are opened; 0 is as fast as possible
	Binary      bool     `json:"binary"`               // false is text
	Compression bool     `json:"compression"`          // permessage-deflate was offered
	Sources     []string `json:"sources,omitempty"`    // first and last source address
	Processes   int      `json:"processes"`            // of the generator
	PublishURL  string   `json:"publishURL,omitempty"` // fanout: messages were published by HTTP POST
}

// Machine is the machine of the generator.
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
	Lost      int            `json:"lost"`             // opened, and closed before the end of the run
	Failed    map[string]int `json:"failed,omitempty"` // by reason
	LostBy    map[string]int `json:"lostBy,omitempty"` // by reason
	Seconds   float64        `json:"seconds"`          // until all connections were open or had failed
	PerSecond float64        `json:"perSecond"`
	Handshake *Latency       `json:"handshake,omitempty"` // from connect(2) to the last byte of the 101
}

// Messages counts what was sent and what arrived.
type Messages struct {
	Sent           int64   `json:"sent"`
	Received       int64   `json:"received"`
	Expected       int64   `json:"expected"` // how many should have been received
	Missing        int64   `json:"missing"`
	Duplicated     int64   `json:"duplicated"`
	Reordered      int64   `json:"reordered"`
	Foreign        int64   `json:"foreign"` // of another run, or damaged
	Unsent         int64   `json:"unsent"`  // due by the schedule but never sent
	SentPerSecond  float64 `json:"sentPerSecond"`
	ReceivedPerSec float64 `json:"receivedPerSecond"`
	ReceivedBytes  int64   `json:"receivedBytes"` // including framing
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

	// Histogram is the whole distribution in microseconds: base64 of HdrHistogram's compressed V2 encoding.
	Histogram string `json:"histogram,omitempty"`
}

// Storm describes how clients reconnected after all connections were closed.
type Storm struct {
	CutBy      string         `json:"cutBy"` // "tool" or "server"
	Back50     float64        `json:"back50"`
	Back95     float64        `json:"back95"`
	Back100    float64        `json:"back100"`              // seconds until this percentage had reconnected; 0 is never
	Attempts   int64          `json:"attempts"`             // to reconnect
	Failed     map[string]int `json:"failed,omitempty"`     // failed attempts by reason
	PeakCPU    float64        `json:"peakCPU,omitempty"`    // of the server, in cores
	PeakMemory int64          `json:"peakMemory,omitempty"` // of the server, RSS in bytes
	Handshake  *Latency       `json:"handshake,omitempty"`  // of the reconnects
}

// Server is the resource usage of the server from /proc, summed over its processes.
type Server struct {
	PID           int     `json:"pid"`                        // of the first process
	Processes     int     `json:"processes,omitempty"`        // number of processes
	CPUSeconds    float64 `json:"cpuSeconds"`                 // user and system, in the measured window
	Cores         float64 `json:"cores"`                      // CPUSeconds per second
	CPUPerMessage float64 `json:"cpuPerMessage,omitempty"`    // microseconds per message received by a client
	CPUPerConn    float64 `json:"cpuPerConnection,omitempty"` // microseconds per handshake
	RSSBefore     int64   `json:"rssBefore"`                  // bytes, before the first connection
	RSS           int64   `json:"rss"`                        // bytes, with all connections
	PSS           int64   `json:"pss,omitempty"`
	Threads       int     `json:"threads"`
	RSSPerConn    float64 `json:"rssPerConnection,omitempty"`

	// KernelPerConn is the growth of TCP buffers in /proc/net/sockstat per connection, in bytes. It covers
	// the whole machine, so it includes both ends of each connection.
	KernelPerConn float64 `json:"kernelPerConnection,omitempty"`

	// SlabPerConn is the growth of Slab in /proc/meminfo per connection, in bytes. It covers the whole
	// machine, so it includes both ends of each connection and unrelated activity.
	SlabPerConn float64 `json:"slabPerConnection,omitempty"`
}

// Generator is the resource usage of the generator.
type Generator struct {
	Processes     int     `json:"processes"`
	CPUSeconds    float64 `json:"cpuSeconds"` // of all its processes, in the measured window
	Cores         float64 `json:"cores"`
	CPUPerMessage float64 `json:"cpuPerMessage,omitempty"` // microseconds per message received
	Bottleneck    bool    `json:"bottleneck"`              // the generator may have limited the throughput
	MaxLate       float64 `json:"mostLate,omitempty"`      // worst delay of a send behind its schedule, in microseconds
}

// Point is one moment of a time series.
type Point struct {
	At          float64 `json:"at"` // seconds since the start of the run
	Connections int     `json:"connections"`
	Received    float64 `json:"received"` // messages per second
	P99         float64 `json:"p99,omitempty"`
	ServerCores float64 `json:"serverCores,omitempty"`
	ServerRSS   int64   `json:"serverRSS,omitempty"`
}

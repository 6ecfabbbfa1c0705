package main

import "github.com/spf13/pflag"

// addFlags adds the flags of a command, with its defaults.
func (o *options) addFlags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.IntVarP(&o.Connections, "connections", "c", o.Connections, "open `N` connections")
	f.DurationVarP(&o.Duration, "duration", "d", o.Duration, map[string]string{
		"idle": "time to hold the connections", "storm": "time to wait for all connections to return",
	}[o.Command]+map[bool]string{true: "time to send for"}[o.sends()])
	f.DurationVar(&o.Ramp, "ramp", o.Ramp, "time over which connections are opened; 0 is as fast as possible")
	if o.Command == "fanout" {
		f.IntVarP(&o.Publishers, "publishers", "p", o.Publishers, "`N` of the connections publish")
		f.StringVar(&o.PublishURL, "publish-url", "", "publish by HTTP POST to `URL` instead, one request at a time per publisher")
		f.StringArrayVar(&o.PublishHeader, "publish-header", nil, "add a `HEADER` (Name: value) to publish requests; repeatable")
	}
	if o.sends() {
		f.Float64VarP(&o.Rate, "rate", "r", o.Rate, "send `R` messages per second, all senders together; 0 is as fast as they return")
		f.IntVar(&o.Depth, "depth", o.Depth, "without a rate, keep `N` messages of each sender in flight")
		f.IntVarP(&o.Size, "size", "s", o.Size, "message size in `BYTES`, at least 28 (binary) or 56 (text)")
		f.BoolVar(&o.Binary, "binary", false, "send binary messages (the default)")
		f.BoolVar(&o.Text, "text", false, "send text messages")
	}
	if o.Command == "storm" {
		f.StringVar(&o.CutBy, "cut", o.CutBy, "`SIDE` that closes the connections: tool or server")
		f.DurationVar(&o.Backoff, "backoff", o.Backoff, "upper bound of the first random delay; it doubles with each failure")
		f.DurationVar(&o.MaxDelay, "backoff-max", o.MaxDelay, "limit of that upper bound")
	}
	f.BoolVar(&o.Compression, "compression", false, "offer permessage-deflate and use it if the server accepts")
	f.StringSliceVar(&o.Subprotocols, "subprotocol", nil, "offer subprotocols `NAME,...`")
	f.StringArrayVarP(&o.Headers, "header", "H", nil, "add a `HEADER` (Name: value) to each handshake; repeatable")
	f.StringVar(&o.Sources, "sources", "", "connect from a range of addresses, such as `127.0.0.1-127.0.0.20`; each has about 28,000 ports")
	f.IntVar(&o.Processes, "processes", 0, "spread connections over `N` generator processes (default: as many as needed)")
	cluster := ""
	if o.Command == "fanout" {
		cluster = " as a cluster"
	}
	f.IntVar(&o.Start, "start", 0, "instead of using URLs, build carillon from this repository and start `N` servers"+cluster)
	f.BoolVar(&o.OnePort, "one-port", false, "let the servers of --start share one port; the kernel distributes connections (Linux)")
	f.IntSliceVar(&o.PIDs, "pid", nil, "server processes to measure on this machine, `PID,...` (default: those that listen at the URLs)")
	f.StringVar(&o.Name, "name", "", "name of the server in tables (default: its address)")
}

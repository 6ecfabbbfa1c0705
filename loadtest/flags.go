package main

import "github.com/spf13/pflag"

// addFlags offers the options of a command, with its defaults.
func (o *options) addFlags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.IntVarP(&o.Connections, "connections", "c", o.Connections, "open `N` connections")
	f.DurationVarP(&o.Duration, "duration", "d", o.Duration, map[string]string{
		"idle": "hold them for so long", "storm": "wait so long for all to be back",
	}[o.Command]+map[bool]string{true: "send for so long"}[o.sends()])
	f.DurationVar(&o.Ramp, "ramp", o.Ramp, "spread the opening over so long; 0 is as fast as possible")
	if o.Command == "fanout" {
		f.IntVarP(&o.Publishers, "publishers", "p", o.Publishers, "`N` of the connections send")
		f.StringVar(&o.PublishURL, "publish-url", "", "publish by HTTP POST to `URL` instead, each publisher one request at a time")
		f.StringArrayVar(&o.PublishHeader, "publish-header", nil, "add a `HEADER` (Name: value) to those requests; repeatable")
	}
	if o.sends() {
		f.Float64VarP(&o.Rate, "rate", "r", o.Rate, "send `R` messages a second, all senders together; 0 is as fast as they come back")
		f.IntVar(&o.Depth, "depth", o.Depth, "without a rate, keep `N` messages of each sender under way")
		f.IntVarP(&o.Size, "size", "s", o.Size, "`BYTES` of each message, from 28 (binary) or 56 (text)")
		f.BoolVar(&o.Binary, "binary", false, "send binary messages (the default)")
		f.BoolVar(&o.Text, "text", false, "send text messages")
	}
	if o.Command == "storm" {
		f.StringVar(&o.CutBy, "cut", o.CutBy, "`WHO` cuts the connections off: tool or server")
		f.DurationVar(&o.Backoff, "backoff", o.Backoff, "the first attempt comes after a random part of this, and it doubles with each failure")
		f.DurationVar(&o.MaxDelay, "backoff-max", o.MaxDelay, "up to this")
	}
	f.BoolVar(&o.Compression, "compression", false, "offer permessage-deflate, and use it if the server agrees")
	f.StringSliceVar(&o.Subprotocols, "subprotocol", nil, "offer subprotocols `NAME,...`")
	f.StringArrayVarP(&o.Headers, "header", "H", nil, "add a `HEADER` (Name: value) to each handshake; repeatable")
	f.StringVar(&o.Sources, "sources", "", "connect from these addresses, such as `127.0.0.1-127.0.0.20`, since one has some 28,000 ports")
	f.IntVar(&o.Processes, "processes", 0, "spread the connections over `N` processes (default: as many as are needed)")
	together := ""
	if o.Command == "fanout" {
		together = ", as one cluster"
	}
	f.IntVar(&o.Start, "start", 0, "instead of taking URLs, build carillon from this repository and start `N` servers for the run"+together)
	f.BoolVar(&o.OnePort, "one-port", false, "the servers that --start starts share one port, and the kernel spreads the connections (Linux)")
	f.IntSliceVar(&o.PIDs, "pid", nil, "the server's processes, `PID,...`, on this machine (default: those that listen at the URLs)")
	f.StringVar(&o.Name, "name", "", "what the server is called in tables (default: its address)")
}

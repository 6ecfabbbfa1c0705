package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"carillon/loadtest/internal/report"
	"carillon/loadtest/internal/wsclient"
)

// serverDescriptors is roughly the number of descriptors that carillon needs besides its connections.
const serverDescriptors = 256

// measureStarted builds carillon, starts servers, measures them and stops them. Except for their addresses,
// they are configured by our environment.
func measureStarted(ctx context.Context, o options, log io.Writer, watch func(progress)) *report.Result {
	path := "/echo"
	if o.Command == "fanout" {
		path = "/broadcast"
	}
	where := fmt.Sprintf("%s of %d servers started for the run", path, o.Start)
	switch {
	case o.Start > 1 && o.Command == "fanout":
		where = fmt.Sprintf("%s of a cluster of %d servers started for the run", path, o.Start)
	case o.Start == 1:
		where = path + " of a server started for the run"
	}
	if o.Name == "" {
		o.Name = "carillon"
	}
	list, err := startServers(ctx, &o, log)
	var r *report.Result
	if err == nil {
		o.Start = 0
		for _, s := range list {
			if o.OnePort {
				o.PIDs = append(o.PIDs, s.pid)
			}
			if url := s.base + path; !slices.Contains(o.URLs, url) {
				o.URLs = append(o.URLs, url)
			}
		}
		o.OnePort = false
		r = measure(ctx, &o, watch)
	} else {
		r = newResult(&o)
		r.Error = err.Error()
	}
	r.URL = where // the ports are different each time
	stopServers(list)
	for _, s := range list {
		if words := wsclient.FirstLine([]byte(s.stderr.String())); words != "" {
			r.Warnings = append(r.Warnings, fmt.Sprintf("server process %d printed: %s", s.pid, words))
		}
	}
	return r
}

// startServers builds carillon and starts all servers, or none.
func startServers(ctx context.Context, o *options, log io.Writer) (list []*instance, err error) {
	each := (o.Connections + o.Start - 1) / o.Start
	if limit := descriptorLimit(); each+serverDescriptors > limit {
		return nil, fmt.Errorf("%d connections to %d servers are %d each, more than the limit of %d open files allows: use --start %d",
			o.Connections, o.Start, each, limit, (o.Connections-1)/max(1, limit-serverDescriptors)+1)
	}
	into, err := os.MkdirTemp("", "loadtest-start-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(into) // running programs do not need it
	fmt.Fprintln(log, "building carillon")
	carillon, _, err := buildCarillon(ctx, into)
	if err != nil {
		return nil, err
	}
	carillon.env = []string{"CARILLON_LISTEN=127.0.0.1:0", "CARILLON_INTERNAL_LISTEN=off", "CARILLON_LOG_LEVEL=warn"}
	if o.OnePort {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		carillon.env = append(carillon.env, "CARILLON_LISTEN="+port, "CARILLON_TAKEOVER=true")
	}
	var nats []string // cluster settings: of the server that runs NATS, then of the others
	if o.Start > 1 && o.Command == "fanout" {
		if nats, err = clusterEnv(); err != nil {
			return nil, err
		}
	}
	for range o.Start {
		one := carillon
		if nats != nil {
			i := min(2*len(list), 2)
			one.env = append(slices.Clone(carillon.env), "CARILLON_DEMO=false", "CARILLON_CLUSTER_NODE="+strconv.Itoa(len(list)+1), nats[i], nats[i+1])
		}
		s, err := one.start()
		if err == nil {
			list = append(list, s)
			err = ctx.Err()
		}
		if err != nil {
			stopServers(list)
			return nil, err
		}
	}
	return list, nil
}

// freePort returns a free local address.
func freePort() (address string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// clusterEnv chooses a port for NATS and returns the cluster settings.
func clusterEnv() (env []string, err error) {
	port, err := freePort()
	return []string{
		"CARILLON_CLUSTER_NATS_EMBEDDED=true", "CARILLON_CLUSTER_NATS_LISTEN=" + port,
		"CARILLON_CLUSTER_NATS_URL=nats://" + port, "CARILLON_CLUSTER_START_TIMEOUT=10s",
	}, err
}

// stopServers stops the first server last, since it runs NATS in a cluster.
func stopServers(list []*instance) {
	if len(list) == 0 {
		return
	}
	var all sync.WaitGroup
	for _, s := range list[1:] {
		all.Go(s.stop)
	}
	all.Wait()
	list[0].stop()
}

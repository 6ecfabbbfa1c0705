// Package peer is what all peers share: their limits, their flags, their listener and their end.
package peer

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

const (
	// MaxMessage is the size of the largest message that is accepted, in bytes.
	MaxMessage = 1 << 20

	// CompressFrom is the payload size, in bytes, from which a message is compressed. Deflate makes
	// small messages larger.
	CompressFrom = 512
)

// Has states which flags a peer has besides -listen.
type Has struct {
	Compression bool
	Queue       bool
}

// Options are the flags as they were given.
type Options struct {
	// Compression negotiates permessage-deflate, without context takeover and at level 1, with clients
	// that offer it. Default false.
	Compression bool

	// Queue is how many messages may wait for one connection of /broadcast. A connection that falls
	// further behind is closed. Default 1024.
	Queue int
}

// Main is the main function of a peer: it parses the flags, listens, says where on standard output, and
// serves until SIGTERM or an interrupt ends ctx. Then serve returns nil and the process ends, and with
// it the connections; no peer drains.
func Main(has Has, serve func(ctx context.Context, ln net.Listener, o Options) error) {
	log.SetFlags(0)
	var o Options
	listen := flag.String("listen", "127.0.0.1:0", "TCP `address` to serve on; port 0 is any free one")
	if has.Compression {
		flag.BoolVar(&o.Compression, "compression", false, "negotiate permessage-deflate")
	}
	if has.Queue {
		flag.IntVar(&o.Queue, "queue", 1024, "`messages` that may wait for a slow connection before it is closed")
	}
	flag.Parse()
	if flag.NArg() > 0 || has.Queue && o.Queue < 1 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	// From here on the kernel accepts connections, whenever serve comes to fetch them.
	fmt.Printf("listening on %s\n", ln.Addr())
	if err := serve(ctx, ln, o); err != nil {
		log.Fatal(err)
	}
}

// HTTP serves GET /echo and GET /broadcast with net/http until ctx ends.
func HTTP(ctx context.Context, ln net.Listener, echo, broadcast http.HandlerFunc) error {
	mux := http.NewServeMux()
	mux.Handle("GET /echo", echo)
	mux.Handle("GET /broadcast", broadcast)
	srv := &http.Server{Handler: mux}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	return nil
}

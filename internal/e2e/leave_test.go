package e2e

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// A client that leaves a stream of events through a balancer is gone for the server, too, before the server has sent
// anything more: its connection counts, and balancers that go by the number of connections would avoid the server.
func TestALeavingClientOfABalancerLeavesTheServer(t *testing.T) {
	for _, balancer := range []string{"haproxy", "nginx"} {
		t.Run(balancer, func(t *testing.T) {
			t.Parallel()
			program := testenv.Program(t, balancer)
			s := newSite(t, "CARILLON_TRUSTED_PROXIES=[127.0.0.1]", "CARILLON_PING_INTERVAL=off")
			if balancer == "haproxy" {
				s.run(s.haproxy(program, ""))
			} else {
				s.run(s.nginx(program, ""))
			}
			const clients = 6
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			for range clients {
				r, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.address+"/ws?topic=a", nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Accept", "text/event-stream")
				resp, err := (&http.Client{Transport: &http.Transport{}}).Do(r)
				if err != nil || resp.StatusCode != 200 {
					t.Fatal(resp, err)
				}
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
			}
			open := func() (n int) {
				for _, b := range s.servers {
					n += len(b.connections())
				}
				return n
			}
			if n := open(); n != clients {
				t.Fatalf("%d connections, want %d", n, clients)
			}
			leave()
			left := time.Now()
			eventually(t, "the servers have no connection", func() bool { return open() == 0 })
			if took := time.Since(left); took > 15*time.Second {
				t.Errorf("that took %v", took)
			}
		})
	}
}

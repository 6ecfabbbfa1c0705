package cli

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const healthHelp = `Asks a server on this machine, or at --api, whether it lives, and prints what it
answers. For health checks in containers whose image has nothing but this
program.

Environment: CARILLON_API and CARILLON_TOKEN stand for --api and --token; without them the
server's own variables CARILLON_INTERNAL_LISTEN and CARILLON_INTERNAL_TOKEN do. No
configuration file is read: say --api if internal.listen stands in one.

Exit status: 0 if it does, 1 if not, 2 for a command line that makes no sense.`

func healthCommand(std streams) *cobra.Command {
	var o publishOptions
	var api string
	var ready bool
	cmd := &cobra.Command{
		Use: "health", Short: "Ask a server whether it lives, or is ready", Long: healthHelp,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if api == "" && os.Getenv(apiVariable) == "" {
				if api = ownAPI(os.Getenv(envPrefix + "INTERNAL_LISTEN")); api == "off" {
					return &failure{errors.New("CARILLON_INTERNAL_LISTEN is off, so there is nobody to ask: ask for /healthz on the public port"), statusFailure}
				}
			}
			if o.token == "" && os.Getenv(tokenVariable) == "" {
				o.token = os.Getenv(envPrefix + "INTERNAL_TOKEN")
			}
			return o.resolveAPI(api)
		},
		RunE: understood(func(*cobra.Command, []string) error {
			path := "/livez"
			if ready {
				path = "/readyz"
			}
			return o.askHealth(path, std.out)
		}),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&ready, "ready", false, "ask whether it should be sent new connections (/readyz instead of /livez)")
	f.StringVar(&api, "api", "", "the internal HTTP interface, `URL` or unix:/path (default $CARILLON_API or http://127.0.0.1:8081)")
	f.StringVar(&o.token, "token", "", "send 'Authorization: Bearer `TOKEN`' (default $CARILLON_TOKEN)")
	o.trust.flags(cmd)
	f.DurationVar(&o.timeout, "timeout", 2*time.Second, "give the request `TIME`")
	noCompletion(cmd)
	noCompletion(cmd, "api", "token", "timeout")
	return cmd
}

// ownAPI is where a server that was told to listen there is found on its own machine.
func ownAPI(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	switch {
	case err != nil:
		return listen
	case host == "" || ip.Equal(net.IPv4zero):
		return "127.0.0.1:" + port
	case ip.Equal(net.IPv6unspecified):
		return "[::1]:" + port
	}
	return listen
}

func (o *publishOptions) askHealth(path string, out io.Writer) error {
	r, err := http.NewRequest(http.MethodGet, o.api.JoinPath(path).String(), nil)
	if err != nil {
		return err
	}
	if o.token != "" {
		r.Header.Set("Authorization", "Bearer "+o.token)
	}
	resp, err := o.httpClient().Do(r)
	if err != nil {
		return fmt.Errorf("ask for %s: %w", path, errors.Unwrap(err)) // the URL stands in it again
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	_, err = fmt.Fprintln(out, strings.TrimSpace(string(body)))
	return err
}

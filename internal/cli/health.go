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

const healthHelp = `Checks whether the server on this machine, or at --api, is alive, and prints its
answer. It serves as a health check in container images that have no other
program.

Environment: CARILLON_API and CARILLON_TOKEN are the defaults of --api and --token. If
unset, the server's own CARILLON_INTERNAL_LISTEN and CARILLON_INTERNAL_TOKEN are used. The
configuration file is not read: pass --api if it sets internal.listen.

Exit status: 0 if healthy, 1 if not, 2 on a usage error.`

func healthCommand(std streams) *cobra.Command {
	var o publishOptions
	var api string
	var ready bool
	cmd := &cobra.Command{
		Use: "health", Short: "Check whether a server is alive, or ready", Long: healthHelp,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if api == "" && os.Getenv(apiVariable) == "" {
				if api = ownAPI(os.Getenv(envPrefix + "INTERNAL_LISTEN")); api == "off" {
					return &failure{errors.New("CARILLON_INTERNAL_LISTEN is off: check /healthz on the public port instead"), statusFailure}
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
	f.BoolVar(&ready, "ready", false, "check whether it is ready for new connections (/readyz instead of /livez)")
	f.StringVar(&api, "api", "", "the internal HTTP interface, `URL` or unix:/path (default $CARILLON_API or http://127.0.0.1:8081)")
	f.StringVar(&o.token, "token", "", "send 'Authorization: Bearer `TOKEN`' (default $CARILLON_TOKEN)")
	o.trust.flags(cmd)
	f.DurationVar(&o.timeout, "timeout", 2*time.Second, "limit the request to `TIME`")
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
		return fmt.Errorf("get %s: %w", path, errors.Unwrap(err)) // the URL stands in it again
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	_, err = fmt.Fprintln(out, strings.TrimSpace(string(body)))
	return err
}

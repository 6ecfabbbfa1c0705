// Package cli is the command line of the program: the server, its configuration, and the clients.
package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"carillon/client"
	"carillon/internal/demo"
	"carillon/server"
	"carillon/server/cluster"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Main runs the program on the standard streams and returns its exit status. config is the built-in configuration.
func Main(args []string, config []byte) int {
	builtIn = config
	return run(args, standardStreams())
}

// run is the program with its exit status: 0 after a clean end, 1 after an error, 2 for a command
// line that makes no sense, 3 after a connection that did not end cleanly.
func run(args []string, std streams) int {
	cmd := rootCommand(std)
	cmd.SetArgs(args)
	cmd.SetIn(std.in)
	cmd.SetOut(std.out)
	cmd.SetErr(std.err)
	err := cmd.Execute()
	if err == nil {
		return 0
	}
	if err != errReported {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(std.err, "carillon: %s\n", strings.TrimSpace(line))
		}
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status
	}
	if err == errReported {
		return statusFailure
	}
	fmt.Fprintln(std.err, "carillon: run carillon --help for usage")
	return 2
}

// failure is what went wrong in a command that was understood, with the exit status that it makes.
type failure struct {
	error
	status int
}

func (f *failure) Unwrap() error { return f.error }

const (
	statusFailure = 1
	statusLost    = 3
)

// understood makes errors of a command's work failures, unlike errors of its command line.
func understood(do func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := do(cmd, args)
		if _, ok := errors.AsType[*failure](err); ok || err == nil || err == errReported {
			return err
		}
		return &failure{err, statusFailure}
	}
}

// errReported ends a command whose own output has said what is wrong.
var errReported = errors.New("reported")

// command makes a command without arguments.
func command(use, short, long string, do func(out io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          understood(func(cmd *cobra.Command, _ []string) error { return do(cmd.OutOrStdout()) }),
	}
}

// noArgs is cobra.NoArgs for what may be a URL, of a client whose command was left out.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q", shownURL(args[0]), cmd.CommandPath())
	}
	return nil
}

// flagError is what is wrong with a flag. It does not repeat a header, which may have a token or a cookie.
func flagError(_ *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok && e.GetFlag().Name == "header" {
		return fmt.Errorf("invalid argument for \"-H, --header\" flag: %w", e.Unwrap())
	}
	return err
}

func rootCommand(std streams) *cobra.Command {
	var file string
	withFile := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().FuncP("config", "c", "configuration `FILE` (default: built in)", fileName(&file))
		_ = cmd.MarkFlagFilename("config", "yaml", "yml")
		return cmd
	}

	root := withFile(command("carillon", "A WebSocket server for echo and fan-out", rootHelp, func(out io.Writer) error {
		c, err := loadConfig(file, os.Environ())
		if err != nil {
			return err
		}
		return serve(file, c, out)
	}))
	root.SetFlagErrorFunc(flagError)
	root.Version = version()
	root.SetVersionTemplate("{{.Version}}\n")

	var check string
	configure := withFile(command("config", "Print or check the configuration", configHelp(), func(out io.Writer) error {
		if check != "" {
			return checkConfig(out, check)
		}
		c, err := loadConfig(file, os.Environ())
		if err != nil {
			return err
		}
		text, err := c.print()
		if err != nil {
			return fmt.Errorf("print the configuration: %w", err)
		}
		_, err = out.Write(text)
		return err
	}))
	configure.Flags().Func("check", "check `FILE` and print every problem", fileName(&check))
	_ = configure.MarkFlagFilename("check", "yaml", "yml")
	configure.MarkFlagsMutuallyExclusive("config", "check")

	root.AddCommand(connectCommand(std), publishCommand(std), tailCommand(std), healthCommand(std))
	root.AddCommand(configure, command("version", "Print the version", "", func(out io.Writer) error {
		_, err := fmt.Fprintln(out, version())
		return err
	}))
	return root
}

// fileName sets a flag. An empty name is most likely a script's unset variable, not a wish for the
// built-in file.
func fileName(to *string) func(string) error {
	return func(name string) error {
		if *to = name; name == "" {
			return errors.New("expected a file name")
		}
		return nil
	}
}

const rootHelp = `Serves WebSocket endpoints: /echo, /broadcast and /ws on port 8080, or what the
configuration file defines. An internal HTTP interface for publishing listens on
127.0.0.1:8081. Ctrl-C or SIGTERM closes all connections and exits; a second one
exits at once.

Each configuration key can also be set by an environment variable, such as
CARILLON_LISTEN=:9000. "carillon config --help" lists them.

The commands connect, publish, tail and health are clients; see their --help for
examples.

Exit status: 0 on success, 1 on an error, an invalid configuration or a second
signal, 2 on a usage error.`

func configHelp() string {
	var b strings.Builder
	b.WriteString(`Prints the effective configuration as YAML: the file, the environment and the
defaults combined. The output is a valid configuration file.

With --check it prints FILE: ok, or each problem with its line and column, and
then exits with status 1. As at start, it applies the environment and reads the
files that the configuration names, such as certificates and keys. Settings that
are valid but probably a mistake are printed as warnings first.

Each of these variables overrides the file:

`)
	for _, k := range settable(reflect.TypeFor[config]()) {
		fmt.Fprintf(&b, "  %-34s %s\n", k.variable(), k.path)
	}
	return strings.TrimSpace(b.String())
}

func checkConfig(out io.Writer, file string) error {
	text, err := readConfig(file)
	if err != nil {
		return err
	}
	warnings, err := examineConfig(file, text, os.Environ())
	if err == nil {
		for _, w := range warnings {
			fmt.Fprintf(out, "warning: %v\n", w)
		}
		_, err = fmt.Fprintf(out, "%s: ok\n", file)
		return err
	}
	fmt.Fprintln(out, err)
	return errReported
}

// service is the server as the program runs it.
type service struct {
	file    string // of the configuration; empty for the one built in
	config  config // as it was at the start, but for what a reload has changed
	log     *slog.Logger
	srv     *server.Server
	pages   pages
	out     io.Writer
	started bool // it listens
	told    bool // systemd knows that it ends
}

// serve runs the server until a signal ends it.
func serve(file string, c config, out io.Writer) error {
	c.LogLevel = new(slog.LevelVar)
	lines := server.NewLogWriter(os.Stderr, func(lost uint64) { c.Logger.Warn("log lines lost", "lines", lost) })
	defer func() { _ = lines.Close(logPatience) }() // what has not been read by then is lost
	c.Logger, c.LogLost = newLogger(c.Log, c.LogLevel, lines), lines.Lost
	c.Internal.Debug = profiles()
	if limit, source := server.LimitRuntimeMemory(); limit > 0 {
		c.Logger.Info("GOMEMLIMIT is not set; soft memory limit of the Go runtime set", "limit", limit, "source", source)
	}
	srv, pages, err := newServer(c)
	if err != nil {
		return err
	}
	defer pages.close()
	p := &service{file: file, config: c, log: c.Logger, srv: srv, pages: pages, out: out}
	return p.run()
}

func (p *service) run() error {
	ctx, drain := context.WithCancelCause(context.Background())
	defer drain(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	hangups, hadTerminal := notifyHangups(), hasTerminal()
	defer signal.Stop(hangups)
	signal.Ignore(syscall.SIGPIPE) // the reader of our output may go away; the connections stay

	ended := make(chan error, 1)
	go func() { ended <- p.srv.Run(ctx) }()
	started, ending := p.srv.Started(), p.srv.Ending()
	signalled := false
	for {
		select {
		case <-started:
			started = nil
			remove, err := writePID(p.config.PIDFile)
			if err != nil {
				return err
			}
			defer remove()
			p.tellStarted()
		case <-hangups:
			if hadTerminal && !hasTerminal() {
				select { // the terminal was closed, which ends what runs there
				case signals <- syscall.SIGHUP:
				default: // it ends already
				}
				continue
			}
			p.reload()
		case s := <-signals:
			if signalled {
				return fmt.Errorf("%v again: exiting without draining", s)
			}
			signalled = true
			fmt.Fprintf(p.out, "%v: draining %d connections for up to %s; a second signal exits at once\n",
				s, p.srv.Count(), shortDuration(p.srv.Options().Drain.Deadline))
			if s != syscall.SIGTERM {
				p.srv.StartDrain(s.String(), 0) // there is a person, and hardly a balancer, to wait for it
			}
			drain(errors.New(s.String()))
		case <-ending:
			ending = nil
			p.tellEnding()
		case err := <-ended:
			if ending != nil {
				p.tellEnding()
			}
			return err
		}
	}
}

// logPatience is how long the end waits for the log to be written.
const logPatience = time.Second

// stopSlack is how long the program takes to end after its connections, at most.
const stopSlack = 5 * time.Second

func warn(log *slog.Logger, err error) {
	if err != nil {
		log.Warn(err.Error())
	}
}

// newLogger makes a log whose level can be changed later.
func newLogger(c logConfig, level *slog.LevelVar, w io.Writer) *slog.Logger {
	level.Set(logLevels[c.Level])
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// profiles serves net/http/pprof. The package also puts itself into http.DefaultServeMux, which this
// program serves nowhere.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// few is the number of connections below which it is worth saying how to allow more.
const few = 16 << 10

// pages are what the program serves besides what its configuration says.
type pages struct{ demo *demo.Demo } // nil without

// addTo puts what the pages need into options.
func (p pages) addTo(o server.Options) server.Options {
	if p.demo != nil {
		o.Endpoints = slices.Concat(o.Endpoints, p.demo.Endpoints())
		o.Topics = slices.Concat(p.demo.Topics(), o.Topics)
	}
	return o
}

func (p pages) close() {
	if p.demo != nil {
		p.demo.Close()
	}
}

// newServer makes the server with its pages.
func newServer(c config) (srv *server.Server, p pages, err error) {
	o := c.Options
	if c.Cluster.Enabled() {
		c.Cluster.Logger = c.Logger
		if o.Broker, err = cluster.New(c.Cluster); err != nil {
			return nil, p, err
		}
	}
	if !c.Demo {
		if slices.ContainsFunc(o.Endpoints, func(e server.Endpoint) bool { return e.Mode == server.ModeTopics }) {
			o.HTTP = http.HandlerFunc(serveClient)
		}
		srv, err = server.New(o)
		return srv, p, err
	}
	p.demo = demo.New(demo.Options{})
	o = p.addTo(o)
	o.HTTP = p.demo.Handler()
	if srv, err = server.New(o); err == nil {
		p.demo.Attach(srv)
	}
	return srv, p, err
}

// serveClient hands out the JavaScript client.
func serveClient(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/carillon.js" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	w.Header().Set("Access-Control-Allow-Origin", "*") // so that pages of other origins may import it
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(client.Script))
}

// announce tells the person at the terminal what is served, how much of it, and how to stop.
func announce(out io.Writer, c config, srv *server.Server) {
	fmt.Fprintf(out, "carillon is listening on %s\n\n", addressList(srv.Addrs()))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  URL\tMODE\tCOMPRESSION\tSUBPROTOCOLS")
	for _, e := range c.Endpoints {
		compression, subprotocols := "no", "none"
		if e.Compression.Enabled {
			compression = "yes"
		}
		if len(e.Subprotocols) > 0 {
			subprotocols = strings.Join(e.Subprotocols, ", ")
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", srv.URL(e.Path), e.Mode, compression, subprotocols)
	}
	table.Flush()
	onlyUnix := !slices.ContainsFunc(srv.Addrs(), func(a net.Addr) bool { return a.Network() != "unix" })
	if c.Demo && (c.PublicURL != "" || !onlyUnix) {
		fmt.Fprintf(out, "\nOpen http%s in a browser for a chat and a live board.\n", strings.TrimPrefix(srv.URL("/"), "ws"))
	}
	announceInternal(out, c, srv.InternalAddr())
	announceCluster(out, c)
	if addr := srv.AgentAddr(); addr != nil {
		fmt.Fprintf(out, "HAProxy agent checks: %s\n", addr)
	}

	most := srv.MaxConnections()
	if most == c.Limits.MaxConnections {
		fmt.Fprintf(out, "\nAccepts up to %d connections (limits.max_connections).\n", most)
	} else {
		fmt.Fprintf(out, "\nAccepts up to %d connections (limit of open files).\n", most)
		if most < few {
			fmt.Fprintln(out, "To accept more, raise it before starting: ulimit -n 1048576 (or LimitNOFILE= in a systemd\n"+
				"unit, --ulimit nofile= in Docker).")
		}
	}
	if limit, source := srv.MaxMemory(); limit > 0 {
		fmt.Fprintf(out, "Refuses new connections above %v of memory (%s).\n", limit, source)
	} else {
		fmt.Fprintf(out, "No memory limit (%s).\n", source)
	}
	fmt.Fprintln(out, "Stop with Ctrl-C or SIGTERM.")
}

// addressList is how the addresses stand in one line.
func addressList(all []net.Addr) string {
	var list []string
	for _, addr := range all {
		text := addr.String()
		if addr.Network() == "unix" {
			text = "unix:" + text
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// curlOption has curl connect to a unix socket.
func curlOption(addr net.Addr) string {
	if name, abstract := strings.CutPrefix(addr.String(), "@"); abstract {
		return "--abstract-unix-socket " + name
	}
	return "--unix-socket " + addr.String()
}

// announceInternal says where to publish.
func announceInternal(out io.Writer, c config, addr net.Addr) {
	if addr == nil {
		fmt.Fprintln(out, "\nNo internal HTTP interface: internal.listen is off.")
		return
	}
	token := "local only, without a token"
	if c.Internal.Token != "" {
		token = "with a token"
	}
	scheme := "http"
	if len(c.Internal.TLS.Certificates) > 0 {
		scheme = "https"
	}
	if addr.Network() == "unix" {
		fmt.Fprintf(out, "\nInternal HTTP interface, %s: curl %s %s://localhost/v1/openapi.json\n", token, curlOption(addr), scheme)
		return
	}
	fmt.Fprintf(out, "\nInternal HTTP interface, %s: %s://%s/v1/openapi.json\n", token, scheme, reachable(c.Internal.Listen, addr))
}

// announceCluster says with whom the topics are shared.
func announceCluster(out io.Writer, c config) {
	if c.Cluster.Enabled() {
		fmt.Fprintf(out, "Member of cluster %s: GET /v1/nodes on the internal interface lists its nodes.\n", c.Cluster.Name)
	}
}

// reachable is the address at which a client on this machine finds what listens.
func reachable(listen string, addr net.Addr) string {
	host, _, _ := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(addr.String())
	return net.JoinHostPort(host, port)
}

// version describes the build: the module's version, the commit, the compiler and the platform.
func version() string {
	b, revision, changed := server.BuildInfo(), "", ""
	if b.Revision != "" {
		revision = " " + b.Revision
	}
	if b.Changed {
		changed = " (changed)"
	}
	return fmt.Sprintf("carillon %s%s%s, %s %s", b.Version, revision, changed, b.Go, b.Platform)
}

package cluster

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"carillon/internal/redact"
	"carillon/server/internal/option"

	"github.com/nats-io/nats.go"
)

// Options say how a server joins a cluster. Every zero value is a default.
type Options struct {
	// Name is the cluster's: servers with the same name, on the same NATS, are one cluster. Letters, digits,
	// - and _, at most 32. Default carillon.
	Name string `yaml:"name"`

	// Node is this server's name, for people and, with NATS.Embedded, for the NATS server, where no two may
	// have the same one and where it must stay the same over restarts. Default: the host's name.
	Node string `yaml:"node"`

	NATS NATS `yaml:"nats"`

	// Storage is where NATS keeps the messages of topics with history: file or memory. It cannot be changed
	// later. Default file.
	Storage string `yaml:"storage"`

	// Replicas is on how many NATS servers these messages are, 1 to 5: with 3, one server may fail. Default
	// 1; with NATS.Embedded one for each server that Routes makes known, this one included, but at most 3.
	Replicas int `yaml:"replicas"`

	// MaxBytes is how much NATS keeps for one topic rule, all its topics together; beyond it the oldest
	// messages go. Default: no limit but that of the NATS servers.
	MaxBytes option.Size `yaml:"max_bytes"`

	// Positions is the file in which this node remembers how far the topics' offsets were, so that it notices when
	// JetStream has lost the newest messages while the node was down. One for each node, outside of what is backed up
	// together with JetStream. Default: with NATS.Embedded NATS.StoreDir with .positions behind it, otherwise none; off
	// is none.
	Positions string `yaml:"positions"`

	// Timeout is how long NATS may take to acknowledge a message; after that it is unknown whether the message
	// arrived. Default 5 s, at most 10 s; it cannot be turned off.
	Timeout time.Duration `yaml:"timeout"`

	// StartTimeout is how long the start may take, that is, how long NATS is waited for. Default 1m; negative
	// waits as long as it takes.
	StartTimeout time.Duration `yaml:"start_timeout"`

	// Logger gets what happens. Default slog.Default().
	Logger *slog.Logger `yaml:"-"`
}

// NATS says where the NATS servers are, or that this process is to run one.
type NATS struct {
	// URL lists the servers: nats://host:port or tls://host:port, separated by commas. Either this or
	// Embedded is needed.
	URL string `yaml:"url" secret:"url"`

	// At most one of these ways to authenticate. Credentials and NKey are names of files: of one with a JWT
	// and a seed, as nsc makes them, and of one with a seed. With Embedded, User and Password are what the
	// NATS servers of the cluster ask of each other, and of clients; the password has at least
	// [option.MinSecret] characters.
	Credentials string        `yaml:"credentials"`
	NKey        string        `yaml:"nkey"`
	User        string        `yaml:"user"`
	Password    option.Secret `yaml:"password"`
	Token       option.Secret `yaml:"token"`

	TLS TLS `yaml:"tls"`

	// Embedded runs a NATS server in this process.
	Embedded bool `yaml:"embedded"`

	// Listen is where the embedded server takes other clients of NATS. Like RoutesListen, it must be of the
	// loopback interface unless User or TLS is set, that with a CA. Default off: none.
	Listen string `yaml:"listen"`

	// RoutesListen is where the embedded servers of the other nodes connect. Default off when there are no
	// Routes, and else :6222.
	RoutesListen string `yaml:"routes_listen"`

	// Routes lists the nodes' RoutesListen, as host:port. This node's own may be among them, so that all nodes
	// have the same list.
	Routes []string `yaml:"routes"`

	// StoreDir is the embedded server's directory, one for each. Needed when a topic has history.
	StoreDir string `yaml:"store_dir"`
}

// TLS names files in PEM. With NATS.Embedded they are for the connections between the servers, which then
// ask each other for certificates, and for Listen.
type TLS struct {
	CA   string `yaml:"ca"`   // whom to trust; default: the system's
	Cert string `yaml:"cert"` // of this node
	Key  string `yaml:"key"`
}

// complete fills in the defaults that depend on other options, or on the host.
func (o *Options) complete() error {
	if o.Node == "" {
		var err error
		if o.Node, err = os.Hostname(); err != nil {
			return &option.Error{Key: "cluster.node", Problem: "is missing, and this host has no name: " + err.Error()}
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.NATS.RoutesListen = o.NATS.routesListen()
	if o.Replicas == 0 {
		o.Replicas = 1
		if o.NATS.Embedded {
			o.Replicas = min(3, 1+len(o.NATS.others()))
		}
	}
	return nil
}

// CheckFiles reports what is wrong with the files and the nkey that Start would log in to NATS with. The error joins
// one [option.Error] for each problem.
func (o Options) CheckFiles() error {
	c := option.Checker{Prefix: prefix}
	if o.NATS.Credentials != "" {
		if _, err := os.ReadFile(o.NATS.Credentials); err != nil {
			c.Add("nats.credentials", "%v", err)
		}
	}
	if o.NATS.NKey != "" {
		if _, err := nats.NkeyOptionFromSeed(o.NATS.NKey); err != nil {
			c.Add("nats.nkey", "%v", err)
		}
	}
	if o.NATS.TLS != (TLS{}) {
		if _, err := o.NATS.TLS.config(); err != nil {
			c.AddError(err)
		}
	}
	return c.Err()
}

// Enabled reports whether there is to be a cluster.
func (o *Options) Enabled() bool { return o.NATS.URL != "" || o.NATS.Embedded }

// off is how an address is turned off.
const off = "off"

// maxReplicas is NATS's own bound.
const maxReplicas = 5

// prefix is that of the keys of these options in the configuration file.
const prefix = "cluster."

// shortest is the lower bound of the time-outs.
const shortest = 100 * time.Millisecond

// Resolve returns a copy in which every zero is replaced by its default, after checking each value. Node, Logger,
// Replicas and NATS.RoutesListen stay zero, since their defaults depend on the host, or on other options. The
// error joins one [option.Error], whose key begins with "cluster.", for each problem.
func (o Options) Resolve() (Options, error) {
	c := option.Checker{Prefix: prefix}
	if o.Name == "" {
		o.Name = "carillon"
	}
	if !isWord(o.Name) {
		c.Add("name", "%.40q is not a valid name: expected 1 to 32 letters, digits, - or _", o.Name)
	}
	if len(o.Node) > 128 || strings.ContainsFunc(o.Node, func(r rune) bool { return r <= ' ' || r == 127 }) {
		c.Add("node", "%.40q is not a valid name: expected at most 128 bytes without spaces", o.Node)
	}
	switch o.Storage {
	case "":
		o.Storage = "file"
	case "file", "memory":
	default:
		c.Add("storage", "%q is unknown: expected file or memory", o.Storage)
	}
	if o.Replicas < 0 || o.Replicas > maxReplicas {
		c.Add("replicas", "%d is out of range: expected 1 to %d, or 0 for the default", o.Replicas, maxReplicas)
	}
	o.MaxBytes = max(o.MaxBytes, -1)
	if o.MaxBytes == 0 {
		o.MaxBytes = -1
	}
	c.DurationWithin("timeout", &o.Timeout, 5*time.Second, shortest, 10*time.Second, false)
	c.DurationWithin("start_timeout", &o.StartTimeout, time.Minute, shortest, 24*time.Hour, true)
	o.NATS.resolve(&c)
	return o, c.Err()
}

func (n *NATS) resolve(c *option.Checker) {
	if n.URL != "" && n.Embedded {
		c.Add("nats.embedded", "and nats.url are mutually exclusive")
	}
	if err := redact.Check(n.URL); err != nil {
		c.Add("nats.url", "%v", err)
		return
	}
	for _, one := range n.urls() {
		u, err := url.Parse(one)
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss" {
			c.Add("nats.url", "%.60q is not the address of a NATS server: expected one such as nats://10.0.0.1:4222", n.shown(one))
		}
	}
	ways := 0
	for _, given := range []bool{n.Credentials != "", n.NKey != "", n.User != "" || n.Password != "", n.Token != ""} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		c.Add("nats", "has several of credentials, nkey, user and token: expected at most one")
	}
	if n.Embedded && (n.Credentials != "" || n.NKey != "" || n.Token != "") {
		c.Add("nats", "has credentials, nkey or token with embedded: expected user and password")
	}
	for key, secret := range map[string]option.Secret{"password": n.Password, "token": n.Token} {
		if secret != "" && string(secret) == secret.String() {
			c.Add("nats."+key, "%s is a placeholder for a hidden secret: expected the secret itself, for example from the environment", secret)
		}
	}
	if (n.User == "") != (n.Password == "") {
		c.Add("nats.user", "and nats.password go together: expected both or none")
	}
	if (n.TLS.Cert == "") != (n.TLS.Key == "") {
		c.Add("nats.tls.cert", "and nats.tls.key go together: expected both or none")
	}
	n.resolveEmbedded(c)
}

func (n *NATS) resolveEmbedded(c *option.Checker) {
	if !n.Embedded {
		for key, given := range map[string]bool{"listen": n.Listen != "" && n.Listen != off, "routes": len(n.Routes) > 0,
			"routes_listen": n.RoutesListen != "" && n.RoutesListen != off, "store_dir": n.StoreDir != ""} {
			if given {
				c.Add("nats."+key, "needs an embedded server: expected nats.embedded: true")
			}
		}
	}
	if n.TLS.CA != "" && n.TLS.Cert == "" && n.Embedded {
		c.Add("nats.tls.cert", "is missing: embedded servers authenticate each other with certificates")
	}
	if n.Listen == "" {
		n.Listen = off
	}
	for key, address := range map[string]string{"listen": n.Listen, "routes_listen": n.RoutesListen} {
		if _, _, err := hostPort(address); address != off && address != "" && err != nil {
			c.Add("nats."+key, "%q is not an address: expected host:port, or off", redact.URL(address))
		}
	}
	if n.RoutesListen == off && len(n.Routes) > 0 {
		c.Add("nats.routes_listen", "is off: with nats.routes the others must be able to reach this server")
	}
	n.resolveExposed(c)
	for i, r := range n.Routes {
		if host, port, err := hostPort(r); err != nil || host == "" || port == 0 {
			c.Add(fmt.Sprintf("nats.routes[%d]", i), "%q is not an address: expected host:port", redact.URL(r))
		}
	}
}

// resolveExposed refuses what would let any host that reaches a port into the cluster.
func (n *NATS) resolveExposed(c *option.Checker) {
	if !n.Embedded {
		return
	}
	if err := n.Password.Check(); err != nil && string(n.Password) != n.Password.String() {
		c.Add("nats.password", "%v", err)
	}
	if n.User != "" || n.TLS.CA != "" && n.TLS.Cert != "" { // without ca, a certificate of any authority would do
		return
	}
	for _, one := range []struct{ key, address, such string }{
		{"listen", n.Listen, "127.0.0.1:4222"}, {"routes_listen", n.routesListen(), "127.0.0.1:6222"}} {
		if host, _, err := hostPort(one.address); one.address != off && err == nil && !isLoopback(host) {
			c.Add("nats."+one.key, "%s is reachable from other machines, which could join the cluster: expected nats.user with "+
				"nats.password (CARILLON_CLUSTER_NATS_PASSWORD), or nats.tls with ca, cert and key, or an address such as %s", one.address, one.such)
		}
	}
}

// routesListen is RoutesListen, or its default.
func (n *NATS) routesListen() string {
	switch {
	case n.RoutesListen != "":
		return n.RoutesListen
	case len(n.Routes) > 0:
		return ":6222"
	}
	return off
}

// isLoopback reports whether a host is this machine, for this machine only.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

func hostPort(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return host, int(n), err
}

// urls returns the servers of URL.
func (n *NATS) urls() []string {
	var list []string
	for one := range strings.SplitSeq(n.URL, ",") {
		if one = strings.TrimSpace(one); one != "" {
			list = append(list, one)
		}
	}
	return list
}

// shown returns one of the URLs without what may be a secret. One that is none may be a part of a password with a comma
// in it: then all of them are shown as one.
func (n *NATS) shown(one string) string {
	if _, err := url.Parse(one); err != nil {
		one = n.URL
	}
	return strings.Replace(redact.URL(one), redact.Hidden+"@", "", 1)
}

func isWord(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
}

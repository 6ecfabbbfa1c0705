package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/server/internal/option"
	"carillon/server/topic"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// authority makes certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.write("ca", a.cert, &a.key.PublicKey)
	return a
}

func (a *authority) write(name string, c *x509.Certificate, key *ecdsa.PublicKey) string {
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.pem(name, "CERTIFICATE", der)
}

func (a *authority) pem(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue returns the files of a certificate of this authority.
func (a *authority) issue(name string) TLS {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	cert := a.write(name, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, &key.PublicKey)
	der, _ := x509.MarshalPKCS8PrivateKey(key)
	return TLS{CA: filepath.Join(a.dir, "ca"), Cert: cert, Key: a.pem(name+".key", "PRIVATE KEY", der)}
}

// pair starts two nodes with embedded servers, each with TLS files and a password of its own.
func pair(t *testing.T, tls [2]TLS, passwords [2]string) (nodes [2]*testNode) {
	t.Helper()
	var first string
	for i := range 2 {
		o := Options{Node: fmt.Sprint("node", i), NATS: NATS{Embedded: true, RoutesListen: "127.0.0.1:0", TLS: tls[i]}}
		if passwords[i] != "" {
			o.NATS.User, o.NATS.Password = "me", option.Secret(passwords[i])
		}
		if i > 0 {
			o.NATS.Routes = []string{first}
		}
		nodes[i] = join(t, o)
		first = nodes[i].embedded.ClusterAddr().String()
	}
	return nodes
}

func TestRoutesAreProtectedByCertificatesAndPasswords(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	for _, test := range []struct {
		name      string
		tls       [2]TLS
		passwords [2]string
		refused   bool
	}{
		{"nothing", [2]TLS{}, [2]string{}, false},
		{"the same password", [2]TLS{}, [2]string{"secret-of-the-nodes", "secret-of-the-nodes"}, false},
		{"another password", [2]TLS{}, [2]string{"secret-of-the-nodes", "guess-of-a-stranger"}, true},
		{"no password", [2]TLS{}, [2]string{"secret-of-the-nodes", ""}, true},
		{"certificates of one authority", [2]TLS{ours.issue("a"), ours.issue("b")}, [2]string{"secret-of-the-nodes", "secret-of-the-nodes"}, false},
		{"a stranger's certificate", [2]TLS{ours.issue("c"), theirs.issue("d")}, [2]string{}, true},
		{"no TLS", [2]TLS{ours.issue("e"), {}}, [2]string{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := pair(t, test.tls, test.passwords)
			if !test.refused {
				nodes[0].knows(2)
				nodes[1].knows(2)
				nodes[1].follow("a")
				if err := nodes[0].publish("a", "x", 1); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it comes", func() bool { return len(nodes[1].all()) == 1 })
				return
			}
			// Both servers say why, or one of them, again and again.
			eventually(t, "the route is refused", func() bool {
				return nodes[0].refusesRoutes() || nodes[1].refusesRoutes()
			})
			if n := len(nodes[0].Nodes()); n != 1 {
				t.Errorf("%d nodes", n)
			}
		})
	}
}

func (n *testNode) refusesRoutes() bool {
	return n.log.has("authentication error") || n.log.has("Authorization Violation") || n.log.has("TLS route handshake error") || n.log.has("TLS Handshake Failure")
}

func TestANodeFindsItselfAmongTheRoutes(t *testing.T) {
	n := NATS{RoutesListen: ":6222", Routes: []string{"127.0.0.1:6222", "127.0.0.1:6223", "192.0.2.1:6222", "localhost:6222"}}
	if got, want := n.others(), []string{"127.0.0.1:6223", "192.0.2.1:6222"}; !slices.Equal(got, want) {
		t.Errorf("others are %v, want %v", got, want)
	}
}

func TestAnEmbeddedServerWithHistoryNeedsADirectory(t *testing.T) {
	_, err := tryJoin(t, Options{NATS: NATS{Embedded: true}}, topic.Rule{Match: "a", History: 1})
	if err == nil || !strings.Contains(err.Error(), "cluster.nats.store_dir: is missing") {
		t.Errorf("the error is %v", err)
	}
	dir := t.TempDir()
	n := join(t, Options{NATS: NATS{Embedded: true, StoreDir: dir}}, topic.Rule{Match: "a", History: 1})
	p, err := n.store("a", "x", "")
	if err != nil {
		t.Fatal(err)
	}
	n.leave()
	n = join(t, Options{NATS: NATS{Embedded: true, StoreDir: dir}}, topic.Rule{Match: "a", History: 1})
	if k, err := n.load("a", 0); err != nil || len(k.Messages) != 1 || k.Epoch != p.Epoch {
		t.Errorf("after a restart: %+v, %v", k, err)
	}
}

// A memory stream that was empty when a node came gives offsets of a new epoch.
func TestAStreamInMemoryThatIsLostBeginsANewEpoch(t *testing.T) {
	t.Parallel()
	s := natsAt(t, -1, t.TempDir())
	port := portOf(s.Addr())
	n := join(t, Options{Storage: "memory", NATS: NATS{URL: urlOf(s)}}, topic.Rule{Match: ">", History: 10})
	p, err := n.store("a", "1", "")
	if err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	s.WaitForShutdown()
	natsAt(t, port, t.TempDir())
	var q topic.Position
	eventually(t, "it goes on", func() bool {
		q, err = n.store("a", "2", "")
		return err == nil
	})
	if q.Epoch == p.Epoch || q.Offset != 1 {
		t.Errorf("after the loss the position is %v, before it was %v", q, p)
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, ""))}})
	r := prometheus.NewRegistry()
	r.MustRegister(n.Broker)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]string{}
	for _, f := range families {
		labels := map[string]bool{}
		for _, l := range f.Metric[0].Label {
			labels[l.GetName()] = true
		}
		left[f.GetName()] = strings.ToLower(f.GetType().String()) + " | " + strings.Join(slices.Sorted(maps.Keys(labels)), ", ")
	}
	text, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(carillon_[a-z_]+)` \\| ([a-z]+) \\| ([a-z_, ]*)\\| .{10,} \\|$").FindAllSubmatch(text, -1) {
		if name, says := string(m[1]), string(m[2])+" | "+strings.TrimSpace(string(m[3])); left[name] != says {
			t.Errorf("docs/cluster.md says that %s is %s: it is %s", name, says, left[name])
		}
		delete(left, string(m[1]))
	}
	for name := range left {
		t.Errorf("docs/cluster.md does not have %s", name)
	}
}

// A client that does not read is cut off by the embedded server, and the node's metrics say so.
func TestTheEmbeddedServersSlowConsumersAreCounted(t *testing.T) {
	n, err := tryJoinTuned(t, Options{Node: "node", NATS: NATS{Embedded: true, Listen: "127.0.0.1:0", User: "me", Password: "secret-of-the-nodes"}},
		func(o *natsserver.Options) { o.MaxPending, o.WriteDeadline = 4<<20, time.Second })
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", n.embedded.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "CONNECT {\"user\":\"me\",\"pass\":\"secret-of-the-nodes\",\"verbose\":false}\r\nSUB > 1\r\nPING\r\n"); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 1<<20)
	eventually(t, "it is cut off, and counted", func() bool {
		if err := n.publish("plain", string(text), 1); err != nil {
			t.Fatal(err)
		}
		return eventOf(n, "server_slow_consumer") > 0
	})
}

// eventOf is how often the node's metrics say that something has happened.
func eventOf(n *testNode, event string) float64 {
	metrics := make(chan prometheus.Metric, 100)
	n.Collect(metrics)
	close(metrics)
	for m := range metrics {
		var one dto.Metric
		if err := m.Write(&one); err != nil {
			n.t.Fatal(err)
		}
		for _, l := range one.Label {
			if l.GetName() == "event" && l.GetValue() == event {
				return one.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// gaugeOf is a gauge of the node's metrics.
func gaugeOf(n *testNode, name string) float64 {
	n.t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(n.Broker)
	families, err := r.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	n.t.Fatalf("there is no metric %s", name)
	return 0
}

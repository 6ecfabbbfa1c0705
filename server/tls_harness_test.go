package server

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// authority signs the certificates of a test.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var serial atomic.Int64

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.pool = x509.NewCertPool()
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate for a name, which is also good for 127.0.0.1, and its key.
func (a *authority) issue(name string) (cert, key []byte) {
	a.t.Helper()
	private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// pair writes what issue makes into files.
func (a *authority) pair(name string) Certificate {
	a.t.Helper()
	p := Certificate{filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")}
	a.renew(p, name)
	return p
}

// renew puts another certificate into the files, as a tool for that does: by new files in the place of the old.
func (a *authority) renew(p Certificate, name string) {
	a.t.Helper()
	cert, key := a.issue(name)
	a.put(p.CertFile, cert)
	a.put(p.KeyFile, key)
}

func (a *authority) put(file string, text []byte) {
	a.t.Helper()
	err := os.WriteFile(file+".new", text, 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// file writes the authority's own certificate into a file.
func (a *authority) file() string {
	name := filepath.Join(a.dir, "authority.pem")
	a.put(name, a.pem())
	return name
}

// client is how a client is set up that trusts the authority.
func (a *authority) client() *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: "127.0.0.1"}
}

// shows adds a certificate that a client can show.
func (a *authority) shows(c *tls.Config, name string) *tls.Config {
	a.t.Helper()
	pair, err := tls.X509KeyPair(a.issue(name))
	if err != nil {
		a.t.Fatal(err)
	}
	c.Certificates = append(c.Certificates, pair)
	return c
}

// overTLS makes options speak TLS as 127.0.0.1.
func (a *authority) overTLS(opts Options) Options {
	opts.TLS.Certificates = []Certificate{a.pair("server.test")}
	return opts
}

// shakeTLS opens a TLS connection.
func shakeTLS(t testing.TB, s *Server, config *tls.Config) *client {
	t.Helper()
	c := dialRaw(t, s)
	c.startTLS(config)
	return c
}

// startTLS puts TLS on top of the connection.
func (c *client) startTLS(config *tls.Config) {
	c.t.Helper()
	conn := tls.Client(c.conn, config)
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Handshake(); err != nil {
		c.t.Fatalf("TLS handshake: %v", err)
	}
	_ = conn.SetDeadline(time.Time{})
	c.conn, c.r = conn, bufio.NewReader(conn)
}

// dialTLS opens a WebSocket over TLS.
func dialTLS(t testing.TB, s *Server, config *tls.Config, path string, headers ...string) *client {
	t.Helper()
	c := shakeTLS(t, s, config)
	c.open(path, headers...)
	return c
}

// open makes the connection a WebSocket.
func (c *client) open(path string, headers ...string) {
	c.t.Helper()
	c.write([]byte(upgradeHead(path, headers...)))
	resp := c.response()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		c.t.Fatalf("handshake at %s: %s: %s", path, resp.Status, body)
	}
}

// state is that of a client's TLS.
func (c *client) state() tls.ConnectionState { return c.conn.(*tls.Conn).ConnectionState() }

// eachVersion runs a test with TLS 1.2 and 1.3.
func eachVersion(t *testing.T, test func(t *testing.T, a *authority, config *tls.Config)) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			config := a.client()
			config.MinVersion, config.MaxVersion = version, version
			test(t, a, config)
		})
	}
}

// testTLS is for tests that are not about TLS.
func testTLS() *tls.Config {
	testConfig.Do(func() {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			panic(err)
		}
		testConfig.config = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	})
	return testConfig.config
}

var testConfig struct {
	sync.Once
	config *tls.Config
}

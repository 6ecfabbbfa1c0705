package server

import (
	"crypto/tls"
	"fmt"
	"slices"

	"carillon/server/internal/certs"
)

// TLS reports whether a listener speaks TLS, as whom, and to whom. Without Certificates and Config it does not.
//
// TLS 1.2 and 1.3 are spoken, by crypto/tls with its choice of cipher suites and curves. The application
// protocol is always http/1.1: WebSockets are HTTP/1.1, and HTTP/2 is not offered. There is no renegotiation
// and no early data. Sessions are resumed by tickets, whose keys change every day and are lost when the
// program ends.
type TLS struct {
	// Certificates are what the listener shows: the first one that suits the name that a client asks for
	// (SNI) and the algorithms that it knows, or else the first one. Default: none, and so no TLS.
	//
	// The files are read again within a few seconds after one of them has changed, and by
	// [Server.ReloadTLS]. Connections that are open stay as they are. Files that cannot be used change
	// nothing; that is logged and counted.
	Certificates []Certificate `yaml:"certificates"`

	// MinVersion is "1.2", the default, or "1.3".
	MinVersion string `yaml:"min_version"`

	// ClientAuth reports whether clients show certificates. Default [ClientAuthOff].
	ClientAuth ClientAuth `yaml:"client_auth"`

	// ClientCAFile has the certificates, in PEM, of the authorities whose certificates clients may show.
	// It must be set unless ClientAuth is off, and is read again like Certificates.
	ClientCAFile string `yaml:"client_ca_file"`

	// Config is used in place of all of the above, for certificates that come from elsewhere. It is
	// copied, and the copy speaks http/1.1 alone. Its functions are called on goroutines of their own,
	// where they may block until the context of the ClientHelloInfo ends. Its KeyLogWriter must be safe
	// for concurrent use.
	Config *tls.Config `yaml:"-"`
}

// Certificate is a certificate and its key, both in PEM.
type Certificate struct {
	// CertFile has the certificate, followed by those between it and its authority's, if there are any.
	CertFile string `yaml:"cert_file"`

	// KeyFile has the private key. Default: CertFile, which then has both.
	KeyFile string `yaml:"key_file"`
}

// ClientAuth reports whether clients show certificates (mutual TLS).
type ClientAuth string

const (
	ClientAuthOff     ClientAuth = "off"     // they are not asked to
	ClientAuthRequest ClientAuth = "request" // they may: one that is shown must be good, see [Request.TLS]
	ClientAuthRequire ClientAuth = "require" // they must
)

func (o *TLS) enabled() bool { return o.Config != nil || len(o.Certificates) > 0 }

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (o *TLS) resolve(c *checker, key string) {
	if o.MinVersion == "" {
		o.MinVersion = "1.2"
	}
	if tlsVersions[o.MinVersion] == 0 {
		c.Add(key+"min_version", "%q is unknown: expected 1.2 or 1.3", o.MinVersion)
	}
	if o.ClientAuth == "" {
		o.ClientAuth = ClientAuthOff
	}
	switch o.ClientAuth {
	case ClientAuthOff:
		if o.ClientCAFile != "" {
			c.Add(key+"client_ca_file", "is set, but client_auth is off: expected %s or %s there", ClientAuthRequest, ClientAuthRequire)
		}
	case ClientAuthRequest, ClientAuthRequire:
		switch {
		case !o.enabled():
			c.Add(key+"client_auth", "is %s, but there are no certificates, and so no TLS", o.ClientAuth)
		case o.ClientCAFile == "" && o.Config == nil:
			c.Add(key+"client_ca_file", "is missing: expected a file with the CAs of client certificates")
		}
	default:
		c.Add(key+"client_auth", "%q is unknown: expected %s, %s or %s", o.ClientAuth, ClientAuthOff, ClientAuthRequest, ClientAuthRequire)
	}
	if o.Config != nil {
		o.resolveConfig(c, key)
		return
	}
	o.Certificates = slices.Clone(o.Certificates)
	for i := range o.Certificates {
		pair := &o.Certificates[i]
		if pair.KeyFile == "" {
			pair.KeyFile = pair.CertFile
		}
		if _, field, err := (*certs.Pair)(pair).Load(); err != nil {
			c.Add(fmt.Sprintf("%scertificates[%d].%s", key, i, field), "%v", err)
		}
	}
	if o.ClientCAFile != "" {
		if _, _, err := certs.LoadAuthorities(o.ClientCAFile); err != nil {
			c.Add(key+"client_ca_file", "%v", err)
		}
	}
}

func (o *TLS) resolveConfig(c *checker, key string) {
	if len(o.Certificates) > 0 || o.ClientAuth != ClientAuthOff || o.ClientCAFile != "" {
		c.Add(key+"certificates", "and their options exclude a custom Config")
	}
	if t := o.Config; len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
		c.Add(key+"certificates", "are missing, and the Config has none")
	}
}

// store returns the options as the store of certificates takes them.
func (o *TLS) store() certs.Options {
	s := certs.Options{MinVersion: tlsVersions[o.MinVersion], ClientCAFile: o.ClientCAFile, Require: o.ClientAuth == ClientAuthRequire, Config: o.Config}
	for _, pair := range o.Certificates {
		s.Pairs = append(s.Pairs, certs.Pair(pair))
	}
	return s
}

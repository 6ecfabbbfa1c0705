package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// Pair has the names of the files of a certificate and its key, both in PEM.
type Pair struct {
	CertFile string
	KeyFile  string
}

// Load reads a pair. The field is the one that an error is about.
func (p *Pair) Load() (pair tls.Certificate, field string, err error) {
	if p.CertFile == "" {
		return pair, "cert_file", fmt.Errorf("is missing: expected a PEM certificate file")
	}
	cert, err := os.ReadFile(p.CertFile)
	if err != nil {
		return pair, "cert_file", err // "open cert.pem: no such file or directory"
	}
	key, err := os.ReadFile(p.KeyFile)
	if err != nil {
		return pair, "key_file", err
	}
	pair, err = tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, "cert_file", fmt.Errorf("%s with the key in %s: %w", p.CertFile, p.KeyFile, err)
	}
	return pair, "", nil
}

// LoadAuthorities reads the certificates of authorities, and returns the text of the file, too.
func LoadAuthorities(file string) (pool *x509.CertPool, text []byte, err error) {
	if text, err = os.ReadFile(file); err != nil {
		return nil, nil, err
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%s: has no PEM certificate", file)
	}
	return pool, text, nil
}

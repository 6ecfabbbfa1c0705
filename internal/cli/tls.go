package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// trust is whose certificates a client takes from a server.
type trust struct {
	ca       string
	insecure bool
}

// caVariable stands for --ca.
const caVariable = envPrefix + "CA"

func (t *trust) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.ca, "ca", "", "trust the certificate authorities in `FILE` (PEM), for wss:// and https:// (default $CARILLON_CA, or those of the system)")
	cmd.Flags().BoolVar(&t.insecure, "insecure", false, "accept any certificate; for tests only: anyone on the path can read and change everything")
	_ = cmd.MarkFlagFilename("ca", "pem", "crt")
	cmd.MarkFlagsMutuallyExclusive("ca", "insecure")
}

// config is what the flags and the environment ask for, nil for the usual.
func (t *trust) config() (*tls.Config, error) {
	file := t.ca
	if file == "" {
		file = os.Getenv(caVariable)
	}
	switch {
	case t.insecure:
		return &tls.Config{InsecureSkipVerify: true}, nil
	case file == "":
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--ca: %s has no PEM certificate", file)
	}
	return &tls.Config{RootCAs: pool}, nil
}

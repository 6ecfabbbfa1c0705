// Package certs reads the certificates of a listener, again when their files change, and recognizes the beginning of
// TLS.
package certs

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options are those of one listener, which have been checked.
type Options struct {
	Pairs        []Pair
	MinVersion   uint16
	ClientCAFile string // empty for a listener that does not ask for certificates
	Require      bool   // the client must show one

	Config *tls.Config // in place of all of the above, if it is not nil
}

// Store has the certificates of a listener as they are now.
type Store struct {
	// Immutable.
	name    string // of the option, for the log
	options Options
	log     *slog.Logger

	outer   atomic.Pointer[tls.Config] // what a handshake begins with: it has the keys of the session tickets
	inner   atomic.Pointer[tls.Config] // what the handshake then uses: it has the certificates
	expires atomic.Int64               // see Expires

	reloads, failures atomic.Uint64

	mu          sync.Mutex
	seen        []fs.FileInfo // guarded by mu: the files when they were read last; nil for one that was not there
	authorities []byte        // guarded by mu: what is in ClientCAFile
}

// http11 is the only protocol that is offered (RFC 7301): a WebSocket begins as HTTP/1.1.
var http11 = []string{"http/1.1"}

// New reads the files. The name of the option is for the log and for errors.
func New(name string, o Options, log *slog.Logger) (*Store, error) {
	s := &Store{name: name, options: o, log: log}
	if o.Config != nil {
		s.outer.Store(withHTTP11(o.Config))
		return s, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = s.files()
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// withHTTP11 copies an application's own configuration.
func withHTTP11(own *tls.Config) *tls.Config {
	c := own.Clone()
	c.NextProtos = http11
	if choose := own.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if err != nil || chosen == nil || slices.Equal(chosen.NextProtos, http11) {
				return chosen, err
			}
			chosen = chosen.Clone()
			chosen.NextProtos = http11
			return chosen, nil
		}
	}
	return c
}

// Reloads returns how often the files were read again.
func (s *Store) Reloads() uint64 { return s.reloads.Load() }

// Failures returns how often they could not be used.
func (s *Store) Failures() uint64 { return s.failures.Load() }

// Expires returns when the first of the certificates does, in seconds since 1970; 0 is not known.
func (s *Store) Expires() int64 { return s.expires.Load() }

// Config returns what a handshake that begins now uses.
func (s *Store) Config() *tls.Config { return s.outer.Load() }

// load reads the files. The caller holds mu.
func (s *Store) load() error {
	c := &tls.Config{
		NextProtos: http11,
		MinVersion: s.options.MinVersion,
		// Small first records let a browser show a page earlier. Messages have to be complete to be shown,
		// and each record costs the client and the server their time.
		DynamicRecordSizingDisabled: true,
	}
	var first time.Time
	for _, p := range s.options.Pairs {
		pair, _, err := p.Load()
		if err != nil {
			return err
		}
		c.Certificates = append(c.Certificates, pair)
		if end := pair.Leaf.NotAfter; first.IsZero() || end.Before(first) {
			first = end
		}
	}
	var authorities []byte
	if s.options.ClientCAFile != "" {
		var err error
		if c.ClientCAs, authorities, err = LoadAuthorities(s.options.ClientCAFile); err != nil {
			return err
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if s.options.Require {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	s.inner.Store(c)
	s.expires.Store(first.Unix())
	if s.outer.Load() == nil || !bytes.Equal(authorities, s.authorities) {
		// Clients that come back with a ticket are not asked for their certificate again. So tickets from
		// before end with the authorities that were trusted then.
		s.authorities = authorities
		s.outer.Store(&tls.Config{
			NextProtos:         http11,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.inner.Load(), nil },
		})
	}
	return nil
}

// files looks at all files that load reads.
func (s *Store) files() (all []fs.FileInfo) {
	add := func(name string) {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		all = append(all, info)
	}
	for _, p := range s.options.Pairs {
		add(p.CertFile)
		add(p.KeyFile)
	}
	if s.options.ClientCAFile != "" {
		add(s.options.ClientCAFile)
	}
	return all
}

func sameFiles(a, b []fs.FileInfo) bool {
	return slices.EqualFunc(a, b, func(a, b fs.FileInfo) bool {
		if a == nil || b == nil {
			return a == nil && b == nil
		}
		return sameFile(a, b)
	})
}

// sameFile reports whether a file has not changed, as far as that can be seen without reading it.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Reload reads the files, if they have changed or anyway. Connections that are open stay as they are. On an
// error the certificates from before stay in use.
func (s *Store) Reload(anyway bool) error {
	if s.options.Config != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.files() // before they are read: what changes after that is seen the next time
	if !anyway && sameFiles(now, s.seen) {
		return nil
	}
	s.seen = now
	if err := s.load(); err != nil {
		s.failures.Add(1)
		s.log.Error("could not reload certificates; keeping the previous ones", "option", s.name, "error", err)
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.reloads.Add(1)
	s.log.Info("certificates reloaded", "option", s.name, "expires", time.Unix(s.expires.Load(), 0))
	return nil
}

package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// secure is what a listener has that speaks TLS: its certificates as they are now, and a look at their
// files. A nil one is a listener that does not.
type secure struct {
	// Immutable.
	name    string // of the option, for the log
	options TLS
	log     *slog.Logger

	outer   atomic.Pointer[tls.Config] // what a handshake begins with: it has the keys of the session tickets
	inner   atomic.Pointer[tls.Config] // what the handshake then uses: it has the certificates
	expires atomic.Int64               // when the first of the certificates does, in seconds since 1970; 0 is not known

	reloads, failures atomic.Uint64

	mu          sync.Mutex
	seen        []fs.FileInfo // guarded by mu: the files when they were read last; nil for one that was not there
	authorities []byte        // guarded by mu: what is in ClientCAFile
}

// http11 is the only protocol that is offered (RFC 7301): a WebSocket begins as HTTP/1.1.
var http11 = []string{"http/1.1"}

// newSecure takes options that have been resolved. It returns nil for a listener without TLS.
func newSecure(name string, o *TLS, log *slog.Logger) (*secure, error) {
	if !o.enabled() {
		return nil, nil
	}
	s := &secure{name: name, options: *o, log: log}
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

// config is what a handshake that begins now uses.
func (s *secure) config() *tls.Config { return s.outer.Load() }

// load reads the files. The caller holds mu.
func (s *secure) load() error {
	c := &tls.Config{
		NextProtos: http11,
		MinVersion: tlsVersions[s.options.MinVersion],
		// Small first records let a browser show a page earlier. Messages have to be complete to be shown,
		// and each record costs the client and the server their time.
		DynamicRecordSizingDisabled: true,
	}
	var first time.Time
	for _, p := range s.options.Certificates {
		pair, _, err := p.load()
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
		if c.ClientCAs, authorities, err = loadAuthorities(s.options.ClientCAFile); err != nil {
			return err
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven
		if s.options.ClientAuth == ClientAuthRequire {
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
func (s *secure) files() (all []fs.FileInfo) {
	add := func(name string) {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		all = append(all, info)
	}
	for _, p := range s.options.Certificates {
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

// sameFile says whether a file has not changed, as far as that can be seen without reading it.
func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// reload reads the files, if they have changed or anyway. Connections that are open stay as they are. On an
// error the certificates from before stay in use.
func (s *secure) reload(anyway bool) error {
	if s == nil || s.options.Config != nil {
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
		s.log.Error("certificates were not reloaded: those from before stay in use", "option", s.name, "error", err)
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.reloads.Add(1)
	s.log.Info("certificates reloaded", "option", s.name, "expires", time.Unix(s.expires.Load(), 0))
	return nil
}

// lookEvery is how often the files of certificates are looked at.
const lookEvery = 2 * time.Second

// loadCertificates reads them for all listeners.
func (s *Server) loadCertificates() (err error) {
	o := s.opts()
	for i, l := range s.listeners {
		name, settings := "tls", &o.TLS
		if i > 0 {
			name, settings = fmt.Sprintf("listeners[%d].tls", i-1), &o.Listeners[i-1].TLS
		}
		if l.secure, err = newSecure(name, settings, s.log); err != nil {
			return err
		}
	}
	s.internalSecure, err = newSecure("internal.tls", &o.Internal.TLS, s.log)
	return err
}

// allSecure are those of all listeners, nil for one without TLS, by the names that metrics have for them.
func (s *Server) allSecure() iter.Seq2[string, *secure] {
	return func(yield func(string, *secure) bool) {
		for i, l := range s.listeners {
			name := "public"
			if i > 0 {
				name = fmt.Sprintf("listeners[%d]", i-1)
			}
			if !yield(name, l.secure) {
				return
			}
		}
		yield("internal", s.internalSecure)
	}
}

func (s *Server) speaksTLS() bool {
	for _, one := range s.allSecure() {
		if one != nil {
			return true
		}
	}
	return false
}

// watchCertificates looks at the files until ctx ends. A file system may keep it waiting, so nobody else
// does.
func (s *Server) watchCertificates(ctx context.Context) {
	if !s.speaksTLS() {
		return
	}
	every(ctx, s.ops.lookEvery, func() {
		for _, one := range s.allSecure() {
			_ = one.reload(false) // says itself what is wrong
		}
	})
}

// ReloadTLS reads all certificates again now, whether their files have changed or not. Connections that are
// open stay as they are. For a listener whose files cannot be used those from before stay in use, and the
// error says why.
func (s *Server) ReloadTLS() error {
	var problems []error
	for _, one := range s.allSecure() {
		problems = append(problems, one.reload(true))
	}
	return errors.Join(problems...)
}

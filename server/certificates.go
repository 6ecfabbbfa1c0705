package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"carillon/server/internal/certs"
	"carillon/server/internal/reactor"
)

// lookEvery is how often the files of certificates are looked at.
const lookEvery = 2 * time.Second

// loadCertificates reads them for all listeners.
func (s *Server) loadCertificates() (err error) {
	o := s.opts()
	for i, l := range s.engine.Listeners {
		name, settings := "tls", &o.TLS
		if i > 0 {
			name, settings = fmt.Sprintf("listeners[%d].tls", i-1), &o.Listeners[i-1].TLS
		}
		if l.Certs, err = newCerts(name, settings, s.log); err != nil {
			return err
		}
	}
	s.internalCerts, err = newCerts("internal.tls", &o.Internal.TLS, s.log)
	return err
}

// newCerts returns nil for a listener without TLS.
func newCerts(name string, o *TLS, log *slog.Logger) (*certs.Store, error) {
	if !o.enabled() {
		return nil, nil
	}
	return certs.New(name, o.store(), log)
}

// allCerts are those of all listeners, nil for one without TLS, by the names that metrics have for them.
func (s *Server) allCerts() iter.Seq2[string, *certs.Store] {
	return func(yield func(string, *certs.Store) bool) {
		for i, l := range s.engine.Listeners {
			name := "public"
			if i > 0 {
				name = fmt.Sprintf("listeners[%d]", i-1)
			}
			if !yield(name, l.Certs) {
				return
			}
		}
		yield("internal", s.internalCerts)
	}
}

func (s *Server) speaksTLS() bool {
	for _, one := range s.allCerts() {
		if one != nil {
			return true
		}
	}
	return false
}

// watchCertificates looks at the files until ctx ends. A file system may keep it waiting, so no other goroutine does
// this.
func (s *Server) watchCertificates(ctx context.Context) {
	if !s.speaksTLS() {
		return
	}
	reactor.Every(ctx, s.ops.lookEvery, func() {
		for _, one := range s.allCerts() {
			if one != nil {
				_ = one.Reload(false) // says itself what is wrong
			}
		}
	})
}

// ReloadTLS reads all certificates again now, whether their files have changed or not. Connections that are
// open stay as they are. For a listener whose files cannot be used those from before stay in use, and the
// error says why.
func (s *Server) ReloadTLS() error {
	var problems []error
	for _, one := range s.allCerts() {
		if one != nil {
			problems = append(problems, one.Reload(true))
		}
	}
	return errors.Join(problems...)
}

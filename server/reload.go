package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"carillon/server/internal/auth"
	"carillon/server/internal/reactor"
)

// ErrDraining is returned by Reload while the server drains: it ends with the options that it has.
var ErrDraining = errors.New("the server is draining and keeps its options")

// Changes are the keys, as in the configuration file, whose values a reload found to be others than those
// in force. Lists count as one key, but for endpoints: "topics", "endpoints[1].origins".
type Changes struct {
	// Applied are in force now.
	Applied []string

	// Restart are as they were: only a new start can change them. "endpoints[2]" is an endpoint that is not
	// served yet, and "endpoints" is one that is not in the options any more and still served.
	Restart []string
}

// restartKeys are the keys that only a new start can change. All others can be changed while the server
// runs.
var restartKeys = []string{
	"listen", "listen_mode", "listeners", "takeover", "loops", "internal.listen", "internal.mode", "agent.listen",
	"tls", "internal.tls",
	"endpoints[].path", "endpoints[].mode", "endpoints[].subprotocols", "endpoints[].compression.enabled",
}

var listIndex = regexp.MustCompile(`\[\d+\]`)

// NeedsRestart reports whether a key of the configuration file, such as "endpoints[1].mode" or
// "endpoints[].mode", is read at the start only.
func NeedsRestart(key string) bool {
	key = listIndex.ReplaceAllString(key, "[]")
	return slices.ContainsFunc(restartKeys, func(k string) bool {
		return key == k || strings.HasPrefix(key, k+".") || strings.HasPrefix(key, k+"[]")
	})
}

// Reload puts other options in force while the server runs: those that read returns. Loops take them up
// with their next turn, and no connection is closed for it; docs/operations.md says for each key what it
// means for those that are open. What cannot change without a restart stays as it is and is reported.
// What is code (Options.HTTP, Logger, Broker, LogLost, LogLevel, Internal.Debug, TLS.Config,
// Endpoint.Handler) are always those that New was given; endpoints are told from each other by their paths.
// Certificates are read again, see [Server.ReloadTLS].
//
// When read fails, the options are invalid, by themselves or together with what cannot change, or keys for
// tokens cannot be fetched, nothing changes. The error joins all problems, those of options as one
// [OptionError] each. While the server drains it is [ErrDraining].
//
// Reloads come one after the other, read included. One waits up to 3 seconds for keys that have to be
// fetched. Reload must not be called from a handler.
func (s *Server) Reload(read func() (Options, error)) (Changes, error) {
	r := &s.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	changes, err := s.reload(read)
	if err != ErrDraining {
		r.note(time.Now(), err)
	}
	return changes, err
}

func (s *Server) reload(read func() (Options, error)) (Changes, error) {
	if s.drainState.begun() {
		return Changes{}, ErrDraining
	}
	wanted, err := read()
	if err != nil {
		return Changes{}, err
	}
	before := s.settings()
	keepCode(&wanted, &before.Options)
	if wanted, err = wanted.Resolve(); err != nil {
		return Changes{}, err
	}
	wanted.Loops = loopsOf(&wanted)
	merged, places, changes := mergeOptions(&before.Options, &wanted)
	if merged, err = merged.Resolve(); err != nil { // what is new may not go with what stays
		return Changes{}, err
	}
	now, err := s.settle(merged, before, places)
	err = errors.Join(err, s.fits(now))
	if err == nil {
		err = s.fetchKeys(before, now, places)
	}
	if err != nil {
		return Changes{}, err
	}
	s.putInForce(now)
	s.warn(&now.Options)
	s.follow(before, now)
	return changes, nil
}

// keepCode puts the functions and handlers that the server has into options that were read somewhere.
func keepCode(o, running *Options) {
	o.HTTP, o.Logger, o.LogLost, o.LogLevel, o.Internal.Debug = running.HTTP, running.Logger, running.LogLost, running.LogLevel, running.Internal.Debug
	o.TLS.Config, o.Internal.TLS.Config = running.TLS.Config, running.Internal.TLS.Config
	o.Broker = running.Broker
	o.Listeners = slices.Clone(o.Listeners)
	for i := range min(len(o.Listeners), len(running.Listeners)) {
		o.Listeners[i].TLS.Config = running.Listeners[i].TLS.Config
	}
	o.Endpoints = slices.Clone(o.Endpoints)
	for i := range o.Endpoints {
		if j := placeOf(running.Endpoints, o.Endpoints[i].Path); j >= 0 {
			o.Endpoints[i].Handler = running.Endpoints[j].Handler
		}
	}
}

func placeOf(list []Endpoint, path string) int {
	return slices.IndexFunc(list, func(e Endpoint) bool { return e.Path == path })
}

// mergeOptions puts what may change of the wanted options into those that are in force. Places says for
// each endpoint where it stands in the wanted options, or else in the running ones.
func mergeOptions(running, wanted *Options) (merged Options, places []int, changes Changes) {
	merged = *wanted
	merged.Endpoints = slices.Clone(running.Endpoints)
	if running.Broker != nil && !slices.Equal(running.Topics, wanted.Topics) { // what is kept, and how, is the cluster's
		changes.Restart = append(changes.Restart, "topics")
		merged.Topics = running.Topics
	}
	changes.merge(reflect.ValueOf(running).Elem(), reflect.ValueOf(&merged).Elem(), "")
	gone := false
	for i := range merged.Endpoints {
		j := placeOf(wanted.Endpoints, merged.Endpoints[i].Path)
		if j < 0 {
			places, gone = append(places, i), true
			continue
		}
		places = append(places, j)
		merged.Endpoints[i] = wanted.Endpoints[j]
		changes.merge(reflect.ValueOf(&running.Endpoints[i]).Elem(), reflect.ValueOf(&merged.Endpoints[i]).Elem(), fmt.Sprintf("endpoints[%d].", j))
	}
	for j := range wanted.Endpoints {
		if placeOf(running.Endpoints, wanted.Endpoints[j].Path) < 0 {
			changes.Restart = append(changes.Restart, fmt.Sprintf("endpoints[%d]", j))
		}
	}
	if gone {
		changes.Restart = append(changes.Restart, "endpoints")
	}
	return merged, places, changes
}

// merge notes the keys in which two structs differ, and gives those that need a restart their old values
// back.
func (ch *Changes) merge(running, wanted reflect.Value, prefix string) {
	for i := range wanted.NumField() {
		key := wanted.Type().Field(i).Tag.Get("yaml")
		was, is := running.Field(i), wanted.Field(i)
		switch {
		case key == "-" || prefix == "" && key == "endpoints":
		case is.Kind() == reflect.Struct:
			ch.merge(was, is, prefix+key+".")
		case is.Kind() == reflect.Slice && is.Len() == 0 && was.Len() == 0, reflect.DeepEqual(was.Interface(), is.Interface()):
		case NeedsRestart(prefix + key):
			ch.Restart = append(ch.Restart, prefix+key)
			is.Set(was)
		default:
			ch.Applied = append(ch.Applied, prefix+key)
		}
	}
}

// fits checks new settings against what the server has found when it began to listen.
func (s *Server) fits(now *settings) error {
	var problems []error
	if s.reloads.room.Total > 0 {
		var err error
		if now.loops.MaxSockets, err = s.reloads.room.Sockets(now.Limits.MaxConnections); err != nil {
			problems = append(problems, err)
		}
	}
	if s.reloads.exposed && now.Internal.Token == "" { // localhost may be anything
		problems = append(problems, &OptionError{Key: "internal.token", Problem: "is missing: internal.listen is reachable from other machines"})
	}
	return errors.Join(problems...)
}

// follow does what new settings require beyond being read.
func (s *Server) follow(before, now *settings) {
	s.watchNow(now)
	_ = s.ReloadTLS() // says itself what is wrong
	for i, old := range before.endpoints {
		if old.auth != now.endpoints[i].auth {
			old.auth.Retire()
		}
	}
	if !reflect.DeepEqual(before.Topics, now.Topics) {
		s.hub.Rule()
	}
	if s.plain != nil && (before.Limits.MaxHead != now.Limits.MaxHead || before.Limits.HandshakeTimeout != now.Limits.HandshakeTimeout) {
		s.plain.renew()
	}
	for _, sh := range s.engine.AllShards() {
		sh.PostTick()
	}
}

// reloads is what the server knows of them, and what they need to know of it.
type reloads struct {
	mu sync.Mutex // held while one is done, and guards what follows

	alive   context.Context // keys are watched until it ends; nil before the server runs
	watched map[*auth.Keyring]context.CancelFunc
	room    reactor.Room
	exposed bool // internal.listen can be reached from other machines

	// Written under mu, read without it.
	done   [numReloadResults]atomic.Uint64
	good   atomic.Bool  // the last one was
	goodAt atomic.Int64 // when one was for the last time, in milliseconds since 1970
}

const (
	reloadSuccess = iota
	reloadFailure
	numReloadResults
)

var reloadResults = [numReloadResults]string{"success", "failure"}

// begin counts the options of the start for good ones.
func (r *reloads) begin(now time.Time) {
	r.good.Store(true)
	r.goodAt.Store(now.UnixMilli())
}

func (r *reloads) note(now time.Time, err error) {
	result := reloadSuccess
	if err != nil {
		result = reloadFailure
	} else {
		r.goodAt.Store(now.UnixMilli())
	}
	r.good.Store(err == nil)
	r.done[result].Add(1)
}

// fetchKeys waits for the keys of authenticators that are new and whose keys have to be fetched.
func (s *Server) fetchKeys(before, now *settings, places []int) error {
	ctx, cancel := context.WithTimeout(cmp.Or(s.reloads.alive, context.Background()), firstKeys)
	defer cancel()
	var fetches sync.WaitGroup
	problems := make([]error, len(now.endpoints))
	for i, e := range now.endpoints {
		if k := e.auth.Keys(); k != nil && k != before.endpoints[i].auth.Keys() && k.IsRemote() {
			fetches.Go(func() {
				if err := k.Load(ctx); err != nil {
					problems[i] = &OptionError{Key: fmt.Sprintf("endpoints[%d].auth.jwt.jwks_url", places[i]), Problem: "no keys could be fetched: " + err.Error()}
				}
			})
		}
	}
	fetches.Wait()
	return errors.Join(problems...)
}

// watchNow has the keys of these settings kept new, and no others. The caller holds reloads.mu.
func (s *Server) watchNow(now *settings) {
	r := &s.reloads
	if r.alive == nil {
		return
	}
	wanted := map[*auth.Keyring]bool{}
	for _, e := range now.endpoints {
		keys := e.auth.Keys()
		if keys == nil {
			continue
		}
		wanted[keys] = true
		if r.watched[keys] == nil {
			ctx, cancel := context.WithCancel(r.alive)
			r.watched[keys] = cancel
			go keys.Watch(ctx)
		}
	}
	for keys, cancel := range r.watched {
		if !wanted[keys] {
			cancel()
			delete(r.watched, keys)
		}
	}
}

// isExposed reports whether an address can be reached from other machines.
func isExposed(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return !(ok && tcp.IP.IsLoopback())
}

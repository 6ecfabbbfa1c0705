// Package admin is the internal HTTP interface of a server, for services that publish and for operators: its routes,
// its problems, and openapi.json, which describes them. It knows the server only as a [Backend].
package admin

import (
	"crypto/subtle"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"carillon/server/internal/envelope"
	"carillon/server/internal/logs"
	"carillon/server/topic"
)

// openAPI describes the interface; a test holds it against what the interface does.
//
//go:embed openapi.json
var openAPI []byte

// api is the internal HTTP interface.
type api struct {
	backend Backend
	mux     http.ServeMux
	metrics http.Handler
	origins *http.CrossOriginProtection // for when there is no token, which no page from elsewhere has
}

// route is one thing that the interface does. What serve returns is answered as a problem.
type route struct {
	method string
	path   string // a pattern of http.ServeMux
	serve  func(*api, http.ResponseWriter, *http.Request) error
}

var routes = []route{
	{"POST", "/v1/messages", (*api).publishBatch},
	{"POST", "/v1/broadcast", (*api).broadcast},
	{"GET", "/v1/topics", (*api).topics},
	{"GET", "/v1/topics/{topic}", (*api).topic},
	{"GET", "/v1/topics/{topic}/messages", (*api).history},
	{"POST", "/v1/topics/{topic}/messages", (*api).publish},
	{"GET", "/v1/nodes", (*api).nodes},
	{"GET", "/v1/connections", (*api).connections},
	{"GET", "/v1/connections/{id}", (*api).connection},
	{"DELETE", "/v1/connections/{id}", (*api).closeConnection},
	{"GET", "/v1/drain", (*api).drainStatus},
	{"POST", "/v1/drain", (*api).startDrain},
	{"DELETE", "/v1/drain", (*api).cancelDrain},
	{"GET", "/v1/maintenance", (*api).maintenance},
	{"PUT", "/v1/maintenance", (*api).setMaintenance},
	{"GET", "/v1/memory", (*api).memory},
	{"GET", "/v1/log", (*api).logLevel},
	{"PUT", "/v1/log", (*api).setLogLevel},
	{"GET", "/v1/version", (*api).version},
	{"GET", "/v1/openapi.json", (*api).describe},
	{"GET", "/metrics", (*api).showMetrics},
	{"GET", livePath, (*api).live},
	{"GET", readyPath, (*api).ready},
}

// The probes of orchestrators and balancers send no token, and are answered nothing that needs one.
const (
	livePath  = "/livez"
	readyPath = "/readyz"
)

// New returns the interface to a server. metrics serves /metrics, and debug, which may be nil, the paths below /debug/.
func New(b Backend, metrics, debug http.Handler) http.Handler {
	a := &api{backend: b, metrics: metrics, origins: http.NewCrossOriginProtection()}
	byPath := map[string][]route{}
	for _, r := range routes {
		byPath[r.path] = append(byPath[r.path], r)
	}
	for pattern, list := range byPath {
		a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { a.dispatch(list, w, r) })
	}
	if debug != nil {
		a.mux.Handle("/debug/", debug)
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { noPath(w, r) })
	return a
}

func noPath(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, problemPath.because("no route for %.100q: see /v1/openapi.json", r.URL.Path))
}

// ServeHTTP checks what is the same for every request.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer a.rescue(w, r)
	if p := a.admit(r); p != nil {
		writeProblem(w, p)
		return
	}
	if p := r.URL.EscapedPath(); p == "" || p[0] != '/' || strings.TrimSuffix(p, "/") != strings.TrimSuffix(path.Clean(p), "/") {
		noPath(w, r) // the mux would redirect
		return
	}
	a.mux.ServeHTTP(w, r)
}

// admit says why a request is not let in, or returns nil.
func (a *api) admit(r *http.Request) *problem {
	if r.URL.Path == livePath || r.URL.Path == readyPath {
		return nil
	}
	secret := a.backend.Token()
	if secret == "" {
		if err := a.origins.Check(r); err != nil {
			return problemOrigin.because("the request was caused by a page of another origin")
		}
		return nil
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return problemToken.because("expected the header Authorization: Bearer TOKEN")
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(secret)) != 1 {
		return problemToken.because("wrong token")
	}
	return nil
}

// dispatch calls the route of a path that has the request's method.
func (a *api) dispatch(list []route, w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves the body out
	}
	i := slices.IndexFunc(list, func(r route) bool { return r.method == method })
	if i < 0 {
		allowed := allowedMethods(list)
		p := problemMethod.because("expected %s", allowed)
		p.header = [][2]string{{"Allow", allowed}}
		writeProblem(w, p)
		return
	}
	if err := list[i].serve(a, w, r); err != nil {
		a.failed(w, r, err)
	}
}

func allowedMethods(list []route) string {
	var allowed []string
	for _, r := range list {
		allowed = append(allowed, r.method)
		if r.method == http.MethodGet {
			allowed = append(allowed, http.MethodHead)
		}
	}
	return strings.Join(allowed, ", ")
}

func (a *api) failed(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p == nil {
		if r.Context().Err() != nil {
			return // the client has gone
		}
		a.backend.LogError("internal interface: unexpected error", "method", logs.Shorten(r.Method), "path", logs.Shorten(r.URL.Path), "error", logs.Shorten(err.Error()))
		p = problemInternal
	}
	writeProblem(w, p)
}

// rescue answers a request whose handler panicked, which must not end more than that.
func (a *api) rescue(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	a.backend.LogError("internal interface: panic", "method", logs.Shorten(r.Method), "path", logs.Shorten(r.URL.Path), "panic", logs.Shorten(fmt.Sprint(p)), "stack", string(debug.Stack()))
	writeProblem(w, problemInternal)
}

// parameters reads the query. One that the route does not know is likely a misspelt one.
func parameters(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad("the query is malformed")
	}
	for name, values := range query {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				return nil, bad("the parameter %.40q is unknown: expected none", name)
			}
			return nil, bad("the parameter %.40q is unknown: expected %s", name, strings.Join(known, ", "))
		}
		if len(values) > 1 {
			return nil, bad("the parameter %s is given %d times", name, len(values))
		}
	}
	return query, nil
}

// The number of entries of a page.
const (
	usualPage = 100
	maxPage   = 1000
)

func limitOf(query url.Values) (int, error) {
	text := query.Get("limit")
	if text == "" {
		return usualPage, nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 || limit > maxPage {
		return 0, bad("limit=%.40q: expected a whole number from 1 to %d", text, maxPage)
	}
	return limit, nil
}

// reply answers 200 with JSON.
func reply(w http.ResponseWriter, value any) error {
	replyBytes(w, append(envelope.AppendJSON(nil, value), '\n'))
	return nil
}

var contentJSON = []string{"application/json"}

func replyBytes(w http.ResponseWriter, body []byte) {
	w.Header()["Content-Type"] = contentJSON
	_, _ = w.Write(body)
}

func (a *api) describe(w http.ResponseWriter, r *http.Request) error {
	if _, err := parameters(r); err != nil {
		return err
	}
	replyBytes(w, openAPI)
	return nil
}

// topicOf is the topic in the request's path.
func topicOf(r *http.Request) (string, error) {
	name := r.PathValue("topic")
	return name, topic.Check(name)
}

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"carillon/server/internal/admin"
)

// withAPI is a server with an internal interface on a free port.
func withAPI(t testing.TB, opts Options) *Server {
	t.Helper()
	opts.Internal.Listen = "127.0.0.1:0"
	if opts.Endpoints == nil {
		opts.Endpoints = append(echoAndBroadcast(), topicsEndpoint())
	}
	return start(t, opts)
}

// answer is what the interface says.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// problem is an error of the interface.
type problem struct {
	Type    string
	Title   string
	Status  int
	Detail  string
	Reasons []admin.Condition
}

// into decodes the body.
func (a answer) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
}

func (a answer) is(t *testing.T, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("answered %d %s, want %d", a.status, a.body, status)
	}
	return a
}

// isProblem checks an error's type and that its detail has some words.
func (a answer) isProblem(t *testing.T, status int, name, words string) answer {
	t.Helper()
	var p problem
	a.is(t, status).into(t, &p)
	if p.Type != "/problems/"+name || p.Status != status || p.Title == "" || !strings.Contains(p.Detail, words) {
		t.Fatalf("answered %s, want the problem %s with %q", a.body, name, words)
	}
	if got := a.header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %s", got)
	}
	return a
}

// call sends a request to the interface. Headers are written "Name: value". Whatever is answered is held
// against openapi.json.
func call(t *testing.T, s *Server, method, path, body string, headers ...string) answer {
	t.Helper()
	return callAt(t, s.InternalAddr().String(), method, path, strings.NewReader(body), headers...)
}

func callAt(t *testing.T, address, method, path string, body io.Reader, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+address+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if r.Header.Set(name, value); name == "Host" {
			r.Host = value
		}
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	described(t, r, a)
	return a
}

const (
	asJSON   = "Content-Type: application/json"
	asText   = "Content-Type: text/plain; charset=UTF-8"
	asBinary = "Content-Type: application/octet-stream"
	asLines  = "Content-Type: application/x-ndjson"
)

const openAPIFile = "internal/admin/openapi.json"

// document is openapi.json, loaded and checked.
func document(t *testing.T) (*openapi3.T, routers.Router) {
	t.Helper()
	if err := loadDocument(); err != nil {
		t.Fatal(err)
	}
	return loaded.doc, loaded.router
}

var loaded struct {
	doc    *openapi3.T
	router routers.Router
}

var loadDocument = sync.OnceValue(func() (err error) {
	if loaded.doc, err = openapi3.NewLoader().LoadFromFile(openAPIFile); err != nil {
		return err
	}
	if err = loaded.doc.Validate(context.Background()); err != nil {
		return err
	}
	loaded.router, err = gorillamux.NewRouter(loaded.doc)
	return err
})

// described fails the test unless openapi.json allows this answer to this request.
func described(t *testing.T, r *http.Request, a answer) {
	t.Helper()
	doc, router := document(t)
	if a.status >= 400 {
		var p any
		if err := json.Unmarshal(a.body, &p); err != nil && r.Method != http.MethodHead {
			t.Fatalf("%d %s: %v", a.status, a.body, err)
		}
		if err := doc.Components.Schemas["Problem"].Value.VisitJSON(p, openapi3.EnableJSONSchema2020()); err != nil && r.Method != http.MethodHead {
			t.Fatalf("%s is no problem: %v", a.body, err)
		}
	}
	u, _ := url.Parse(r.URL.RequestURI())
	in := &http.Request{Method: r.Method, URL: u, Header: r.Header}
	route, parameters, err := router.FindRoute(in)
	if err != nil {
		if a.status < 400 && r.Method != http.MethodHead {
			t.Fatalf("openapi.json has no %s %s, which is answered %d", r.Method, r.URL, a.status)
		}
		return
	}
	options := &openapi3filter.Options{IncludeResponseStatus: true, ExcludeRequestBody: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	request := &openapi3filter.RequestValidationInput{Request: in, PathParams: parameters, Route: route, Options: options}
	if a.status < 400 {
		if err := openapi3filter.ValidateRequest(t.Context(), request); err != nil {
			t.Fatalf("%s %s is answered %d, but by openapi.json it is wrong: %v", r.Method, r.URL, a.status, err)
		}
	}
	err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: request, Status: a.status, Header: a.header,
		Body: io.NopCloser(bytes.NewReader(a.body)), Options: options,
	})
	if err != nil {
		t.Fatalf("%s %s is answered %d %s, which is not as in openapi.json: %v", r.Method, r.URL, a.status, a.body, err)
	}
}

// It is served as it is.
func TestOpenAPIIsServed(t *testing.T) {
	s := withAPI(t, Options{})
	text, err := os.ReadFile(openAPIFile)
	if a := call(t, s, "GET", "/v1/openapi.json", "").is(t, 200); err != nil || !bytes.Equal(a.body, text) {
		t.Errorf("it is served as %.100s, %v", a.body, err)
	}
}

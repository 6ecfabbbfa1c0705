package e2e

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"carillon/internal/testenv"
)

// ask sends a request to a running program and returns the body of the answer, which must be 200.
func ask(t *testing.T, method, url, body string) string {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s %s: %s %s, %v", method, url, resp.Status, text, err)
	}
	return string(text)
}

// An operator looks at a running program, turns its log up, and finds what a client does there.
func TestAnOperatorsDay(t *testing.T) {
	p := start(t, nil)
	ws := wsURL.FindString(p.until("/echo "))
	at := internalURL.FindString(p.until("Internal HTTP interface, local only, without a token: http://"))
	p.until("Stop with")
	public := "http" + strings.TrimSuffix(strings.TrimPrefix(ws, "ws"), "/echo")
	for url, want := range map[string]string{
		public + "/healthz":                    "ok\n",
		at + "/readyz":                         `{"status":"ok"}` + "\n",
		at + "/livez":                          `{"status":"ok"}` + "\n",
		at + "/v1/log":                         `{"level":"info"}` + "\n",
		at + "/metrics":                        "carillon_build_info{go_version=\"go",
		at + "/debug/pprof/":                   "goroutine",
		at + "/debug/pprof/goroutine?debug=1":  "goroutine profile: total ",
		at + "/debug/pprof/cmdline":            "carillon",
		at + "/debug/pprof/profile?seconds=1":  "\x1f\x8b",
		at + "/debug/pprof/trace?seconds=0.05": "go 1.",
		at + "/debug/pprof/symbol?0x401000":    "num_symbols: 1",
	} {
		if got := ask(t, "GET", url, ""); !strings.Contains(got, want) {
			t.Errorf("%s: %.200q, want %q", url, got, want)
		}
	}
	var build struct{ Version, Go, Platform string }
	if err := json.Unmarshal([]byte(ask(t, "GET", at+"/v1/version", "")), &build); err != nil {
		t.Fatal(err)
	}
	if _, version, _ := start(t, nil, "version").end(); !strings.HasSuffix(version, build.Go+" "+build.Platform+"\n") || build.Version == "" {
		t.Errorf("the build is %+v, the version %s", build, version)
	}
	ask(t, "PUT", at+"/v1/log", `{"level":"debug"}`)
	alice := dial(t, ws)
	_ = alice.Close()
	ask(t, "PUT", at+"/v1/maintenance", `{"on":true}`)
	if resp, err := http.Get(public + "/healthz"); err != nil || resp.StatusCode != 503 {
		t.Errorf("under maintenance: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	p.signal(syscall.SIGTERM)
	_, _, stderr := p.end()
	for _, words := range []string{`msg="log level" was=INFO is=DEBUG`, `msg="connection opened"`, "path=/echo", "msg=maintenance on=true"} {
		if !strings.Contains(stderr, words) {
			t.Errorf("%s is not in the log:\n%s", words, stderr)
		}
	}
}

// The public port has no profiles: those of net/http/pprof are in http.DefaultServeMux too.
func TestNoProfilesInPublic(t *testing.T) {
	p := start(t, nil)
	ws := wsURL.FindString(p.until("/echo "))
	public := "http" + strings.TrimSuffix(strings.TrimPrefix(ws, "ws"), "/echo")
	for _, path := range []string{"/debug/pprof/", "/metrics", "/readyz", "/v1/version"} {
		resp, err := http.Get(public + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 404 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// The port for HAProxy is where the configuration says.
func TestTheAgentAnswers(t *testing.T) {
	address := testenv.Address(t)
	p := start(t, []string{"CARILLON_AGENT_LISTEN=" + address})
	p.until("HAProxy agent checks: " + address)
	p.until("Stop with")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if line, err := io.ReadAll(conn); err != nil || string(line) != "ready up 100%\n" {
		t.Errorf("%q, %v", line, err)
	}
}

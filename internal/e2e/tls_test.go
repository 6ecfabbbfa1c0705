package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// The program serves both its ports over TLS, and its own clients talk to it, if they are told whom to trust.
func TestProgramOverTLS(t *testing.T) {
	cert, key := testenv.KeyPair(t)
	pair := fmt.Sprintf("[{cert_file: %q, key_file: %q}]", cert, key)
	p := start(t, []string{"CARILLON_TLS_CERTIFICATES=" + pair, "CARILLON_INTERNAL_TLS_CERTIFICATES=" + pair})
	url := strings.Fields(p.until("/ws"))[0]
	page, _, _ := strings.Cut(strings.TrimPrefix(p.until("in a browser"), "Open "), " ")
	api := regexp.MustCompile(`https://[^/]+`).FindString(p.until("Internal HTTP interface"))
	p.until("Stop with")
	if !strings.HasPrefix(url, "wss://127.0.0.1:") || !strings.HasPrefix(page, "https://127.0.0.1:") {
		t.Fatalf("it announces %s, %s and %s", url, page, api)
	}

	tail := start(t, nil, "tail", "--url", url, "--ca", cert, "--count", "1", "--output", "text", "news")
	told := false
	for !told { // until it is subscribed
		status, stdout, stderr := start(t, []string{"CARILLON_API=" + api, "CARILLON_CA=" + cert}, "publish", "news", "hello").end()
		if status != 0 {
			t.Fatalf("publish: %d, %s%s", status, stdout, stderr)
		}
		told = strings.Contains(stdout, "1 subscriber")
	}
	if status, stdout, stderr := tail.end(); status != 0 || !strings.Contains(stdout, "hello") {
		t.Errorf("tail: %d, %s%s", status, stdout, stderr)
	}
	for _, row := range []struct {
		args   string
		env    string
		status int
		says   string
	}{
		{"connect --wait 0s --ca " + cert + " " + strings.Replace(url, "/ws", "/echo", 1), "", 0, ""},
		{"connect --wait 0s --insecure " + strings.Replace(page, "https", "wss", 1) + "echo", "", 0, ""},
		{"connect " + url, "", 1, "the server's certificate is not trusted"},
		{"connect --ca /nowhere " + url, "", 2, "--ca: open /nowhere: no such file"},
		{"connect --ca " + key + " " + url, "", 2, "has no PEM certificate"},
		{"connect " + strings.Replace(url, "wss", "ws", 1), "", 1, "this port speaks TLS"},
		{"health --api " + api + " --ca " + cert, "", 0, "ok"},
		{"health --ready", "CARILLON_CA=" + cert + "\nCARILLON_API=" + api, 0, "ok"},
		{"health --api " + api, "", 1, "certificate"},
		{"health --api " + strings.Replace(api, "https", "http", 1), "", 1, "400"},
	} {
		status, stdout, stderr := start(t, strings.Split(row.env, "\n"), strings.Fields(row.args)...).end()
		if status != row.status || !strings.Contains(stdout+stderr, row.says) {
			t.Errorf("%s: %d, %s%s", row.args, status, stdout, stderr)
		}
	}

	curl := testenv.Program(t, "curl")
	for _, version := range []string{"1.2", "1.3"} {
		out, err := exec.Command(curl, "-sS", "--cacert", cert, "--tlsv"+version, "--tls-max", version, "--max-time", "20",
			"-w", "%{http_version} %{http_code}", page+"healthz").CombinedOutput()
		if err != nil || string(out) != "ok\n1.1 200" {
			t.Errorf("curl with TLS %s: %s, %v", version, out, err)
		}
	}
}

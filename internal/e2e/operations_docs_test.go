package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// The commands in docs/operations.md, each after the one before, do what they are for.
func TestOperationsCommands(t *testing.T) {
	testenv.Program(t, "curl")
	sysctl := testenv.Program(t, "sysctl")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := "endpoints: [{path: /ws, mode: topics}]\ndrain: {delay: 1m}\n"
	if err := os.WriteFile(filepath.Join(dir, "carillon.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, nil, "--config", filepath.Join(dir, "carillon.yaml"))
	public := strings.TrimPrefix(wsURL.FindString(p.until("/ws ")), "ws://")
	internal := strings.TrimPrefix(internalURL.FindString(p.until("Internal HTTP interface")), "http://")
	p.until("Stop with")
	here := strings.NewReplacer("127.0.0.1:8080", strings.TrimSuffix(public, "/ws"), "127.0.0.1:8081", internal)

	command := regexp.MustCompile(`(?m)^    ((curl|carillon|go|sysctl|sh) .*)$`)
	n := 0
	for _, m := range command.FindAllStringSubmatch(string(text), -1) {
		if m[1] == "carillon --config carillon.yaml" {
			continue // it runs
		}
		n++
		cmd := exec.Command("sh", "-e", "-c", here.Replace(m[1]))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+dir, "CARILLON_API="+internal, "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH")+":"+filepath.Dir(sysctl))
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) == 0 || strings.Contains(string(out), `"type":"/problems/`) {
			t.Errorf("%s: %v\n%s", m[1], err, out)
		}
	}
	if n < 20 {
		t.Errorf("only %d commands were found", n)
	}
}

package arch

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reactor has the files of package server that are the event loops. They name nothing that another file of the package
// declares, so that they can become a package of their own, below the rest.
var reactor = strings.Fields(`
	accept acceptor address_limit attach audience clock closing collecting conn deadline drain_schedule engine evict
	fdreserve framequeue framing goroutine halfclose handshake_end heap inbound inflating inflight interest
	interest_linux interest_other lag lag_linux lag_other listener logsample loop_endpoint loop_settings mailbox
	membership memory_shed mistakes offload outbox owner pending poller_linux poller_other rates requestqueue room
	runqueue schedule send shard spoil_norace spoil_race sweep threadtime_linux threadtime_other tls tls_handshake
	tls_records tls_suspects tls_table usage waker watchdog watcher workload write_linux write_other`)

func TestTheReactorKnowsNothingAboveIt(t *testing.T) {
	fset, files := token.NewFileSet(), []*ast.File(nil)
	for _, name := range sources(t, "../../server") {
		f, err := parser.ParseFile(fset, filepath.Join("../../server", name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", exportData(t, "carillon/server"))}
	pkg, err := config.Check("carillon/server", fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	fileOf := func(p token.Pos) string { return filepath.Base(fset.Position(p).Filename) }
	isReactor := func(file string) bool { return slices.Contains(reactor, strings.TrimSuffix(file, ".go")) }
	for id, used := range info.Uses {
		from := fileOf(id.Pos())
		if used.Pkg() == pkg && isReactor(from) && !isReactor(fileOf(used.Pos())) {
			t.Errorf("server/%s must not name %s of %s: docs/architecture.md, Layers", from, used.Name(), fileOf(used.Pos()))
		}
	}
}

// sources are the files of a package that are built here, without tests.
func sources(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{join .GoFiles "\n"}}`)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// exportData finds what the compiler has written about the packages that one imports.
func exportData(t *testing.T, pkg string) func(string) (io.ReadCloser, error) {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", pkg)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			exports[path] = file
		}
	}
	return func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("no export data of %s", path)
		}
		return os.Open(exports[path])
	}
}

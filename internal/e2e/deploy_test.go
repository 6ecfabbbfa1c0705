package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"carillon/server"
)

// What stands in deploy/ agrees with the program: variables that exist, and service managers that wait for
// longer than a drain takes.

var assignment = regexp.MustCompile(`CARILLON_[A-Z_]+=\S+`)

// inForce is a part of the configuration that the program prints.
type inForce struct {
	Listen   string
	Internal struct{ Listen string }
	Limits   struct {
		MaxMemory string `yaml:"max_memory"`
	}
	Drain struct{ Deadline string }
}

// configuration is what the program makes of a file, or of the built-in one, and of variables.
func configuration(t *testing.T, file string, env []string) (c inForce) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	cmd := exec.Command(path, "config")
	if file != "" {
		cmd.Args = append(cmd.Args, "--config", file)
	}
	var problems strings.Builder
	cmd.Env, cmd.Stderr = env, &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &problems)
	}
	if err := yaml.Unmarshal(out, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// stopSlack is how long the program takes to end after its connections, at most.
const stopSlack = 5 * time.Second

// drainsWithin fails the test unless the program accepts the variables and ends before it would be killed.
func drainsWithin(t *testing.T, file string, env []string, killed time.Duration) {
	t.Helper()
	deadline, err := time.ParseDuration(configuration(t, file, env).Drain.Deadline)
	if err != nil {
		t.Fatal(err)
	}
	if takes := deadline + stopSlack; takes >= killed {
		t.Errorf("a drain takes up to %v, and after %v the program is killed", takes, killed)
	}
}

func TestUnits(t *testing.T) {
	for _, name := range []string{"carillon.service", "carillon@.service"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("deploy", name))
			if err != nil {
				t.Fatal(err)
			}
			unit := strings.ReplaceAll(string(text), "%i", "8082")
			seconds := regexp.MustCompile(`(?m)^TimeoutStopSec=(\w+)$`).FindStringSubmatch(unit)
			if seconds == nil {
				t.Fatal("no TimeoutStopSec")
			}
			stop, err := time.ParseDuration(seconds[1])
			if err != nil {
				t.Fatal(err)
			}
			drainsWithin(t, "", assignment.FindAllString(unit, -1), stop)

			if _, err := exec.LookPath("systemd-analyze"); err != nil {
				t.Skip(err)
			}
			verified := strings.ReplaceAll(string(text), "/usr/local/bin/carillon", "/bin/true") // which need not be installed
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, []byte(verified), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("systemd-analyze", "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
		})
	}
}

// systemd252 are the directives of Debian 12's systemd that the units may use, as its
// `systemd --dump-configuration-items` lists them.
const systemd252 = `
	Description Documentation After Wants
	Type NotifyAccess ExecStart ExecReload Environment EnvironmentFile Restart RestartSec
	LimitNOFILE TimeoutStartSec TimeoutStopSec KillMode MemoryMax MemorySwapMax OOMScoreAdjust
	DynamicUser User AmbientCapabilities CapabilityBoundingSet NoNewPrivileges ProtectSystem ProtectHome PrivateTmp
	PrivateDevices ProtectClock ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables
	ProtectControlGroups ProtectProc RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID
	LockPersonality MemoryDenyWriteExecute RemoveIPC SystemCallArchitectures SystemCallFilter SystemCallErrorNumber UMask
	WantedBy`

// directives of a unit, each with all its values.
func directives(t *testing.T, name string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)=(.*)$`).FindAllStringSubmatch(read(t, name), -1) {
		all[m[1]] = append(all[m[1]], m[2])
	}
	return all
}

// The units work with the systemd of Debian 12, which does not know Type=notify-reload: it would take the service for
// one that never says when it is ready. A reload is SIGHUP, which the program tells the end of.
func TestUnitsWorkWithAnOldSystemd(t *testing.T) {
	for _, name := range []string{"carillon.service", "carillon@.service"} {
		unit := directives(t, name)
		for key := range unit {
			if !slices.Contains(strings.Fields(systemd252), key) {
				t.Errorf("%s: systemd 252 may not know %s=", name, key)
			}
		}
		if kind := strings.Join(unit["Type"], " "); kind != "notify" {
			t.Errorf("%s: Type=%s", name, kind)
		}
		if reload := strings.Join(unit["ExecReload"], " "); reload != "/bin/kill -HUP $MAINPID" {
			t.Errorf("%s: ExecReload=%s", name, reload)
		}
	}
}

// A service that the kernel is to spare when the machine is short of memory has a limit of its own, which the program's
// limits follow from. Nothing is swapped out, which no limit of the program would notice.
func TestUnitsLimitMemory(t *testing.T) {
	for name, most := range map[string]int{"carillon.service": 80, "carillon@.service": 45} { // of the latter there are two at times
		unit := directives(t, name)
		var percent, score int
		if _, err := fmt.Sscanf(strings.Join(unit["MemoryMax"], " "), "%d%%", &percent); err != nil || percent < 10 || percent > most {
			t.Errorf("%s: MemoryMax=%v: expected at most %d%%", name, unit["MemoryMax"], most)
		}
		if _, err := fmt.Sscan(strings.Join(unit["OOMScoreAdjust"], " "), &score); err != nil || score >= 0 {
			t.Errorf("%s: OOMScoreAdjust=%v", name, unit["OOMScoreAdjust"])
		}
		if !slices.Equal(unit["MemorySwapMax"], []string{"0"}) {
			t.Errorf("%s: MemorySwapMax=%v", name, unit["MemorySwapMax"])
		}
		for _, e := range unit["Environment"] {
			if strings.Contains(e, "GOMEMLIMIT") || strings.Contains(e, "MAX_MEMORY") {
				t.Errorf("%s: %s does not follow MemoryMax", name, e)
			}
		}
	}
}

// pod is what the manifests say about the program.
type pod struct {
	Grace      int `yaml:"terminationGracePeriodSeconds"`
	Containers []struct {
		Args  []string
		Ports []struct {
			Name string
			Port int `yaml:"containerPort"`
		}
		Env []struct {
			Name, Value string
			ValueFrom   any `yaml:"valueFrom"`
		}
		Resources struct {
			Limits struct{ Memory string }
		}
		Mounts []struct {
			Name string
			Path string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	Volumes []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
	}
}

type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name   string
		Labels map[string]string
	}
	Data map[string]string
	Spec struct {
		Selector any
		Ports    []struct {
			Target string `yaml:"targetPort"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     pod
		}
	}
}

func manifests(t *testing.T) map[string]manifest {
	t.Helper()
	all := map[string]manifest{}
	for d := yaml.NewDecoder(strings.NewReader(read(t, "kubernetes.yaml"))); ; {
		var m manifest
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if m.APIVersion == "" || m.Metadata.Labels["app.kubernetes.io/name"] != "carillon" {
			t.Errorf("a manifest is %+v", m)
		}
		all[m.Kind+" "+m.Metadata.Name] = m
	}
}

// The manifests belong together: the program gets the configuration that stands there, which it understands,
// the services lead to its ports, and it is given the time that its drain takes.
func TestManifests(t *testing.T) {
	all := manifests(t)
	for _, name := range []string{"ConfigMap carillon", "Deployment carillon", "Service carillon", "Service carillon-internal", "PodDisruptionBudget carillon"} {
		if _, there := all[name]; !there {
			t.Errorf("there is no %s", name)
		}
	}
	p := all["Deployment carillon"].Spec.Template.Spec
	if len(p.Containers) != 1 || len(p.Volumes) != 1 || len(p.Containers[0].Mounts) != 1 {
		t.Fatalf("the pod is %+v", p)
	}
	c, mount := p.Containers[0], p.Containers[0].Mounts[0]
	config, mounted := all["ConfigMap "+p.Volumes[0].ConfigMap.Name].Data["carillon.yaml"]
	if !mounted || mount.Name != p.Volumes[0].Name || strings.Join(c.Args, " ") != "--config "+mount.Path+"/carillon.yaml" {
		t.Errorf("%v with the file %q at %+v", c.Args, config, mount)
	}
	var env []string
	for _, v := range c.Env {
		if v.ValueFrom != nil {
			v.Value = "a-secret-of-the-cluster"
		}
		env = append(env, v.Name+"="+v.Value)
	}
	file := filepath.Join(t.TempDir(), "carillon.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	drainsWithin(t, file, env, time.Duration(p.Grace)*time.Second)
	limitsFit(t, file, env, c.Resources.Limits.Memory)
	in := configuration(t, file, env)
	if ask := slices.Index(env, "CARILLON_API=127.0.0.1"+in.Internal.Listen); ask < 0 {
		t.Errorf("the probes ask elsewhere than at %s: %v", in.Internal.Listen, env)
	}
	ports := map[string]string{}
	for _, port := range c.Ports {
		ports[port.Name] = fmt.Sprintf(":%d", port.Port)
	}
	if ports["ws"] != in.Listen || ports["internal"] != in.Internal.Listen {
		t.Errorf("the ports are %v, and it listens on %s and %s", ports, in.Listen, in.Internal.Listen)
	}
	for name, to := range map[string]string{"Service carillon": "ws", "Service carillon-internal": "internal"} {
		if s := all[name].Spec; len(s.Ports) != 1 || s.Ports[0].Target != to || fmt.Sprint(s.Selector) != "map[app.kubernetes.io/name:carillon]" {
			t.Errorf("%s is %+v", name, s)
		}
	}
}

// limitsFit fails the test unless limits.max_memory is a good part below GOMEMLIMIT and that below the container's
// limit.
func limitsFit(t *testing.T, file string, env []string, memory string) {
	t.Helper()
	var most, runtime, container server.Size
	err := most.UnmarshalText([]byte(configuration(t, file, env).Limits.MaxMemory))
	for _, v := range env {
		if text, found := strings.CutPrefix(v, "GOMEMLIMIT="); found {
			err = errors.Join(err, runtime.UnmarshalText([]byte(text)))
		}
	}
	if err := errors.Join(err, container.UnmarshalText([]byte(memory+"B"))); err != nil {
		t.Fatal(err)
	}
	if most <= container/2 || most > container/100*80 || runtime < most+most/10 || runtime > container/100*90 {
		t.Errorf("max_memory is %v, GOMEMLIMIT %v, and the container may have %v: expected 80 %% and 90 %% of it", most, runtime, container)
	}
}

// Images that others make are named by their digests, so that the same file builds the same program. The image of this
// repository's own has none before it is built.
func TestImagesArePinned(t *testing.T) {
	digest := regexp.MustCompile(`^[a-z0-9./-]+:[0-9][a-z0-9.-]*@sha256:[0-9a-f]{64}$`)
	n := 0
	for _, m := range regexp.MustCompile(`(?m)^FROM (?:--\S+ )?(\S+)|^\s*image: (\S+)|COPY --from=(\S+)`).FindAllStringSubmatch(read(t, "Dockerfile")+read(t, "kubernetes.yaml"), -1) {
		switch image := m[1] + m[2] + m[3]; {
		case image == "scratch" || image == "build" || image == "carillon:latest":
		case digest.MatchString(image):
			n++
		default:
			t.Errorf("%s has no version and digest", image)
		}
	}
	if n == 0 {
		t.Error("no image was found")
	}
	if run := documents(t)["deploy/README.md"]; !regexp.MustCompile(`docker run .*--memory \d+g`).MatchString(run) {
		t.Error("docker run has no memory limit")
	}
}

// The image is built as its Dockerfile says, as far as that can be done without Docker.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	drainsWithin(t, "", assignment.FindAllString(string(text), -1), time.Hour)
	build := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o /carillon \.$`).FindStringSubmatch(string(text))
	if build == nil {
		t.Fatal("no go build")
	}
	path := filepath.Join(t.TempDir(), "carillon")
	if out, err := exec.Command("sh", "-c", build[1]+" -o "+path+" .").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(path, "config").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

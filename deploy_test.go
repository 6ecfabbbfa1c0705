package main

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
)

// What stands in deploy/ agrees with the program: variables that exist, and service managers that wait for
// longer than a drain takes.

var assignment = regexp.MustCompile(`CARILLON_[A-Z_]+=\S+`)

// drainsWithin fails the test unless the program accepts the variables and ends before it would be killed.
func drainsWithin(t *testing.T, file string, env []string, killed time.Duration) {
	t.Helper()
	c, err := loadConfig(file, env)
	if err != nil {
		t.Fatal(err)
	}
	if takes := c.Drain.Deadline + stopSlack; takes >= killed {
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
			// The program need not be installed for that. What deploy/README.md says is done for an old systemd.
			verified := strings.ReplaceAll(string(text), "/usr/local/bin/carillon", "/bin/true")
			if systemdVersion(t) < 253 {
				verified = strings.Replace(verified, "Type=notify-reload\n", "Type=notify\nExecReload=/bin/kill -HUP $MAINPID\n", 1)
			}
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

func systemdVersion(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("systemd-analyze", "--version").Output()
	var version int
	if _, scanned := fmt.Sscanf(string(out), "systemd %d", &version); err != nil || scanned != nil {
		t.Fatalf("%s: %v, %v", out, err, scanned)
	}
	return version
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
			v.Value = "secret"
		}
		env = append(env, v.Name+"="+v.Value)
	}
	file := filepath.Join(t.TempDir(), "carillon.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	drainsWithin(t, file, env, time.Duration(p.Grace)*time.Second)
	in, err := loadConfig(file, env)
	if err != nil {
		t.Fatal(err)
	}
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

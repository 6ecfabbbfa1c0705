package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

// What stands in deploy/ agrees with the program: variables that exist, and service managers that wait for
// longer than a drain takes.

var assignment = regexp.MustCompile(`CARILLON_[A-Z_]+=\S+`)

// drainsWithin fails the test unless the program accepts the variables and ends before it would be killed.
func drainsWithin(t *testing.T, env []string, killed time.Duration) {
	t.Helper()
	c, err := loadConfig("", env)
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
			drainsWithin(t, assignment.FindAllString(unit, -1), stop)

			if _, err := exec.LookPath("systemd-analyze"); err != nil {
				t.Skip(err)
			}
			// The program need not be installed for that.
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/carillon", "/bin/true")), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("systemd-analyze", "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
		})
	}
}

func TestManifests(t *testing.T) {
	text, err := os.ReadFile("deploy/kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	type manifest struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Env []struct{ Name, Value string }
					}
				}
			}
		}
	}
	kinds := map[string]manifest{}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var m manifest
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if m.APIVersion == "" || m.Metadata.Name != "carillon" {
			t.Errorf("a manifest is %+v", m)
		}
		kinds[m.Kind] = m
	}
	if _, service := kinds["Service"]; !service || len(kinds) != 3 {
		t.Errorf("%d kinds", len(kinds))
	}
	pod := kinds["Deployment"].Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	var env []string
	for _, v := range pod.Containers[0].Env {
		env = append(env, fmt.Sprintf("%s=%s", v.Name, v.Value))
	}
	drainsWithin(t, env, time.Duration(pod.Grace)*time.Second)
}

// The image is built as its Dockerfile says, as far as that can be done without Docker.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	drainsWithin(t, assignment.FindAllString(string(text), -1), time.Hour)
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

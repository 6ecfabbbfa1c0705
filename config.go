package main

import (
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"carillon/cluster"
	"carillon/server"

	"github.com/goccy/go-yaml"
)

// config is what the configuration file can say. The yaml tags here and in [server.Options] are the
// only list of keys: decoding, printing, the environment's variables and the suggestions in error
// messages are all derived from them.
type config struct {
	server.Options `yaml:",inline"`

	Cluster cluster.Options `yaml:"cluster"`

	// PIDFile is where the program writes its process id while it serves. Default: nowhere.
	PIDFile string `yaml:"pid_file"`

	Demo bool      `yaml:"demo"` // serve the pages of package demo at /
	Log  logConfig `yaml:"log"`
}

// logConfig is about the log, which goes to standard error.
type logConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn or error; default info
	Format string `yaml:"format"` // text or json; default text
}

//go:embed config.yaml
var builtIn []byte

// internalListen is where the program has its internal interface unless it is told otherwise. The library
// has none by itself.
const internalListen = "127.0.0.1:8081"

const builtInName = "built-in config.yaml"

// problem is one thing that is wrong with the configuration.
type problem struct {
	where string // "FILE:12:9", or the name of an environment variable
	key   string // "limits.max_message", "endpoints[1].path"; empty when it is not about one key
	text  string // what is wrong and what is expected
}

func (p *problem) Error() string {
	if p.key == "" {
		return p.where + ": " + p.text
	}
	return p.where + ": " + p.key + ": " + p.text
}

// loadConfig reads a configuration file, or the built-in one when file is empty, and the environment
// over it. The error joins one [problem] for each thing that is wrong, or says why the file could not
// be read.
func loadConfig(file string, env []string) (config, error) {
	c, _, err := loadConfigWarned(file, env)
	return c, err
}

// loadConfigWarned also returns what is right and hardly meant.
func loadConfigWarned(file string, env []string) (c config, warnings []error, err error) {
	if file == "" {
		return parseConfigWarned(builtInName, builtIn, env)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return config{}, nil, fmt.Errorf("read the configuration: %w", err)
	}
	return parseConfigWarned(file, text, env)
}

// parseConfig is loadConfig for the text of a file. In the configuration that it returns every zero
// is replaced by its default and every number that means off is -1.
func parseConfig(name string, text []byte, env []string) (config, error) {
	c, _, err := parseConfigWarned(name, text, env)
	return c, err
}

func parseConfigWarned(name string, text []byte, env []string) (c config, warnings []error, err error) {
	d := decoder{file: name, origin: map[string]string{"": name + ":1:1"}}
	d.document(text, reflect.ValueOf(&c).Elem())
	d.environment(env, reflect.ValueOf(&c).Elem())
	if len(d.problems) > 0 {
		// The defaults that stand in for what could not be decoded would only add to the confusion.
		return config{}, nil, errors.Join(d.problems...)
	}
	for _, err := range c.resolve() {
		if e, ok := errors.AsType[*server.OptionError](err); ok {
			err = &problem{where: d.whereIs(e.Key), key: e.Key, text: e.Problem}
		}
		d.problems = append(d.problems, err)
	}
	if len(d.problems) > 0 {
		return config{}, nil, errors.Join(d.problems...)
	}
	for _, w := range c.Warnings() {
		warnings = append(warnings, &problem{where: d.whereIs(w.Key), key: w.Key, text: w.Problem})
	}
	return c, warnings, nil
}

// resolve fills in the defaults and returns the problems that it found on the way.
func (c *config) resolve() []error {
	var problems []error
	add := func(key, format string, args ...any) {
		problems = append(problems, &server.OptionError{Key: key, Problem: fmt.Sprintf(format, args...)})
	}
	if len(c.Endpoints) == 0 {
		add("endpoints", "nothing would be served: expected at least one, such as {path: /echo, mode: echo}")
	}
	if c.Internal.Listen == "" {
		c.Internal.Listen = internalListen
	}
	join := func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			problems = append(problems, joined.Unwrap()...)
		} else if err != nil {
			problems = append(problems, err)
		}
	}
	var err error
	c.Options, err = c.Options.Resolve()
	join(err)
	c.Cluster, err = c.Cluster.Resolve()
	join(err)

	if c.Log.Level == "" {
		c.Log.Level = "info"
	}
	if _, ok := logLevels[c.Log.Level]; !ok {
		add("log.level", "%q is unknown: expected debug, info, warn or error", c.Log.Level)
	}
	switch c.Log.Format {
	case "":
		c.Log.Format = "text"
	case "text", "json":
	default:
		add("log.format", "%q is unknown: expected text or json", c.Log.Format)
	}

	v := reflect.ValueOf(c).Elem()
	for _, k := range settable(v.Type()) {
		switch f := v.FieldByIndex(k.index); {
		case f.CanInt() && f.Int() < 0:
			f.SetInt(-1)
		case f.CanFloat() && f.Float() < 0:
			f.SetFloat(-1)
		}
	}
	return problems
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// print returns the configuration as YAML that parseConfig reads back to the same value, but for a secret:
// that is not shown, and has to be set again, as by the environment.
func (c config) print() ([]byte, error) { return yaml.Marshal(printable(reflect.ValueOf(c))) }

func printable(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Struct:
		var section yaml.MapSlice
		for _, f := range fields(v.Type()) {
			section = append(section, yaml.MapItem{Key: f.Tag.Get("yaml"), Value: printable(v.FieldByIndex(f.Index))})
		}
		return section
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = printable(v.Index(i))
		}
		return list
	case reflect.String:
		if s, ok := v.Interface().(fmt.Stringer); ok { // a secret, which is not printed
			return s.String()
		}
		return v.String()
	}
	switch {
	case v.CanInt() && v.Int() < 0, v.CanFloat() && v.Float() < 0:
		return "off"
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case fmt.Stringer:
		return x.String()
	default:
		return x
	}
}

// shortDuration writes 1m for what Go writes as 1m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// key is one key of the configuration file.
type key struct {
	path  string // "limits.max_message"; below a list "endpoints[].path"
	typ   reflect.Type
	index []int // from config, for FieldByIndex; nil below a list
}

// variable returns the environment variable that overrides the key.
func (k key) variable() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.path, ".", "_"))
}

// fields returns the fields of a section that have a key, those of an embedded struct among them.
func fields(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool {
		return f.Anonymous || f.Tag.Get("yaml") == "-"
	})
}

// keys returns every key of a section: first the section, then what is in it.
func keys(t reflect.Type, prefix string, index []int, inList bool) []key {
	var list []key
	for _, f := range fields(t) {
		k := key{path: prefix + f.Tag.Get("yaml"), typ: f.Type}
		if !inList {
			k.index = slices.Concat(index, f.Index)
		}
		list = append(list, k)
		switch {
		case f.Type.Kind() == reflect.Struct:
			list = append(list, keys(f.Type, k.path+".", k.index, inList)...)
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			list = append(list, keys(f.Type.Elem(), k.path+"[].", nil, true)...)
		}
	}
	return list
}

// settable returns the keys that one environment variable can set: single values and whole lists.
func settable(config reflect.Type) []key {
	return slices.DeleteFunc(keys(config, "", nil, false), func(k key) bool {
		return k.index == nil || k.typ.Kind() == reflect.Struct
	})
}

const envPrefix = "CARILLON_"

// environment applies the variables that begin with CARILLON_. An empty one counts as not set, as
// deployment tools leave it when the value they were to fill in is missing.
func (d *decoder) environment(env []string, c reflect.Value) {
	known := map[string]key{}
	for _, k := range settable(c.Type()) {
		known[k.variable()] = k
	}
	for _, entry := range slices.Sorted(slices.Values(env)) {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		k, ok := known[name]
		switch {
		case !ok && (isServiceLink(name, text) || isClientVariable(name)):
		case renamedVariables[name] != "":
			d.problems = append(d.problems, &problem{where: name, text: "is no variable any more: expected " + renamedVariables[name]})
		case !ok:
			d.problems = append(d.problems, &problem{where: name, text: "unknown variable" + variableHint(name, known)})
		case text != "":
			d.override(name, text, k.path, c.FieldByIndex(k.index))
		}
	}
}

// renamedVariables says what has taken the place of a variable that there was once.
var renamedVariables = map[string]string{envPrefix + "SHUTDOWN_TIMEOUT": envPrefix + "DRAIN_DEADLINE"}

func variableHint(name string, known map[string]key) string {
	word := strings.TrimPrefix(name, envPrefix)
	var words []string
	for _, k := range slices.Sorted(maps.Keys(known)) {
		words = append(words, strings.TrimPrefix(k, envPrefix))
		if strings.HasSuffix(k, "_"+word) {
			return ", did you mean " + k + "?"
		}
	}
	if near := nearest(word, words); near != "" {
		return ", did you mean " + envPrefix + near + "?"
	}
	return ": expected " + envPrefix + "<SECTION>_<KEY>, as listed by carillon config --help"
}

// override sets one key from a variable: a list is YAML, anything else is taken as it stands.
func (d *decoder) override(name, text, key string, v reflect.Value) {
	d.variable = name
	defer func() { d.variable = "" }()
	if v.Kind() == reflect.Slice {
		maps.DeleteFunc(d.origin, func(k, _ string) bool { return strings.HasPrefix(k, key+"[") })
		if body := d.parse([]byte(text)); body != nil {
			d.decode(body, v, key)
		}
		return
	}
	d.origin[key] = name
	if err := setScalar(v, text); err != nil {
		d.problems = append(d.problems, &problem{where: name, key: key, text: err.Error()})
	}
}

// The clients' variables begin like the server's, so that a person has one prefix to remember. Set for
// a whole shell or container, they must not keep the server from starting.
const (
	apiVariable   = envPrefix + "API"
	tokenVariable = envPrefix + "TOKEN"
)

func isClientVariable(name string) bool {
	return name == apiVariable || name == tokenVariable || name == caVariable
}

// Kubernetes gives each container variables for every service of its namespace. Beside a service that
// is called carillon they must not keep the server from starting.
var serviceLink = regexp.MustCompile(
	`^CARILLON_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func isServiceLink(name, text string) bool {
	// CARILLON_PORT=9090 is somebody's hope that it sets the port; from Kubernetes it is a URL.
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(text, "://")
}

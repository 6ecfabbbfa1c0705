package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"carillon/internal/redact"
	"carillon/server"
	"carillon/server/cluster"

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

// builtIn is the text of the built-in configuration. [Main] sets it, and nothing changes it afterwards.
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
	if file == "" {
		return parseConfig(builtInName, builtIn, env)
	}
	text, err := readConfig(file)
	if err != nil {
		return config{}, err
	}
	return parseConfig(file, text, env)
}

func readConfig(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return text, nil
}

// parseConfig is loadConfig for the text of a file. In the configuration that it returns every zero
// is replaced by its default and every number that means off is -1.
func parseConfig(name string, text []byte, env []string) (config, error) {
	c, d := decodeConfig(name, text, env)
	if len(d.problems) > 0 {
		return config{}, errors.Join(d.problems...)
	}
	return c, nil
}

// examineConfig is parseConfig that also returns what is right and hardly meant, and in the error what the start would
// fail at although each value is right.
func examineConfig(name string, text []byte, env []string) (warnings []error, err error) {
	c, d := decodeConfig(name, text, env)
	if len(d.problems) == 0 {
		for _, err := range c.startProblems() {
			d.problems = append(d.problems, d.located(err))
		}
	}
	if len(d.problems) > 0 {
		return nil, errors.Join(d.problems...)
	}
	for _, w := range c.Warnings() {
		warnings = append(warnings, d.located(w))
	}
	return warnings, nil
}

func decodeConfig(name string, text []byte, env []string) (c config, d *decoder) {
	d = &decoder{file: name, origin: map[string]string{"": name + ":1:1"}}
	d.document(text, reflect.ValueOf(&c).Elem())
	d.environment(env, reflect.ValueOf(&c).Elem())
	undecoded := slices.Clone(d.problems)
	for _, err := range c.resolve() {
		if err := d.located(err); !d.follows(err, undecoded) {
			d.problems = append(d.problems, err)
		}
	}
	return c, d
}

// located adds to an error about an option where that was set.
func (d *decoder) located(err error) error {
	if e, ok := errors.AsType[*server.OptionError](err); ok {
		return &problem{where: d.whereIs(e.Key), key: e.Key, text: e.Problem}
	}
	return err
}

// follows reports whether a problem may be there only because something else could not be decoded: it is about that
// key, or one in it or around it, or says something of it, or misses a key in a section that has one of an unknown
// name.
func (d *decoder) follows(err error, undecoded []error) bool {
	p, ok := errors.AsType[*problem](err)
	if !ok {
		return len(undecoded) > 0
	}
	for _, err := range undecoded {
		u, ok := errors.AsType[*problem](err)
		isWhole := ok && u.key == "" && strings.HasPrefix(u.where, d.file+":") // of the file
		if !ok || isWhole || isWithin(p.key, u.key) || isWithin(u.key, p.key) {
			return true
		}
		if _, set := d.origin[p.key]; !set && (u.key == "" || sectionOf(p.key) == sectionOf(u.key)) || u.key != "" && strings.Contains(p.text, u.key) {
			return true
		}
	}
	return false
}

// isWithin reports whether a key is the other one, or one below it.
func isWithin(key, outer string) bool {
	rest, ok := strings.CutPrefix(key, outer)
	return ok && outer != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// sectionOf is what a key stands in.
func sectionOf(key string) string { return key[:max(0, strings.LastIndexByte(key, '.'))] }

// startProblems are those that would end a start with this configuration, as long as nothing has to be opened to find
// them: a file that is missing, or has something else in it.
func (c config) startProblems() []error {
	c.Logger = slog.New(slog.DiscardHandler)
	_, pages, err := newServer(c)
	pages.close()
	problems := split(err)
	if c.Cluster.Enabled() {
		problems = append(problems, split(c.Cluster.CheckFiles())...)
	}
	if c.PIDFile != "" {
		if info, err := os.Stat(filepath.Dir(c.PIDFile)); err != nil {
			problems = append(problems, &server.OptionError{Key: "pid_file", Problem: err.Error()})
		} else if !info.IsDir() {
			problems = append(problems, &server.OptionError{Key: "pid_file", Problem: filepath.Dir(c.PIDFile) + " is not a directory"})
		}
	}
	return problems
}

// split returns the errors that one joins.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// resolve fills in the defaults and returns the problems that it found on the way.
func (c *config) resolve() []error {
	var problems []error
	add := func(key, format string, args ...any) {
		problems = append(problems, &server.OptionError{Key: key, Problem: fmt.Sprintf(format, args...)})
	}
	if len(c.Endpoints) == 0 {
		add("endpoints", "is empty: expected at least one, such as {path: /echo, mode: echo}")
	}
	if c.Internal.Listen == "" {
		c.Internal.Listen = internalListen
	}
	var err error
	c.Options, err = c.Options.Resolve()
	problems = append(problems, split(err)...)
	c.Cluster, err = c.Cluster.Resolve()
	problems = append(problems, split(err)...)

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

// print returns the configuration as YAML that parseConfig reads back to the same value, but for a secret, or a URL
// that may have one: that is not shown, and has to be set again, as by the environment. A default that depends on where
// the program runs is a comment, so that the file is good elsewhere, too.
func (c config) print() ([]byte, error) {
	comments := yaml.CommentMap{}
	if c.Limits.MaxMemory == 0 {
		limit, source := c.Limits.EffectiveMaxMemory()
		comments["$.limits.max_memory"] = []*yaml.Comment{yaml.LineComment(fmt.Sprintf(" %v here: %s", limit, source))}
	}
	return yaml.MarshalWithOptions(printable(reflect.ValueOf(c)), yaml.WithComment(comments))
}

func printable(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Struct:
		var section yaml.MapSlice
		for _, f := range fields(v.Type()) {
			value := printable(v.FieldByIndex(f.Index))
			if f.Tag.Get("secret") == "url" {
				value = redact.URL(v.FieldByIndex(f.Index).String())
			}
			section = append(section, yaml.MapItem{Key: f.Tag.Get("yaml"), Value: value})
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
	case server.Size:
		if x == 0 {
			return 0 // and no string
		}
		return x.String()
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
			d.problems = append(d.problems, &problem{where: name, text: "is no longer supported: expected " + renamedVariables[name]})
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
	return ": expected " + envPrefix + "<SECTION>_<KEY>: see carillon config --help"
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

// Kubernetes gives each container variables for every service of its namespace. Next to a service that is called
// carillon they must not keep the server from starting.
var serviceLink = regexp.MustCompile(
	`^CARILLON_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func isServiceLink(name, text string) bool {
	// CARILLON_PORT=9090 is meant to set the port; from Kubernetes it is a URL.
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(text, "://")
}

package cli

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
	"carillon/server"
	"carillon/server/cluster"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// minimal is the shortest configuration that is accepted.
const minimal = "endpoints: [{path: /a, mode: echo}]\n"

func TestBuiltInFileStatesTheDefaults(t *testing.T) {
	got, err := loadConfig("", nil)
	if err != nil {
		t.Fatal(err)
	}
	options, err := server.Options{Endpoints: []server.Endpoint{
		{Path: "/echo", Mode: server.ModeEcho},
		{Path: "/broadcast", Mode: server.ModeBroadcast},
		{Path: "/ws", Mode: server.ModeTopics},
	}, Internal: server.Internal{Listen: "127.0.0.1:8081"}}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	joined, err := cluster.Options{}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := config{Options: options, Cluster: joined, Demo: true, Log: logConfig{Level: "info", Format: "text"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config.yaml is\n%+v\nbut the defaults are\n%+v", got, want)
	}
}

// examples are what stands in the built-in file in comments, each after "# For example:".
func examples(t *testing.T) []byte {
	t.Helper()
	texts := strings.Split(string(builtIn), "# For example:\n#\n")[1:]
	if len(texts) < 2 {
		t.Fatal("there are no examples")
	}
	var lines []string
	for _, text := range texts {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") {
				break
			}
			lines = append(lines, strings.TrimPrefix(strings.TrimPrefix(line, "#"), "   "))
		}
	}
	return []byte(strings.Join(lines, ""))
}

func TestTheExamplesInTheBuiltInFileAreRight(t *testing.T) {
	cert, key := testenv.KeyPair(t)
	text := strings.NewReplacer("/etc/carillon/example.com.pem", cert, "/etc/carillon/example.com.key", key).Replace(string(examples(t)))
	c, err := parseConfig("EXAMPLE", []byte(text+minimal), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := server.TopicRule{Match: "prices.>", History: 100, MaxAge: 5 * time.Minute, MaxBytes: 1 << 20, Latest: true}
	if len(c.Topics) != 1 || c.Topics[0] != want {
		t.Errorf("it says %+v", c.Topics)
	}
	socket := server.Listener{Listen: "unix:/run/carillon/http.sock", Mode: 0o666, TLS: server.TLS{MinVersion: "1.2", ClientAuth: server.ClientAuthOff},
		ProxyProtocol: server.ProxyProtocol{Mode: server.ProxyRequired, From: []string{"unix"}, Timeout: 2 * time.Second}}
	if len(c.Listeners) != 1 || !reflect.DeepEqual(c.Listeners[0], socket) {
		t.Errorf("it says %+v", c.Listeners)
	}
	if pair := (server.Certificate{CertFile: cert, KeyFile: key}); len(c.TLS.Certificates) != 1 || c.TLS.Certificates[0] != pair {
		t.Errorf("it says %+v", c.TLS)
	}
	checkRoundTrip(t, c)
}

func TestBuiltInFileHasEveryKey(t *testing.T) {
	stated := map[string]bool{}
	for _, text := range [][]byte{builtIn, examples(t)} {
		for _, path := range keyLines(t, text) {
			stated[path] = true
		}
	}
	for _, k := range keys(reflect.TypeFor[config](), "", nil, false) {
		if !stated[k.path] && !stated[inTLS(k.path)] {
			t.Errorf("config.yaml does not state %s", k.path)
		}
	}
}

// inTLS is where a key of a tls section is explained: they are all alike.
func inTLS(path string) string {
	if _, key, found := strings.Cut(path, ".tls."); found {
		return "tls." + key
	}
	return path
}

func TestEveryKeyOfTheBuiltInFileIsExplained(t *testing.T) {
	inComments := regexp.MustCompile(`(?m)^[a-z]+:\n`).ReplaceAll(examples(t), nil)
	lines := strings.Split(string(builtIn)+string(inComments), "\n")
	key := regexp.MustCompile(`^ *(- )?[a-z_]+:`)
	for i, line := range lines {
		if key.MatchString(line) && !strings.HasPrefix(strings.TrimSpace(lines[i-1]), "#") && line != "    mode: broadcast" {
			t.Errorf("line %d of config.yaml has no comment above it: %s", i+1, line)
		}
	}
}

// The built-in file marks exactly the keys that are read at the start only.
func TestTheBuiltInFileMarksWhatNeedsARestart(t *testing.T) {
	marked := map[string]bool{} // by key, where it stands for the first time
	note := func(text []byte) {
		lines := strings.Split(string(text), "\n")
		for at, path := range keyLines(t, text) {
			comment := ""
			for i := at - 2; i >= 0 && strings.HasPrefix(strings.TrimSpace(lines[i]), "#"); i-- {
				comment = lines[i] + comment
			}
			if _, seen := marked[path]; !seen {
				marked[path] = strings.HasSuffix(comment, "(restart)")
			}
		}
	}
	note(builtIn)
	note(examples(t))
	for _, k := range keys(reflect.TypeFor[config](), "", nil, false) {
		is, stated := marked[k.path]
		if !stated {
			is, stated = marked[inTLS(k.path)]
		}
		for at := k.path; !is && at != ""; { // a section may be marked as a whole
			at = at[:max(0, strings.LastIndexAny(at, ".["))]
			is = marked[at]
		}
		if !stated || is != needsRestart(k.path) {
			t.Errorf("%s: marked %v, needs a restart %v", k.path, is, needsRestart(k.path))
		}
	}
}

// keyLines are the keys of a text in their order, by their lines.
func keyLines(t *testing.T, text []byte) iter.Seq2[int, string] {
	t.Helper()
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(int, string) bool) {
		var walk func(n ast.Node, path string) bool
		walk = func(n ast.Node, path string) bool {
			switch n := n.(type) {
			case *ast.MappingNode:
				for _, v := range n.Values {
					at := v.Key.GetToken()
					key := strings.TrimPrefix(path+"."+at.Value, ".")
					if !yield(at.Position.Line, key) || !walk(v.Value, key) {
						return false
					}
				}
			case *ast.SequenceNode:
				for _, v := range n.Values {
					if !walk(v, path+"[]") {
						return false
					}
				}
			}
			return true
		}
		walk(file.Docs[0].Body, "")
	}
}

func TestEveryFieldHasAKeyAndEveryKeyAVariableOfItsOwn(t *testing.T) {
	byVariable := map[string]string{}
	for _, k := range keys(reflect.TypeFor[config](), "", nil, false) {
		if !regexp.MustCompile(`(^|\.)[a-z][a-z_]*$`).MatchString(k.path) {
			t.Errorf("%q is no name for a key", k.path)
		}
		if other, taken := byVariable[k.variable()]; taken {
			t.Errorf("%s sets both %s and %s", k.variable(), other, k.path)
		}
		byVariable[k.variable()] = k.path
	}
	for name := range byVariable {
		if isServiceLink(name, "1") {
			t.Errorf("%s would be taken for one of Kubernetes'", name)
		}
	}
}

func TestValues(t *testing.T) {
	for _, test := range []struct {
		sentence string
		text     string
		get      func(c config) any
		want     any
	}{
		{"a duration has a unit", "limits: {idle_timeout: 1m30s}", func(c config) any { return c.Limits.IdleTimeout }, 90 * time.Second},
		{"a duration of 0 is the default", "ping: {interval: 0}", func(c config) any { return c.Ping.Interval }, 25 * time.Second},
		{"a duration can be off", "ping: {interval: off}", func(c config) any { return c.Ping.Interval }, time.Duration(-1)},
		{"a quoted duration is a duration", "ping: {interval: '5s'}", func(c config) any { return c.Ping.Interval }, 5 * time.Second},
		{"a size has a unit", "limits: {max_message: 64KiB}", func(c config) any { return c.Limits.MaxMessage }, server.Size(65536)},
		{"a size without a unit is in bytes", "limits: {max_message: 1000}", func(c config) any { return c.Limits.MaxMessage }, server.Size(1000)},
		{"a size in B is in bytes", "limits: {max_message: 100B}", func(c config) any { return c.Limits.MaxMessage }, server.Size(100)},
		{"a size of 0 is the default", "limits: {max_message: 0}", func(c config) any { return c.Limits.MaxMessage }, server.Size(1 << 20)},
		{"a size can be off", "limits: {max_message: off}", func(c config) any { return c.Limits.MaxMessage }, server.Size(-1)},
		{"a count can be off", "limits: {max_fragments: off}", func(c config) any { return c.Limits.MaxFragments }, -1},
		{"a count of 0 is the default", "limits: {max_fragments: 0}", func(c config) any { return c.Limits.MaxFragments }, 1024},
		{"jitter is a number", "ping: {jitter: 0.5}", func(c config) any { return c.Ping.Jitter }, 0.5},
		{"jitter can be a whole number", "ping: {jitter: 1}", func(c config) any { return c.Ping.Jitter }, 1.0},
		{"jitter can be off", "ping: {jitter: off}", func(c config) any { return c.Ping.Jitter }, -1.0},
		{"max_connections of 0 stays, for the server to find out", "limits: {max_connections: 0}", func(c config) any { return c.Limits.MaxConnections }, 0},
		{"a section without keys has the defaults", "limits:\nping: {}", func(c config) any { return c.Limits.MaxFragments }, 1024},
		{"permissions are octal", "listen_mode: 0640", func(c config) any { return c.ListenMode }, server.FileMode(0o640)},
		{"permissions may be quoted", "listen_mode: '600'", func(c config) any { return c.ListenMode }, server.FileMode(0o600)},
		{"permissions of 0 are the default", "listen_mode: 0", func(c config) any { return c.ListenMode }, server.FileMode(0o660)},
		{"a socket for operators is theirs alone", "internal: {listen: unix:/i}", func(c config) any { return c.Internal.Mode }, server.FileMode(0o600)},
		{"a unix socket needs no quotes", "listen: unix:/run/s", func(c config) any { return c.Listen }, "unix:/run/s"},
		{"each listener has its permissions", "listeners: [{listen: unix:/run/s}]", func(c config) any { return c.Listeners[0].Mode }, server.FileMode(0o660)},
		{"what is not mentioned has the default", "loops: 3", func(c config) any { return c.Listen }, ":8080"},
		{"a plain text needs no quotes", "listen: :9000", func(c config) any { return c.Listen }, ":9000"},
		{"a byte order mark is ignored", "\ufeffloops: 3", func(c config) any { return c.Loops }, 3},
		{"lines may end as on Windows", "loops: 3\r\nlisten: :1\r\n", func(c config) any { return c.Listen }, ":1"},
		{"a document may begin with ---", "---\nloops: 3", func(c config) any { return c.Loops }, 3},
		{"a limit of topics can be off", "limits: {max_topics: off}", func(c config) any { return c.Limits.MaxTopics }, -1},
		{"a limit of the memory for keys can be off", "limits: {max_key_memory: off}", func(c config) any { return c.Limits.MaxKeyMemory }, server.Size(-1)},
		{"the internal interface has an address", "loops: 3", func(c config) any { return c.Internal.Listen }, "127.0.0.1:8081"},
		{"the internal interface can be off", "internal: {listen: off}", func(c config) any { return c.Internal.Listen }, "off"},
		{"a topic's history can be kept for ever", "topics: [{match: a, history: 1, max_age: off}]", func(c config) any { return c.Topics[0].MaxAge }, time.Duration(-1)},
		{"a topic's history can be as large as it gets", "topics: [{match: a, max_bytes: off}]", func(c config) any { return c.Topics[0].MaxBytes }, server.Size(-1)},
		{"the newest message is a history of one", "topics: [{match: a, latest: true}]", func(c config) any { return c.Topics[0].History }, 1},
		{"the health check has a path", "loops: 3", func(c config) any { return c.HealthPath }, "/healthz"},
		{"the health check can be off", "health_path: off", func(c config) any { return c.HealthPath }, "off"},
		{"the port for agent checks is off", "loops: 3", func(c config) any { return c.Agent.Listen }, "off"},
		{"max_memory of 0 stays, for the server to find out", "limits: {max_memory: 0}", func(c config) any { return c.Limits.MaxMemory }, server.Size(0)},
		{"max_memory may be off", "limits: {max_memory: off}", func(c config) any { return c.Limits.MaxMemory }, server.Size(-1)},
		{"a mark for the memory is a size", "limits: {max_memory: 3GiB}", func(c config) any { return c.Limits.MaxMemory }, server.Size(3 << 30)},
		{"the log has a level", "log: {level: debug}", func(c config) any { return c.Log.Level }, "debug"},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			c, err := parseConfig("FILE", []byte(test.text+"\n"+minimal), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := test.get(c); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			checkRoundTrip(t, c)
		})
	}
}

func TestAFileReplacesTheBuiltInEndpoints(t *testing.T) {
	c, err := parseConfig("FILE", []byte(minimal), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Endpoints) != 1 || c.Endpoints[0].Path != "/a" {
		t.Errorf("serves %+v, want /a alone", c.Endpoints)
	}
}

// checkRoundTrip fails unless the printed configuration reads back to the same value.
func checkRoundTrip(t *testing.T, c config) {
	t.Helper()
	text, err := c.print()
	if err != nil {
		t.Fatal(err)
	}
	var env []string
	if c.Internal.Token != "" { // it is not printed
		env = []string{"CARILLON_INTERNAL_TOKEN=" + string(c.Internal.Token)}
	}
	if c.Cluster.NATS.Password != "" {
		env = append(env, "CARILLON_CLUSTER_NATS_PASSWORD="+string(c.Cluster.NATS.Password))
	}
	if c.Cluster.NATS.Token != "" {
		env = append(env, "CARILLON_CLUSTER_NATS_TOKEN="+string(c.Cluster.NATS.Token))
	}
	again, err := parseConfig("PRINTED", text, env)
	if err != nil {
		t.Fatalf("the printed form is refused: %v\n%s", err, text)
	}
	if !reflect.DeepEqual(c, again) {
		t.Errorf("the printed form\n%s\nreads back as\n%+v\nwant\n%+v", text, again, c)
	}
}

func TestRoundTripOfEveryKey(t *testing.T) {
	// Each value differs from its default, so that a key which gets lost shows.
	cert, key := testenv.KeyPair(t)
	secure := fmt.Sprintf("{certificates: [{cert_file: %q, key_file: %q}], min_version: \"1.3\", client_auth: require, client_ca_file: %q}", cert, key, cert)
	text := `listen: unix:/run/s
listen_mode: 0600
listeners: [{listen: "[::1]:9000", proxy_protocol: {mode: required, from: [unix], timeout: 1s}}, {listen: "unix:@a b", mode: 0666}]
public_url: https://chat.example.com/base
proxy_protocol: {mode: optional, from: [10.0.0.0/8, "2001:db8::/32"], timeout: 7s}
trusted_proxies: [192.0.2.1]
loops: 7
endpoints:
  - path: "/with:colon"
    mode: echo
    subprotocols: [chat.v1, "true", "1"]
    origins: ["https://*.example.com", "null", "*"]
    compression: {enabled: true, threshold: off, level: 9}
    slow_consumer: {policy: latest, max_queue: 3MiB, close_code: 1008}
    auth:
      jwt: {algorithms: [ES256, EdDSA], jwks_url: "https://a.example.com/k", issuer: i, audience: a, leeway: off,
        from: ["cookie:t", query], optional: true}
      hook: {url: "http://127.0.0.1/h", timeout: 1s, headers: [X-A], max_in_flight: off}
  - {path: "/'\"ü", mode: broadcast}
  - path: /ws
    mode: topics
    topics: {subscribe: [a.>, "*.b"], publish: [c], patterns: true, presence: true, max_subscriptions: off}
    origins: [https://example.com, "*"]
topics: [{match: a.>, history: 7, max_age: off, max_bytes: 2MiB, latest: true}, {match: ">", history: 1, max_age: 1h, max_bytes: off}]
internal: {listen: ":8081", token: hush-hush-hush-hush, mode: 0640, tls: ` + secure + `}
tls: ` + secure + `
health_path: /up
cluster_optional: true
agent: {listen: "127.0.0.1:8082"}
limits: {max_connections: 5, max_head: 1000, handshake_timeout: 1h, max_tls_handshakes: off, max_message: off, max_fragments: off,
  idle_timeout: 1m, write_timeout: off, body_timeout: 40s, close_timeout: 1h30m5s, max_backlog: 1GiB, max_topics: 9, max_key_memory: 1MiB, max_memory: 2GiB,
  max_connections_per_address: 3, handshakes_per_second: 4, handshakes_per_second_per_address: 5, messages_per_second: 6, bytes_per_second: 7KiB,
  publishes_per_second: 8, requests_per_second: 9, decompressed_bytes_per_second: 10KiB}
ping: {interval: off, jitter: 0.0625, timeout: 1.5s, lb_idle_timeout: 75s}
takeover: true
connections: {max_age: 1h, max_age_jitter: off}
drain: {delay: 5s, duration: off, deadline: 6s, order: random, close_code: 1012}
pid_file: /run/carillon.pid
log: {level: error, format: json}
cluster: {name: C, node: N, storage: memory, replicas: 2, max_bytes: 3GiB, positions: /p, timeout: 7s, start_timeout: off, nats: {embedded: true, user: u,
  password: p-p-p-p-p-p-p-p-p, listen: ":4222", routes_listen: ":6223", routes: ["a:6222"], store_dir: /d, tls: {ca: /ca, cert: /c, key: /k}}}
`
	c, err := parseConfig("FILE", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	// What excludes others of the keys above.
	var rest []config
	for _, nats := range []string{"url: nats://a, token: t", "url: nats://a, nkey: /n", "url: nats://a, credentials: /c"} {
		other, err := parseConfig("FILE", []byte("cluster: {nats: {"+nats+"}}\n"+minimal), nil)
		if err != nil {
			t.Fatal(err)
		}
		checkRoundTrip(t, other)
		rest = append(rest, other)
	}
	plain, err := loadConfig("", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range settable(reflect.TypeFor[config]()) {
		b := reflect.ValueOf(plain).FieldByIndex(k.index).Interface()
		if !slices.ContainsFunc(append(rest, c), func(c config) bool {
			return !reflect.DeepEqual(reflect.ValueOf(c).FieldByIndex(k.index).Interface(), b)
		}) {
			t.Errorf("this test leaves %s at its default", k.path)
		}
	}
	checkRoundTrip(t, c)
}

func TestEnvironment(t *testing.T) {
	cert, key := testenv.KeyPair(t)
	certificates := fmt.Sprintf("[{cert_file: %q, key_file: %q}]", cert, key)
	other, _ := testenv.KeyPair(t)
	// One value for each variable; a new key needs a row here.
	values := map[string]string{
		"CARILLON_LISTEN": "[::1]:9000", "CARILLON_LOOPS": "7",
		"CARILLON_LISTEN_MODE":              "0600",
		"CARILLON_LISTENERS":                "[{listen: unix:/run/s, mode: 0666}, {listen: ':81', proxy_protocol: {mode: optional, from: [unix]}}]",
		"CARILLON_INTERNAL_MODE":            "0640",
		"CARILLON_PUBLIC_URL":               "wss://chat.example.com",
		"CARILLON_ENDPOINTS":                "[{path: /e, mode: broadcast, compression: {enabled: true}}]",
		"CARILLON_LIMITS_MAX_CONNECTIONS":   "5",
		"CARILLON_LIMITS_MAX_HEAD":          "1KiB",
		"CARILLON_LIMITS_HANDSHAKE_TIMEOUT": "11s",
		"CARILLON_LIMITS_MAX_MESSAGE":       "off",
		"CARILLON_LIMITS_MAX_FRAGMENTS":     "9",
		"CARILLON_LIMITS_IDLE_TIMEOUT":      "12s",
		"CARILLON_LIMITS_WRITE_TIMEOUT":     "off",
		"CARILLON_LIMITS_BODY_TIMEOUT":      "18s",
		"CARILLON_LIMITS_CLOSE_TIMEOUT":     "13s",
		"CARILLON_LIMITS_MAX_BACKLOG":       "1MiB",
		"CARILLON_LIMITS_MAX_TOPICS":        "off",
		"CARILLON_LIMITS_MAX_KEY_MEMORY":    "2MiB",
		"CARILLON_LIMITS_MAX_MEMORY":        "1GiB",
		"CARILLON_HEALTH_PATH":              "/up",
		"CARILLON_CLUSTER_OPTIONAL":         "true",
		"CARILLON_AGENT_LISTEN":             "127.0.0.1:8082",
		"CARILLON_TOPICS":                   "[{match: a, history: 3}]",
		"CARILLON_INTERNAL_LISTEN":          "off",
		"CARILLON_INTERNAL_TOKEN":           "hush-hush-hush-hush",
		"CARILLON_PING_INTERVAL":            "14s",
		"CARILLON_PROXY_PROTOCOL_MODE":      "required",
		"CARILLON_PROXY_PROTOCOL_FROM":      "[10.0.0.0/8]",
		"CARILLON_PROXY_PROTOCOL_TIMEOUT":   "17s",
		"CARILLON_TRUSTED_PROXIES":          "[10.0.0.0/8, '::1']",

		"CARILLON_LIMITS_MAX_CONNECTIONS_PER_ADDRESS":       "18",
		"CARILLON_LIMITS_HANDSHAKES_PER_SECOND":             "19",
		"CARILLON_LIMITS_HANDSHAKES_PER_SECOND_PER_ADDRESS": "20",
		"CARILLON_LIMITS_MESSAGES_PER_SECOND":               "21",
		"CARILLON_LIMITS_BYTES_PER_SECOND":                  "22KiB",
		"CARILLON_LIMITS_PUBLISHES_PER_SECOND":              "23",
		"CARILLON_LIMITS_REQUESTS_PER_SECOND":               "24",
		"CARILLON_LIMITS_MAX_TLS_HANDSHAKES":                "25",
		"CARILLON_LIMITS_DECOMPRESSED_BYTES_PER_SECOND":     "26KiB",
		"CARILLON_TLS_CERTIFICATES":                         certificates,
		"CARILLON_TLS_MIN_VERSION":                          "1.3",
		"CARILLON_TLS_CLIENT_AUTH":                          "require",
		"CARILLON_TLS_CLIENT_CA_FILE":                       other,
		"CARILLON_INTERNAL_TLS_CERTIFICATES":                certificates,
		"CARILLON_INTERNAL_TLS_MIN_VERSION":                 "1.3",
		"CARILLON_INTERNAL_TLS_CLIENT_AUTH":                 "require",
		"CARILLON_INTERNAL_TLS_CLIENT_CA_FILE":              other,
		"CARILLON_PING_JITTER":                              "off",
		"CARILLON_PING_TIMEOUT":                             "15s",
		"CARILLON_PING_LB_IDLE_TIMEOUT":                     "60s",
		"CARILLON_TAKEOVER":                                 "true",
		"CARILLON_CONNECTIONS_MAX_AGE":                      "17s",
		"CARILLON_DRAIN_DEADLINE":                           "16s",
		"CARILLON_DRAIN_CLOSE_CODE":                         "1012",
		"CARILLON_DRAIN_DELAY":                              "3s",
		"CARILLON_DRAIN_DURATION":                           "4s",
		"CARILLON_DRAIN_ORDER":                              "random",
		"CARILLON_CONNECTIONS_MAX_AGE_JITTER":               "1",
		"CARILLON_PID_FILE":                                 "/run/carillon.pid",
		"CARILLON_DEMO":                                     "false",
		"CARILLON_LOG_LEVEL":                                "warn",
		"CARILLON_LOG_FORMAT":                               "json",

		"CARILLON_CLUSTER_NAME":               "c",
		"CARILLON_CLUSTER_NODE":               "n",
		"CARILLON_CLUSTER_STORAGE":            "memory",
		"CARILLON_CLUSTER_REPLICAS":           "5",
		"CARILLON_CLUSTER_MAX_BYTES":          "1GiB",
		"CARILLON_CLUSTER_POSITIONS":          "/p",
		"CARILLON_CLUSTER_TIMEOUT":            "1s",
		"CARILLON_CLUSTER_START_TIMEOUT":      "off",
		"CARILLON_CLUSTER_NATS_URL":           "nats://127.0.0.1:4222",
		"CARILLON_CLUSTER_NATS_CREDENTIALS":   "/c",
		"CARILLON_CLUSTER_NATS_NKEY":          "/n",
		"CARILLON_CLUSTER_NATS_USER":          "u",
		"CARILLON_CLUSTER_NATS_PASSWORD":      "p-p-p-p-p-p-p-p-p",
		"CARILLON_CLUSTER_NATS_TOKEN":         "t",
		"CARILLON_CLUSTER_NATS_TLS_CA":        "/ca",
		"CARILLON_CLUSTER_NATS_TLS_CERT":      "/cert",
		"CARILLON_CLUSTER_NATS_TLS_KEY":       "/key",
		"CARILLON_CLUSTER_NATS_EMBEDDED":      "true",
		"CARILLON_CLUSTER_NATS_LISTEN":        "127.0.0.1:4222",
		"CARILLON_CLUSTER_NATS_ROUTES_LISTEN": ":6222",
		"CARILLON_CLUSTER_NATS_ROUTES":        "['a:6222']",
		"CARILLON_CLUSTER_NATS_STORE_DIR":     "/d",
	}
	// What must be set before another can be.
	embedded := []string{"CARILLON_CLUSTER_NATS_EMBEDDED=true"}
	protected := append(embedded, "CARILLON_CLUSTER_NATS_USER=u", "CARILLON_CLUSTER_NATS_PASSWORD=p-p-p-p-p-p-p-p-p")
	before := map[string][]string{
		"CARILLON_PROXY_PROTOCOL_MODE":        {"CARILLON_PROXY_PROTOCOL_FROM=[10.0.0.0/8]"},
		"CARILLON_CLUSTER_NATS_LISTEN":        embedded,
		"CARILLON_CLUSTER_NATS_ROUTES_LISTEN": protected,
		"CARILLON_CLUSTER_NATS_ROUTES":        protected,
		"CARILLON_CLUSTER_NATS_STORE_DIR":     embedded,
	}
	for _, section := range []string{"CARILLON_TLS_", "CARILLON_INTERNAL_TLS_"} {
		certificates := section + "CERTIFICATES=" + certificates
		before[section+"CLIENT_AUTH"] = []string{certificates, section + "CLIENT_CA_FILE=" + cert, section + "CLIENT_AUTH=request"}
		before[section+"CLIENT_CA_FILE"] = []string{certificates, section + "CLIENT_CA_FILE=" + cert, section + "CLIENT_AUTH=request"}
	}
	// What needs another, or excludes it, is in TestRoundTripOfEveryKey.
	pairs := map[string]string{"CARILLON_CLUSTER_NATS_USER": "_PASSWORD=p-p-p-p-p-p-p-p-p", "CARILLON_CLUSTER_NATS_PASSWORD": "_USER=u",
		"CARILLON_CLUSTER_NATS_TLS_CERT": "_TLS_KEY=/key", "CARILLON_CLUSTER_NATS_TLS_KEY": "_TLS_CERT=/cert"}
	apart := map[string]bool{"CARILLON_CLUSTER_NATS_URL": true, "CARILLON_CLUSTER_NATS_CREDENTIALS": true,
		"CARILLON_CLUSTER_NATS_NKEY": true, "CARILLON_CLUSTER_NATS_TOKEN": true}
	var all []string
	for _, k := range settable(reflect.TypeFor[config]()) {
		name := k.variable()
		text, ok := values[name]
		if !ok {
			t.Errorf("%s is not tested", name)
			continue
		}
		if !apart[name] {
			all = append(all, name+"="+text)
		}
		delete(values, name)
		if pairs[name] != "" {
			c, err := loadConfig("", []string{name + "=" + text, "CARILLON_CLUSTER_NATS" + pairs[name]})
			if got := reflect.ValueOf(c).FieldByIndex(k.index); err != nil || got.Kind() != reflect.String || text != got.Convert(reflect.TypeFor[string]()).String() {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			continue
		}
		t.Run(name, func(t *testing.T) {
			plain, err := loadConfig("", before[name])
			if err != nil {
				t.Fatal(err)
			}
			c, err := loadConfig("", append(before[name], name+"="+text))
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range settable(reflect.TypeFor[config]()) {
				got := reflect.ValueOf(c).FieldByIndex(other.index).Interface()
				same := reflect.DeepEqual(got, reflect.ValueOf(plain).FieldByIndex(other.index).Interface())
				if other.path == "drain.deadline" && (k.path == "drain.delay" || k.path == "drain.duration") {
					continue // it follows them
				}
				if same == (other.path == k.path) {
					t.Errorf("%s is %v", other.path, got)
				}
			}
		})
	}
	for name := range maps.Keys(values) {
		t.Errorf("%s is tested but is no variable", name)
	}
	c, err := loadConfig("", append(all, "PATH=/bin", "CARILLONX=1", "CARILLON_LISTEN="))
	if err != nil {
		t.Fatal(err)
	}
	checkRoundTrip(t, c)
}

// A printed configuration that had a token is refused until the token is given again: it must not become a token that
// can be guessed, nor none.
func TestATokenIsNotPrinted(t *testing.T) {
	c, err := parseConfig("FILE", []byte("internal: {token: hush-hush-hush-hush}\n"+minimal), nil)
	if err != nil || c.Internal.Token != "hush-hush-hush-hush" {
		t.Fatalf("%v", err)
	}
	text, err := c.print()
	if err != nil || bytes.Contains(text, []byte("hush-hush-hush-hush")) || !bytes.Contains(text, []byte("(set)")) {
		t.Fatalf("printed\n%s, %v", text, err)
	}
	_, err = parseConfig("FILE", text, nil)
	if err == nil || !strings.Contains(err.Error(), "internal.token: (set) is a placeholder for a hidden token") {
		t.Errorf("%v", err)
	}
	c, err = parseConfig("FILE", text, []string{"CARILLON_INTERNAL_TOKEN=hush-hush-hush-hush"})
	if err != nil || c.Internal.Token != "hush-hush-hush-hush" {
		t.Errorf("%v", err)
	}
}

func TestEnvironmentWinsOverTheFile(t *testing.T) {
	text := []byte("loops: 3\n" + minimal)
	c, err := parseConfig("FILE", text, []string{"CARILLON_LOOPS=4", "CARILLON_ENDPOINTS=[{path: /b, mode: echo}]"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Loops != 4 || len(c.Endpoints) != 1 || c.Endpoints[0].Path != "/b" {
		t.Errorf("got %d loops and endpoints %+v", c.Loops, c.Endpoints)
	}
	if c, err = parseConfig("FILE", text, []string{"CARILLON_LOOPS="}); err != nil || c.Loops != 3 {
		t.Errorf("an empty variable made it %d loops, %v", c.Loops, err)
	}
}

func TestVariablesOfTheClientsAreNoKeys(t *testing.T) {
	if _, err := loadConfig("", []string{"CARILLON_CA=/ca.pem", "CARILLON_API=http://a.example", "CARILLON_TOKEN=secret"}); err != nil {
		t.Error(err)
	}
	if _, err := loadConfig("", []string{"CARILLON_TOKENS=secret"}); err == nil || !strings.Contains(err.Error(), "unknown variable") {
		t.Errorf("an unknown variable: %v", err)
	}
	for _, k := range settable(reflect.TypeFor[config]()) {
		if isClientVariable(k.variable()) {
			t.Errorf("%s is the key %s and a client's variable", k.variable(), k.path)
		}
	}
}

func TestVariablesOfKubernetesAreIgnored(t *testing.T) {
	if _, err := loadConfig("", []string{
		"CARILLON_SERVICE_HOST=10.0.0.1", "CARILLON_SERVICE_PORT=8080", "CARILLON_SERVICE_PORT_HTTP=8080",
		"CARILLON_PORT=tcp://10.0.0.1:8080", "CARILLON_PORT_8080_TCP=tcp://10.0.0.1:8080",
		"CARILLON_PORT_8080_TCP_PROTO=tcp", "CARILLON_PORT_8080_TCP_PORT=8080", "CARILLON_PORT_8080_TCP_ADDR=10.0.0.1",
		"CARILLON_INTERNAL_SERVICE_HOST=10.0.0.2", "CARILLON_INTERNAL_PORT=tcp://10.0.0.2:8081",
	}); err != nil {
		t.Error(err)
	}
}

func TestLoadNamesAFileThatCannotBeRead(t *testing.T) {
	_, err := loadConfig(filepath.Join(t.TempDir(), "none.yaml"), nil)
	if err == nil || !strings.Contains(err.Error(), "none.yaml: no such file") {
		t.Errorf("got %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(builtIn, "")
	f.Add([]byte(minimal), "[{path: /b, mode: echo, subprotocols: [x]}]")
	for _, test := range refusals {
		f.Add([]byte(test.text), strings.TrimPrefix(strings.Join(test.env, " "), "CARILLON_ENDPOINTS="))
	}
	files, _ := filepath.Glob("*.yaml")
	for _, name := range files {
		text, _ := os.ReadFile(name)
		f.Add(bytes.ReplaceAll(text, []byte("off"), []byte("0")), "")
	}
	f.Fuzz(func(t *testing.T, text []byte, endpoints string) {
		c, err := parseConfig("FILE", text, []string{"CARILLON_ENDPOINTS=" + endpoints})
		if err == nil {
			checkRoundTrip(t, c)
		}
	})
}

func FuzzPrint(f *testing.F) {
	f.Add("localhost", "/with: colon", "chat", 0.5)
	f.Add("off", "/'\"#&*!|>%@`\t\n\r\u2028\x00\u0085", "~", 5e-324)
	f.Add("", "/true", "null", -190.0)
	f.Fuzz(func(t *testing.T, host, path, subprotocol string, jitter float64) {
		c := config{Options: server.Options{
			Listen:    host + ":80",
			Endpoints: []server.Endpoint{{Path: path, Mode: server.ModeEcho, Subprotocols: []string{subprotocol}}},
			Ping:      server.Ping{Jitter: jitter},
		}}
		var s string
		if setScalar(reflect.ValueOf(&s).Elem(), host+path+subprotocol) == nil && len(c.resolve()) == 0 {
			checkRoundTrip(t, c)
		}
	})
}

// docs/operations.md says for each key what a reload does, and agrees with the program about restarts.
func TestEveryKeyHasItsRowInTheOperatorsBook(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := bytes.Cut(text, []byte("| key | on a reload |\n| --- | --- |\n"))
	if !found {
		t.Fatal("there is no table")
	}
	restart := map[string]bool{} // by key or section
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		if len(cells) != 2 {
			break
		}
		for _, m := range regexp.MustCompile("`([a-z_.\\[\\]]+)`").FindAllStringSubmatch(cells[0], -1) {
			if _, twice := restart[m[1]]; twice {
				t.Errorf("%s is given twice", m[1])
			}
			restart[m[1]] = strings.HasPrefix(cells[1], "needs a restart")
		}
	}
	used := map[string]bool{}
	for _, k := range keys(reflect.TypeFor[config](), "", nil, false) {
		if k.typ.Kind() == reflect.Struct || k.path == "endpoints" {
			continue
		}
		section := strings.TrimPrefix(k.path, "topics[].") // whose rules are one key
		if section != k.path {
			section = "topics"
		}
		needs, stated := restart[section]
		for !stated && section != "" {
			section = section[:max(0, strings.LastIndexAny(section, ".["))]
			needs, stated = restart[section]
		}
		if !stated || needs != needsRestart(k.path) {
			t.Errorf("%s: stated %v, by %q, needs a restart %v", k.path, stated, section, needsRestart(k.path))
		}
		used[section] = true
	}
	for key := range restart {
		if !used[key] {
			t.Errorf("%s is no key", key)
		}
	}
}

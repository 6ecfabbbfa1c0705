package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// refusals are configurations that must be refused, and how, to the letter.
var refusals = []struct {
	sentence string
	text     string
	env      []string
	want     []string // one for each line of the error
}{
	{sentence: "an empty file says nothing", text: "",
		want: []string{`FILE:1:1: is empty: expected keys such as listen and endpoints`}},
	{sentence: "a file of comments says nothing", text: "# listen: :80\n\n# loops: 1\n",
		want: []string{`FILE:1:1: is empty: expected keys such as listen and endpoints`}},
	{sentence: "a file without endpoints serves nothing", text: "loops: 1 # no endpoints\n",
		want: []string{`FILE:1:1: endpoints: is empty: expected at least one, such as {path: /echo, mode: echo}`}},
	{sentence: "an empty list of endpoints serves nothing", text: "loops: 1\nendpoints: []\n",
		want: []string{`FILE:2:12: endpoints: is empty: expected at least one, such as {path: /echo, mode: echo}`}},
	{sentence: "a list is no configuration", text: "- endpoints\n",
		want: []string{`FILE:1:1: is a list: expected keys and values`}},
	{sentence: "a word is no configuration", text: "endpoints\n",
		want: []string{`FILE:1:1: is a single value: expected keys and values`}},
	{sentence: "a second document is refused", text: "loops: 1\n---\nendpoints: []\n",
		want: []string{`FILE:2:1: a second document starts here: expected one`}},
	{sentence: "a second document after an end mark is refused", text: "loops: 1\n...\nendpoints: []\n",
		want: []string{`FILE:3:1: a second document starts here: expected one`}},
	{sentence: "a tab does not indent", text: "limits:\n\tmax_head: 1KiB\n",
		want: []string{`FILE:2:1: not YAML: tabs cannot indent: expected spaces`}},
	{sentence: "an open bracket is refused", text: "loops: 1\nendpoints: [{path: /a}\n",
		want: []string{`FILE:2:12: not YAML: sequence end token ']' not found`}},
	{sentence: "what is not UTF-8 is refused", text: "loops: 1\nlisten: \xff\n",
		want: []string{`FILE:2:9: is not valid UTF-8`}},
	{sentence: "an anchor is refused", text: "loops: &n 1\n",
		want: []string{`FILE:1:8: loops: is an anchor, an alias or a tag, which are not supported: expected a single value`}},

	{sentence: "a key is set twice", text: "limits:\n  max_head: 1KiB\n  max_head: 2KiB\n",
		want: []string{`FILE:3:3: limits.max_head: is set twice, first on line 2`}},
	{sentence: "a key of an endpoint is set twice", text: "endpoints: [{path: /a, path: /b, mode: echo}]\n",
		want: []string{`FILE:1:24: endpoints[0].path: is set twice, first on line 1`}},
	{sentence: "a key is misspelt", text: "limits:\n  max_mesage: 1KiB\n",
		want: []string{`FILE:2:3: limits.max_mesage: unknown key, did you mean max_message?`}},
	{sentence: "a key is written in another style", text: "limits:\n  maxMessage: 1KiB\n",
		want: []string{`FILE:2:3: limits.maxMessage: unknown key, did you mean max_message?`}},
	{sentence: "a key of the top level is misspelt", text: "lisen: :80\n",
		want: []string{`FILE:1:1: lisen: unknown key, did you mean listen?`}},
	{sentence: "a key of an endpoint is misspelt", text: "endpoints:\n  - path: /a\n    mod: echo\n",
		want: []string{`FILE:3:5: endpoints[0].mod: unknown key, did you mean mode?`}},
	{sentence: "a key stands in the wrong section", text: "max_message: 1KiB\n",
		want: []string{`FILE:1:1: max_message: unknown key, did you mean limits.max_message?`}},
	{sentence: "a key of an endpoint stands at the top", text: "slow_consumer: {}\n",
		want: []string{`FILE:1:1: slow_consumer: unknown key, did you mean endpoints[].slow_consumer?`}},
	{sentence: "a key is like no other", text: "ping:\n  colour: blue\n",
		want: []string{`FILE:2:3: ping.colour: unknown key: expected one of interval, jitter, lb_idle_timeout, timeout`}},
	{sentence: "a merge is refused", text: "ping:\n  <<: {jitter: 1}\n",
		want: []string{`FILE:2:3: ping.<<: unknown key: expected one of interval, jitter, lb_idle_timeout, timeout`}},
	{sentence: "an unknown key cannot break the line", text: "\"a\\nb\": 1\n",
		want: []string{`FILE:1:1: "a\nb": unknown key: expected one of agent, cluster, cluster_optional, connections, demo, drain, endpoints, health_path, internal, limits, listen, listen_mode, listeners, log, loops, pid_file, ping, proxy_protocol, public_url, takeover, tls, topics, trusted_proxies`}},

	{sentence: "a section has got another name", text: "shutdown: {timeout: 5s}\n",
		want: []string{`FILE:1:1: shutdown: is no longer supported: expected drain; drain.deadline replaces shutdown.timeout`}},
	{sentence: "a variable has got another name", text: minimal, env: []string{"CARILLON_SHUTDOWN_TIMEOUT=5s"},
		want: []string{`CARILLON_SHUTDOWN_TIMEOUT: is no longer supported: expected CARILLON_DRAIN_DEADLINE`}},
	{sentence: "a deadline comes before the end", text: minimal + "drain: {deadline: 10s}\n",
		want: []string{`FILE:2:19: drain.deadline: 10s is too short: expected more than drain.delay and drain.duration together, which are 10s`}},

	{sentence: "a section is not a value", text: "limits: 5\n",
		want: []string{`FILE:1:9: limits: is a single value: expected keys and values`}},
	{sentence: "a section is not a list", text: "limits:\n  - max_head: 1KiB\n",
		want: []string{`FILE:2:3: limits: is a list: expected keys and values`}},
	{sentence: "a list is not a value", text: "endpoints: /echo\n",
		want: []string{`FILE:1:12: endpoints: is a single value: expected a list`}},
	{sentence: "a list is not a section", text: "endpoints:\n  path: /echo\n",
		want: []string{`FILE:2:3: endpoints: is a section: expected a list`}},
	{sentence: "an endpoint is not a value", text: "endpoints: [/echo]\n",
		want: []string{`FILE:1:13: endpoints[0]: is a single value: expected keys and values`}},
	{sentence: "an endpoint is not empty", text: "endpoints:\n  -\n",
		want: []string{`FILE:2:5: endpoints[0]: is empty: expected keys and values`}},
	{sentence: "a value is not empty", text: "listen:\n",
		want: []string{`FILE:1:8: listen: is empty: expected a single value`}},
	{sentence: "a value is not a list", text: "listen: [a, b]\n",
		want: []string{`FILE:1:9: listen: is a list: expected a single value`}},

	{sentence: "a duration has a unit", text: "limits:\n  idle_timeout: 30\n",
		want: []string{`FILE:2:17: limits.idle_timeout: 30 has no unit: expected a duration, such as 30s for seconds`}},
	{sentence: "a duration is a duration", text: "ping: {interval: soon}\n",
		want: []string{`FILE:1:18: ping.interval: "soon" is not a duration: expected one such as 30s or 1m30s`}},
	{sentence: "a size is a size", text: "limits:\n  max_message: 1MB\n",
		want: []string{`FILE:2:16: limits.max_message: "1MB" is not a size: expected a whole number of B, KiB, MiB or GiB, such as 64KiB, or off`}},
	{sentence: "a count is a whole number", text: "loops: 1.5\n",
		want: []string{`FILE:1:8: loops: "1.5" is not a whole number: expected one such as 1000`}},
	{sentence: "a count is not text", text: "loops: '4'\n",
		want: []string{`FILE:1:8: loops: "4" is quoted: expected a number without quotes`}},
	{sentence: "a count fits into its field", text: "limits: {max_connections: 99999999999999999999}\n",
		want: []string{`FILE:1:27: limits.max_connections: "99999999999999999999" is not a whole number: expected one such as 1000`}},
	{sentence: "jitter is a number", text: "ping: {jitter: much}\n",
		want: []string{`FILE:1:16: ping.jitter: "much" is not a number: expected one such as 0.2`}},
	{sentence: "a switch is true or false", text: "endpoints: [{path: /a, mode: echo, compression: {enabled: yes}}]\n",
		want: []string{`FILE:1:59: endpoints[0].compression.enabled: "yes" is not a boolean: expected true or false`}},
	{sentence: "a text has no line break", text: "listen: \"a\\nb:80\"\n",
		want: []string{`FILE:1:9: listen: "a\nb:80" has a non-printable character: expected plain text`}},
	{sentence: "every value of the wrong kind is named", text: "loops: many\nping: {jitter: much}\n",
		want: []string{
			`FILE:1:8: loops: "many" is not a whole number: expected one such as 1000`,
			`FILE:2:16: ping.jitter: "much" is not a number: expected one such as 0.2`,
		}},

	{sentence: "an address has a port", text: "listen: localhost\n" + minimal,
		want: []string{`FILE:1:9: listen: "localhost" is not an address: expected host:port, such as :8080, 127.0.0.1:8080 or unix:/path`}},
	{sentence: "a port alone is not an address", text: "listen: 8080\n" + minimal,
		want: []string{`FILE:1:9: listen: "8080" is not an address: expected host:port, such as :8080, 127.0.0.1:8080 or unix:/path`}},
	{sentence: "close_timeout cannot be off", text: "limits:\n  close_timeout: off\n" + minimal,
		want: []string{`FILE:2:18: limits.close_timeout: cannot be turned off: expected a duration such as 5s`}},
	{sentence: "loops cannot be off", text: "loops: off\n" + minimal,
		want: []string{`FILE:1:8: loops: -1 is out of range: expected 1 to 255, or 0 for one per processor`}},
	{sentence: "what is negative is not meant as off", text: "ping: {interval: -5s, jitter: -0.3}\nlimits: {max_fragments: -1, max_topics: -9}\nloops: -2\n" + minimal,
		want: []string{
			`FILE:1:18: ping.interval: -5s is negative: expected 0 or more, or off for a key that can be off`,
			`FILE:1:31: ping.jitter: -0.3 is negative: expected 0 or more, or off for a key that can be off`,
			`FILE:2:25: limits.max_fragments: -1 is negative: expected 0 or more, or off for a key that can be off`,
			`FILE:2:41: limits.max_topics: -9 is negative: expected 0 or more, or off for a key that can be off`,
			`FILE:3:8: loops: -2 is negative: expected 0 or more, or off for a key that can be off`,
		}},
	{sentence: "nor is it in a variable", text: minimal, env: []string{"CARILLON_LIMITS_WRITE_TIMEOUT=-30s"},
		want: []string{`CARILLON_LIMITS_WRITE_TIMEOUT: limits.write_timeout: -30s is negative: expected 0 or more, or off for a key that can be off`}},
	{sentence: "a size is not negative either", text: "limits: {max_message: -64KiB}\n" + minimal,
		want: []string{`FILE:1:23: limits.max_message: "-64KiB" is not a size: expected a whole number of B, KiB, MiB or GiB, such as 64KiB, or off`}},
	{sentence: "a log level is known", text: "log:\n  level: verbose\n" + minimal,
		want: []string{`FILE:2:10: log.level: "verbose" is unknown: expected debug, info, warn or error`}},
	{sentence: "a log format is known", text: "log:\n  format: xml\n" + minimal,
		want: []string{`FILE:2:11: log.format: "xml" is unknown: expected text or json`}},
	{sentence: "an endpoint without a mode is found by its first key", text: "endpoints:\n  - path: /a\n",
		want: []string{`FILE:2:5: endpoints[0].mode: is missing: expected echo, broadcast or topics`}},
	{sentence: "permissions are octal", text: "listen_mode: 0888\n" + minimal,
		want: []string{`FILE:1:14: listen_mode: "0888" is not a file mode: expected an octal number up to 0777, such as 0660`}},
	{sentence: "permissions are no word", text: "listen_mode: off\n" + minimal,
		want: []string{`FILE:1:14: listen_mode: "off" is not a file mode: expected an octal number up to 0777, such as 0660`}},
	{sentence: "a unix socket has a path from the root", text: "listen: unix:s\n" + minimal,
		want: []string{`FILE:1:9: listen: "unix:s" is not a unix socket: expected unix:/path, with a path from the root`}},
	{sentence: "a listener has an address", text: "listeners:\n  - mode: 0600\n" + minimal,
		want: []string{`FILE:2:5: listeners[0].listen: "" is not an address: expected host:port, such as :8080, 127.0.0.1:8080 or unix:/path`}},
	{sentence: "an address is served once", text: "listeners:\n  - listen: 127.0.0.1:8080\n" + minimal,
		want: []string{`FILE:2:13: listeners[0].listen: 127.0.0.1:8080 is already the address of listen: expected another one`}},
	{sentence: "a listener's balancers are networks", text: "listeners:\n  - listen: :81\n    proxy_protocol: {mode: required, from: [linux]}\n" + minimal,
		want: []string{`FILE:3:45: listeners[0].proxy_protocol.from[0]: "linux" is not a network: expected one such as 10.0.0.0/8, an address, or unix`}},
	{sentence: "an internal address is an address", text: "internal:\n  listen: 8081\n" + minimal,
		want: []string{`FILE:2:11: internal.listen: "8081" is not an address: expected host:port, such as 127.0.0.1:8081, unix:/path, or off`}},
	{sentence: "an internal address that others reach needs a token", text: "internal: {listen: 0.0.0.0:8081}\n" + minimal,
		want: []string{`FILE:1:20: internal.listen: 0.0.0.0:8081 is reachable from other machines: expected internal.token (CARILLON_INTERNAL_TOKEN) as well, or an address such as 127.0.0.1:8081`}},
	{sentence: "two interfaces need two addresses", text: "listen: :8081\n" + minimal,
		want: []string{`FILE:1:1: internal.listen: 127.0.0.1:8081 is already the address of listen: expected another one`}},
	{sentence: "a token that cannot be sent is not repeated", text: "internal:\n  token: hush hush\n" + minimal,
		want: []string{`FILE:2:10: internal.token: has a space or other character not allowed in a header: expected visible ASCII characters`}},
	{sentence: "nor is one of the environment", text: minimal, env: []string{"CARILLON_INTERNAL_TOKEN=hüsh"},
		want: []string{`CARILLON_INTERNAL_TOKEN: internal.token: has a space or other character not allowed in a header: expected visible ASCII characters`}},
	{sentence: "a rule matches something", text: "topics:\n  - history: 3\n" + minimal,
		want: []string{`FILE:2:5: topics[0].match: is missing: expected a topic or pattern, such as prices.eu or prices.>`}},
	{sentence: "a rule's pattern is one", text: "topics:\n  - {match: a..b}\n  - match: '>.a'\n" + minimal,
		want: []string{
			`FILE:2:13: topics[0].match: "a..b": level 2 is empty`,
			`FILE:3:12: topics[1].match: ">.a": has > in level 1: expected it in the last level only`,
		}},
	{sentence: "a history has a length", text: "topics: [{match: a, history: off}]\n" + minimal,
		want: []string{`FILE:1:30: topics[0].history: -1 is out of range: expected 0 to 10000000 messages`}},
	{sentence: "an age has a unit", text: "topics: [{match: a, max_age: 5}]\n" + minimal,
		want: []string{`FILE:1:30: topics[0].max_age: 5 has no unit: expected a duration, such as 5s for seconds`}},
	{sentence: "an age is not for ever by its length", text: "topics: [{match: a, max_age: 1000h}]\n" + minimal,
		want: []string{`FILE:1:30: topics[0].max_age: 1000h0m0s is out of range: expected 1ms to 168h0m0s`}},
	{sentence: "a number of bytes is a size", text: "topics: [{match: a, max_bytes: lots}]\n" + minimal,
		want: []string{`FILE:1:32: topics[0].max_bytes: "lots" is not a size: expected a whole number of B, KiB, MiB or GiB, such as 64KiB, or off`}},
	{sentence: "latest is a switch", text: "topics: [{match: a, latest: yes}]\n" + minimal,
		want: []string{`FILE:1:29: topics[0].latest: "yes" is not a boolean: expected true or false`}},
	{sentence: "a limit of topics is a whole number", text: "limits: {max_topics: 1e6}\n" + minimal,
		want: []string{`FILE:1:22: limits.max_topics: "1e6" is not a whole number: expected one such as 1000`}},
	{sentence: "what clients may do is about topics", text: "endpoints: [{path: /a, mode: topics, topics: {subscribe: [a, $b], publish: ['a b'], max_subscriptions: many}}]\n",
		want: []string{
			`FILE:1:104: endpoints[0].topics.max_subscriptions: "many" is not a whole number: expected one such as 1000`,
			`FILE:1:62: endpoints[0].topics.subscribe[1]: "$b": begins with $, which is reserved`,
			`FILE:1:77: endpoints[0].topics.publish[0]: "a b": has the character ' ', which is not allowed`,
		}},
	{sentence: "what clients may subscribe and publish to are patterns", text: "endpoints: [{path: /a, mode: topics, topics: {subscribe: [a, $b], publish: ['a b']}}]\n",
		want: []string{
			`FILE:1:62: endpoints[0].topics.subscribe[1]: "$b": begins with $, which is reserved`,
			`FILE:1:77: endpoints[0].topics.publish[0]: "a b": has the character ' ', which is not allowed`,
		}},
	{sentence: "patterns is a switch", text: "endpoints: [{path: /a, mode: topics, topics: {patterns: [a], presence: 1}}]\n",
		want: []string{
			`FILE:1:57: endpoints[0].topics.patterns: is a list: expected a single value`,
			`FILE:1:72: endpoints[0].topics.presence: "1" is not a boolean: expected true or false`,
		}},
	{sentence: "an origin is one", text: "endpoints: [{path: /a, mode: topics, origins: [example.com]}]\n",
		want: []string{`FILE:1:48: endpoints[0].origins[0]: "example.com" is not an origin: expected one such as https://example.com, https://*.example.com, null or *`}},
	{sentence: "every impossible value is named, each in its place",
		text: "endpoints:\n  - {path: /a, mode: echo}\n  - path: /a\n    mode: shout\n    slow_consumer: {close_code: 1000}\nping:\n  jitter: 2\n",
		want: []string{
			`FILE:7:11: ping.jitter: 2 is out of range: expected a fraction of the interval, 0 to 1`,
			`FILE:4:11: endpoints[1].mode: "shout" is unknown: expected echo, broadcast or topics`,
			`FILE:5:33: endpoints[1].slow_consumer.close_code: 1000 is not allowed: expected 1013 (try again later) or 1008 (policy violation)`,
			`FILE:3:11: endpoints[1].path: /a is already the path of endpoints[0]`,
		}},

	{sentence: "a variable is misspelt", text: minimal, env: []string{"CARILLON_LISTENN=:80"},
		want: []string{`CARILLON_LISTENN: unknown variable, did you mean CARILLON_LISTEN?`}},
	{sentence: "a variable lacks its section", text: minimal, env: []string{"CARILLON_MAX_MESSAGE=1KiB"},
		want: []string{`CARILLON_MAX_MESSAGE: unknown variable, did you mean CARILLON_LIMITS_MAX_MESSAGE?`}},
	{sentence: "a variable is like no other", text: minimal, env: []string{"CARILLON_PORT=9000"},
		want: []string{`CARILLON_PORT: unknown variable: expected CARILLON_<SECTION>_<KEY>: see carillon config --help`}},
	{sentence: "a variable has a value of the wrong kind", text: minimal, env: []string{"CARILLON_PING_INTERVAL=30"},
		want: []string{`CARILLON_PING_INTERVAL: ping.interval: 30 has no unit: expected a duration, such as 30s for seconds`}},
	{sentence: "a variable has an impossible value, the file a good one", text: "ping: {jitter: 0.5}\n" + minimal, env: []string{"CARILLON_PING_JITTER=3"},
		want: []string{`CARILLON_PING_JITTER: ping.jitter: 3 is out of range: expected a fraction of the interval, 0 to 1`}},
	{sentence: "a certificate is not there", text: "tls: {certificates: [{cert_file: /nowhere/cert.pem}]}\n" + minimal,
		want: []string{`FILE:1:34: tls.certificates[0].cert_file: open /nowhere/cert.pem: no such file or directory`}},
	{sentence: "a certificate is none", text: "internal: {tls: {certificates: [{cert_file: yaml.go}]}}\n" + minimal,
		want: []string{`FILE:1:45: internal.tls.certificates[0].cert_file: yaml.go with the key in yaml.go: tls: failed to find any PEM data in certificate input`}},
	{sentence: "clients cannot show certificates without TLS", text: "tls: {client_auth: require, min_version: 1.1}\n" + minimal,
		want: []string{`FILE:1:42: tls.min_version: "1.1" is unknown: expected 1.2 or 1.3`,
			`FILE:1:20: tls.client_auth: is require, but there are no certificates, and so no TLS`}},
	{sentence: "a variable's list is not a list", text: minimal, env: []string{"CARILLON_ENDPOINTS=/echo"},
		want: []string{`CARILLON_ENDPOINTS: endpoints: is a single value: expected a list`}},
	{sentence: "a variable's list is broken", text: minimal, env: []string{"CARILLON_ENDPOINTS=[{path: /a, mode: echo]"},
		want: []string{`CARILLON_ENDPOINTS: not YAML: ',' or '}' must be specified`}},
	{sentence: "a variable's list has a misspelt key", text: minimal, env: []string{"CARILLON_ENDPOINTS=[{path: /a, mod: echo}]"},
		want: []string{`CARILLON_ENDPOINTS: endpoints[0].mod: unknown key, did you mean mode?`}},
	{sentence: "a variable's list lacks what the file's has", text: minimal, env: []string{"CARILLON_ENDPOINTS=[{path: /a}]"},
		want: []string{`CARILLON_ENDPOINTS: endpoints[0].mode: is missing: expected echo, broadcast or topics`}},
	{sentence: "a variable's empty list serves nothing", text: minimal, env: []string{"CARILLON_ENDPOINTS=[]"},
		want: []string{`CARILLON_ENDPOINTS: endpoints: is empty: expected at least one, such as {path: /echo, mode: echo}`}},
}

func TestRefusals(t *testing.T) {
	for _, test := range refusals {
		t.Run(test.sentence, func(t *testing.T) {
			text := test.text
			if all := strings.Join(append(test.want, text), ""); !strings.Contains(all, "endpoints") && strings.HasSuffix(text, "\n") {
				text += minimal // that it has none is not what the row is about
			}
			_, err := parseConfig("FILE", []byte(text), test.env)
			if err == nil {
				t.Fatal("accepted")
			}
			if want := strings.Join(test.want, "\n"); err.Error() != want {
				t.Errorf("got\n%v\nwant\n%s", err, want)
			}
		})
	}
}

// What could not be decoded does not hide what is wrong with the rest, and has no consequences that are told, too.
func TestEveryProblemIsTold(t *testing.T) {
	for _, test := range []struct {
		sentence, text string
		env            []string
		want           []string
	}{
		{"an unknown key, a value of the wrong kind, and one out of range", "limits: {max_heads: 1, max_message: 12xx}\nloops: 300\nlog: {level: loud}\n" +
			"endpoints:\n  - {path: ws, mode: echo}\n  - {path: /b, mode: broadcats}\ncluster: {name: x y}\n", []string{"CARILLON_PING_INTERVAL=soon"}, []string{
			`FILE:1:10: limits.max_heads: unknown key, did you mean max_head?`,
			`FILE:1:37: limits.max_message: "12xx" is not a size: expected a whole number of B, KiB, MiB or GiB, such as 64KiB, or off`,
			`CARILLON_PING_INTERVAL: ping.interval: "soon" is not a duration: expected one such as 30s or 1m30s`,
			`FILE:2:8: loops: 300 is out of range: expected 1 to 255, or 0 for one per processor`,
			`FILE:5:12: endpoints[0].path: "ws" is not a path: expected one that starts with / and has no query, fragment or space`,
			`FILE:6:22: endpoints[1].mode: "broadcats" is unknown: expected echo, broadcast or topics`,
			`FILE:7:17: cluster.name: "x y" is not a valid name: expected 1 to 32 letters, digits, - or _`,
			`FILE:3:14: log.level: "loud" is unknown: expected debug, info, warn or error`,
		}},
		{"a misspelt key is not missing", "endpoint: [{path: /a, mode: echo}]\nloops: 300\n", nil, []string{
			`FILE:1:1: endpoint: unknown key, did you mean endpoints?`,
			`FILE:2:8: loops: 300 is out of range: expected 1 to 255, or 0 for one per processor`,
		}},
		{"nor is one of an endpoint", "endpoints: [{pathe: /a, mode: echo}, {path: b, mode: echo}]\n", nil, []string{
			`FILE:1:14: endpoints[0].pathe: unknown key, did you mean path?`,
			`FILE:1:45: endpoints[1].path: "b" is not a path: expected one that starts with / and has no query, fragment or space`,
		}},
		{"a value that was not read is not compared", "ping: {timeout: soon, interval: 10s}\nloops: 300\n" + minimal, nil, []string{
			`FILE:1:17: ping.timeout: "soon" is not a duration: expected one such as 30s or 1m30s`,
			`FILE:2:8: loops: 300 is out of range: expected 1 to 255, or 0 for one per processor`,
		}},
		{"of a text that is not YAML nothing is known", "endpoints: [\n", []string{"CARILLON_LOOPS=x"}, []string{
			`FILE:1:12: not YAML: sequence end token ']' not found`,
			`CARILLON_LOOPS: loops: "x" is not a whole number: expected one such as 1000`,
		}},
		{"an unknown variable", "loops: 300\n" + minimal, []string{"CARILLON_LOPS=1"}, []string{
			`CARILLON_LOPS: unknown variable, did you mean CARILLON_LOOPS?`,
			`FILE:1:8: loops: 300 is out of range: expected 1 to 255, or 0 for one per processor`,
		}},
	} {
		t.Run(test.sentence, func(t *testing.T) {
			_, err := parseConfig("FILE", []byte(test.text), test.env)
			if got := fmt.Sprint(err); got != strings.Join(test.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", got, strings.Join(test.want, "\n"))
			}
		})
	}
}

// A check reads the files that the start would read.
func TestACheckReadsTheFiles(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	text := "pid_file: " + none + "/pid\nendpoints: [{path: /, mode: echo, auth: {jwt: {algorithms: [HS256], key_file: " + none + "}}}]\n" +
		"cluster: {nats: {url: 'nats://127.0.0.1:1', credentials: " + none + "}}\n"
	want := []string{
		"FILE:2:79: endpoints[0].auth.jwt.key_file: stat " + none + ": no such file or directory",
		"FILE:3:58: cluster.nats.credentials: open " + none + ": no such file or directory",
		"FILE:1:11: pid_file: stat " + none + ": no such file or directory",
	}
	if _, err := examineConfig("FILE", []byte(text), nil); fmt.Sprint(err) != strings.Join(want, "\n") {
		t.Errorf("got\n%v\nwant\n%s", err, strings.Join(want, "\n"))
	}
	for _, test := range []struct{ nats, want string }{
		{"nkey: " + none, "cluster.nats.nkey: nats: open " + none},
		{"tls: {ca: " + none + "}", "cluster.nats.tls.ca: open " + none},
	} {
		_, err := examineConfig("FILE", []byte(minimal+"cluster: {nats: {url: 'nats://h', "+test.nats+"}}\n"), nil)
		if !strings.Contains(fmt.Sprint(err), test.want) {
			t.Errorf("%s: %v", test.nats, err)
		}
	}
	good := strings.ReplaceAll(strings.ReplaceAll("\ufeff"+minimal+"demo: true\n", "\n", "\r\n"), "'", "")
	if _, err := examineConfig("FILE", []byte(good), nil); err != nil {
		t.Error(err)
	}
}

func TestNearest(t *testing.T) {
	for _, test := range []struct{ word, want string }{
		{"max_message", "max_message"},
		{"MAX_MESSAGE", "max_message"},
		{"max-message", "max_message"},
		{"lop", ""},
		{"loop", "loops"},
		{"", ""},
		{"x", ""},
		{"something else", ""},
	} {
		if got := nearest(test.word, []string{"loops", "max_message", "path"}); got != test.want {
			t.Errorf("nearest to %q is %q, want %q", test.word, got, test.want)
		}
	}
}

package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
)

const sesame = "sesame"

// hidden is a URL with a secret wherever one can stand.
func hidden(scheme, address string) string {
	return fmt.Sprintf("%s://user-%[3]s:password-%[3]s@%[2]s/p?token=query-%[3]s", scheme, address, sesame)
}

// A secret stands in every place of the configuration that can have one. The configuration that is printed has none,
// and what is printed is not taken for a configuration.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Chdir(t.TempDir())
	const one = "internal: {token: sesame-of-the-interface}\n"
	endpoints := "endpoints: [{path: /, mode: echo, auth: {hook: {url: '" + hidden("https", "a.example.com") + "'}, jwt: {algorithms: [RS256], jwks_url: '" +
		hidden("https", "b.example.com") + "'}}}]\n"
	for _, nats := range []string{
		"{url: '" + hidden("nats", "c.example.com") + "," + hidden("nats", "d.example.com") + "', token: sesame-of-nats}",
		"{url: 'nats://sesame@c.example.com', user: u, password: sesame-of-nats}",
		"{embedded: true, user: u, password: sesame-of-the-nodes, routes: ['d.example.com:6222']}",
	} {
		c, err := parseConfig("FILE", []byte(one+endpoints+"cluster: {nats: "+nats+"}\n"), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := c.print()
		if err != nil || strings.Contains(string(text), sesame) {
			t.Errorf("%v\n%s", err, text)
		}
		for _, want := range []string{"https://(set)@a.example.com/p?(set)", "https://(set)@b.example.com/p?(set)"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s is not in\n%s", want, text)
			}
		}
		_, err = parseConfig("FILE", text, nil)
		for _, key := range []string{"endpoints[0].auth.hook.url: (set) is a placeholder for", "endpoints[0].auth.jwt.jwks_url: (set) is a placeholder for", "internal.token: (set)"} {
			if err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %v", key, err)
			}
		}
		if strings.Contains(nats, "{url") && !strings.Contains(fmt.Sprint(err), "cluster.nats.url: (set) is a placeholder for") {
			t.Error(err)
		}
	}
}

// Nor do errors repeat one, whatever else is wrong with it.
func TestSecretsAreNotInErrors(t *testing.T) {
	wrong := strings.Replace(hidden("ftp", "h"), "ftp://", "ftp:", 1)
	n := 0
	for _, url := range []string{hidden("ftp", "h"), hidden("https", "h:x"), hidden("https", "[h"), hidden("https", "h") + "#" + sesame, wrong,
		"https://u:" + sesame + "/x@h", "u:" + sesame + "@h", "nats://u:" + sesame + ",x" + sesame + "@h:4222", hidden("nats", "h:x"), "https://h/\x7f?" + sesame} {
		for _, text := range []string{
			"public_url: %q", "cluster: {nats: {url: %q}}", "cluster: {nats: {embedded: true, routes: [%q]}}", "cluster: {nats: {embedded: true, listen: %q}}",
			"endpoints: [{path: /, mode: echo, auth: {hook: {url: %q}}}]", "endpoints: [{path: /, mode: echo, origins: [%q]}]",
			"endpoints: [{path: /, mode: echo, auth: {jwt: {algorithms: [RS256], jwks_url: %q}}}]",
		} {
			text = fmt.Sprintf(text, url) + "\n"
			if !strings.Contains(text, "endpoints") {
				text += minimal
			}
			_, err := parseConfig("FILE", []byte(text), nil)
			if err != nil {
				n++
			}
			if strings.Contains(fmt.Sprint(err), sesame) {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
	if n < 40 {
		t.Errorf("only %d are wrong", n)
	}
	for _, text := range []string{"internal: {token: sesame}", "cluster: {nats: {embedded: true, user: u, password: sesame}}", "internal: {token: 'sesame of the interface'}"} {
		if _, err := parseConfig("FILE", []byte(text+"\n"+minimal), nil); err == nil || strings.Contains(err.Error(), sesame) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What the clients say of a URL has neither its password nor its token, and still says which topic it was.
func TestClientsDoNotRepeatSecrets(t *testing.T) {
	closed := testenv.Address(t)
	secret := strings.Replace(hidden("ws", closed), "?", "?topic=prices&", 1)
	for _, args := range [][]string{
		{"connect", secret}, {"connect", secret + "#x"}, {"connect", strings.Replace(secret, "ws:", "ftp:", 1)}, {"connect", strings.Replace(secret, closed, "h:x", 1)},
		{"connect", strings.Replace(secret, "/p?", "/%zz?", 1)}, {"connect", "u:" + sesame + "@"}, {"connect", "ws://u:" + sesame + "/x@h"},
		{"tail", "a", "--url", secret}, {"tail", "a", "--count", "1", "--url", strings.Replace(secret, closed, "h:x", 1)}, {"tail", "a", "--url", strings.Replace(secret, "ws:", "ftp:", 1)},
		{"publish", "a", "x", "--api", hidden("http", closed)}, {"publish", "a", "x", "--api", hidden("ftp", closed)}, {"publish", "a", "x", "--api", hidden("http", "h:x")},
		{"health", "--api", hidden("http", closed)}, {"health", "--api", hidden("ws", closed)},
		{secret}, {"config", secret}, {"tail", secret}, {"publish", secret, "x"}, {"connect", "-H", "Authorization Bearer " + sesame, closed}, {"connect", secret, secret},
		{"publish", "a", "x", "--api", closed, "--token", "wrong\x7f" + sesame}, {"tail", "a", "--url", closed, "--token", sesame},
	} {
		code, out := runFor(t, args...)
		if code == 0 || strings.Contains(out, sesame) {
			t.Errorf("%s: %d, %s", args, code, out)
		}
	}
	if _, out := runFor(t, "connect", secret); !strings.Contains(out, "connect to ws://(set)@"+closed+"/p?topic=prices&(set): connection refused") {
		t.Error(out)
	}
}

// runFor runs a command to its end, or for 2 s.
func runFor(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	cmd := testenv.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	out, _ := cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), string(out)
}

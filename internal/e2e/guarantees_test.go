package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// docs/guarantees.md names tests that there are, and no claim is without one.
func TestGuaranteesAreShown(t *testing.T) {
	text, err := os.ReadFile("docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`([a-z0-9_/]+_test\\.go|[a-z_/]+\\.test\\.mjs): ([^`]+)`")
	var n int
	for _, m := range names.FindAllStringSubmatch(strings.ReplaceAll(string(text), "\n", " "), -1) {
		n++
		source, err := os.ReadFile(m[1])
		if err != nil {
			t.Error(err)
			continue
		}
		test := "\nfunc " + m[2] + "(t *testing.T)"
		if strings.HasSuffix(m[1], ".mjs") {
			test = "\ntest(\"" + m[2] + "\","
		}
		if !strings.Contains(string(source), test) {
			t.Errorf("%s has no test %q", m[1], m[2])
		}
	}
	if n < 50 {
		t.Errorf("only %d tests are named", n)
	}
	for line := range strings.Lines(string(text)) {
		head := strings.HasSuffix(strings.TrimSpace(line), "shown by |") || strings.HasPrefix(line, "| ---")
		if strings.HasPrefix(line, "|") && !head && !names.MatchString(line) {
			t.Errorf("no test is named: %s", line)
		}
	}
}

// A server that is killed knows nothing of its topics when it is started again, and a client that comes back with
// its position is told so.
func TestACrashEndsAnEpoch(t *testing.T) {
	public, internal := "127.0.0.1:"+freePort(t, "127.0.0.1"), "127.0.0.1:"+freePort(t, "127.0.0.1")
	env := []string{"CARILLON_LISTEN=" + public, "CARILLON_INTERNAL_LISTEN=" + internal, `CARILLON_TOPICS=[{match: a, history: 9}]`}
	subscribe := func(since string) string {
		dialer := websocket.Dialer{Subprotocols: []string{"carillon.v1.json"}}
		conn, _, err := dialer.Dial("ws://"+public+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		say(t, conn, `{"id":1,"subscribe":{"topic":"a"`+since+`}}`)
		_, reply, err := conn.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		return string(reply)
	}
	p := start(t, env)
	p.until("Stop with")
	for i := range 3 {
		ask(t, "POST", "http://"+internal+"/v1/topics/a/messages", fmt.Sprint(i))
	}
	position := regexp.MustCompile(`"offset":3,"epoch":"\w+"`)
	before := position.FindString(subscribe(""))
	if got := subscribe(`,"since":{` + before + `}`); !strings.Contains(got, before) || !strings.Contains(got, `"recovered":true`) {
		t.Fatalf("before the crash: %s", got)
	}
	_ = p.cmd.Process.Kill()
	<-p.done

	p = start(t, env)
	p.until("Stop with")
	if got := subscribe(`,"since":{` + before + `}`); !strings.Contains(got, `"offset":0,`) || !strings.Contains(got, `"recovered":false`) {
		t.Errorf("after the crash: %s", got)
	}
	for i := range 3 {
		ask(t, "POST", "http://"+internal+"/v1/topics/a/messages", fmt.Sprint(i))
	}
	if got := subscribe(`,"since":{` + before + `}`); !strings.Contains(got, `"offset":3,`) || !strings.Contains(got, `"recovered":false`) {
		t.Errorf("with as many messages as before: %s", got)
	}
}

package auth

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// What a hook answers is a clear yes, a clear no, or an error that says in the log what is wrong.
func TestWhatAHookMeans(t *testing.T) {
	for _, test := range []struct {
		answer  string
		means   string // or "" for an error
		problem string
	}{
		{`{"allow":true}`, `yes "" [] [] -`, ""},
		{" {\"allow\":true,\"subject\":\"ada\",\"subscribe\":[\"a\"],\"publish\":[],\"expires\":4000000000}\n", `yes "ada" ["a"] [] 4000000000`, ""},
		{`{"allow":true,"status":200}`, `yes "" [] [] -`, ""},
		{`{"allow":false}`, `no 403 forbidden`, ""},
		{`{"allow":false,"status":399,"reason":""}`, `no 403 forbidden`, ""},
		{`{"allow":false,"status":600}`, `no 403 forbidden`, ""},
		{`{"allow":false,"status":-1}`, `no 403 forbidden`, ""},
		{`{"allow":false,"status":599,"reason":"no"}`, `no 599 no`, ""},

		{`{"allow":true,"subscibe":["a"]}`, "", `has an unknown field: expected only allow, subject, subscribe, publish, expires, status, reason; found "subscibe"`},
		{`{"allow":true,"subscribe":null}`, "", "subscribe is null"},
		{`{"allow":true,"publish":null}`, "", "publish is null"},
		{`{"allow":true,"subject":null}`, "", "subject is null"},
		{`{"allow":true,"expires":null}`, "", "expires is null"},
		{`{"allow":null}`, "", "allow is null"},
		{`{"allow":false,"reason":null}`, "", "reason is null"},
		{`{"allow":false,"allow":true}`, "", "allow is given twice"},
		{`{"allow":true,"Allow":false}`, "", "differs from allow in case only"},
		{`{"ALLOW":true}`, "", "differs from allow"},
		{`{"allow":true,"\u017fubscribe":[]}`, "", "differs from subscribe"},
		{`{"allow":true,"subscribe":[],"subscribe":[">"]}`, "", "subscribe is given twice"},
		{`{"allow":true,"subscribe":[null]}`, "", "is empty"},
		{`{"allow":true,"subject":""}`, "", "subject is empty"},
		{`{"allow":true,"subject":"a\udfff"}`, "", "subject is not Unicode text"},
		{`{"allow":true,"status":403}`, "", "both allows the client and has status 403"},
		{`{"allow":1}`, "", "allow must not be a JSON number"},
		{`{"allow":false,"status":403.5}`, "", "status must not be a JSON number"},
		{`{"allow":false,"status":"403"}`, "", "status must not be a JSON string"},
		{`{"status":200}`, "", `has no "allow"`},
		{`null`, "", "null"},
		{`[{"allow":true}]`, "", "not exactly one JSON object"},
		{`{"allow":true}{"allow":false}`, "", "not exactly one JSON object"},
		{`{"allow":true} x`, "", "not exactly one JSON object"},
		{"", "", "not exactly one JSON object"},

		{`{"allow":true,"expires":0}`, `yes "" [] [] -`, ""},
		{`{"allow":true,"expires":4000000000.9}`, `yes "" [] [] 4000000000`, ""},
		{`{"allow":true,"expires":4e9}`, `yes "" [] [] 4000000000`, ""},
		{`{"allow":true,"expires":0.5}`, "", "already expired"},
		{`{"allow":true,"expires":0.0}`, "", "already expired"},
		{`{"allow":true,"expires":-0}`, "", "already expired"},
		{`{"allow":true,"expires":1e-400}`, "", "already expired"},
		{`{"allow":true,"expires":-62135596800}`, "", "already expired"},
		{`{"allow":true,"expires":-1}`, "", "already expired"},
		{`{"allow":true,"expires":9223372036854775807}`, "", "expires is out of range"},
		{`{"allow":true,"expires":1e400}`, "", "expires is out of range"},
		{`{"allow":true,"expires":"4000000000"}`, "", "expires is not a number"},
		{`{"allow":true,"expires":true}`, "", "expires is not a number"},
		{`{"allow":true,"expires":"never"}`, "", "expires is not a number"},
	} {
		v, id, err := parseHookResponse([]byte(test.answer))
		if test.means == "" {
			if err == nil || !strings.Contains(err.Error(), test.problem) {
				t.Errorf("%s: %+v, %v; want %q", test.answer, id, err, test.problem)
			}
			continue
		}
		got := ""
		switch {
		case err != nil:
		case *v.Allow:
			expires := "-"
			if !id.Expires.IsZero() {
				expires = fmt.Sprint(id.Expires.Unix())
			}
			got = fmt.Sprintf("yes %q %q %q %s", id.Subject, id.Subscribe, id.Publish, expires)
		default:
			r := v.rejection()
			got = fmt.Sprintf("no %d %s", r.Status, r.Reason)
		}
		if got != test.means {
			t.Errorf("%s: %s, %v; want %s", test.answer, got, err, test.means)
		}
	}
}

// A reason is one line, cut between two letters.
func TestTheReasonOfAHook(t *testing.T) {
	v, _, err := parseHookResponse([]byte(`{"allow":false,"reason":"` + strings.Repeat("a", 255) + `\u00e9\r\nSet-Cookie: x=y"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := v.rejection()
	if !utf8.ValidString(r.Reason) || len(r.Reason) > 260 {
		t.Errorf("%q", r.Reason)
	}
	v, _, err = parseHookResponse([]byte(`{"allow":false,"reason":"no\r\n\u0000x\u001b[2J"}`))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(v.rejection().AppendResponse(nil)); !strings.HasSuffix(text, "\r\n\r\nno   x [2J\n") {
		t.Errorf("%q", text)
	}
}

// Whatever the answer is, a client is let in only by a plain yes, for no longer than it says.
func FuzzHookResponse(f *testing.F) {
	f.Add([]byte(`{"allow":true,"expires":4000000000.5,"subscribe":["a"]}`))
	f.Add([]byte(`{"allow":false,"allow":true}`))
	f.Add([]byte(`{"Allow":true}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, id, err := parseHookResponse(text)
		if err != nil {
			return
		}
		if !strings.Contains(string(text), `\`) && strings.Count(string(text), `"allow"`) != 1 && *v.Allow && !strings.Contains(string(text), ":\"allow\"") && !strings.Contains(string(text), "[\"") {
			t.Errorf("%s lets in", text)
		}
		if *v.Allow && !id.Expires.IsZero() && !time.Now().Before(id.Expires) {
			t.Errorf("%s lets in what has expired", text)
		}
	})
}

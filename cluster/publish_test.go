package cluster

import (
	"errors"
	"strings"
	"testing"

	"carillon/server"

	"github.com/nats-io/nats.go"
)

func TestWhatJetStreamAnswersIsBelievedOnlyWithASequence(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		offset       uint64
		want         error
	}{
		{"stored", `{"stream": "s", "seq": 7}`, 7, nil},
		{"stored before", `{"stream": "s", "seq": 7, "duplicate": true}`, 7, nil},
		{"one with its key is not stored yet, older servers", `{"stream": "s", "seq": 0, "duplicate": true}`, 0, errUnknown},
		{"one with its key is not stored yet", `{"error": {"code": 409, "err_code": 10158, "description": "duplicate message id is in process"}, "stream": "s", "seq": 0}`, 0, errUnknown},
		{"refused", `{"error": {"code": 503, "err_code": 10023, "description": "insufficient resources"}, "stream": "s", "seq": 0}`, 0, server.ErrNoCluster},
		{"nonsense", `+OK`, 0, errUnknown},
	} {
		st := &stream{}
		p, err := st.acknowledged(&nats.Msg{Data: []byte(test.answer)}, nil)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) || p.Offset != test.offset {
			t.Errorf("%s: offset %d, %v; want %d, %v", test.name, p.Offset, err, test.offset, test.want)
		}
	}
}

// White space at the end of a header is lost, and line breaks in it.
func TestKeysThatDifferInWhiteSpaceAreNotTheSame(t *testing.T) {
	n := join(t, Options{NATS: NATS{URL: urlOf(natsAt(t, -1, t.TempDir()))}}, server.TopicRule{Match: ">", History: 100})
	long := strings.Repeat("\n", 128)
	by := map[server.Position]string{}
	for _, key := range []string{"x", "x ", "x  ", "x\t", "x\n", "x\r\n", " x", "\nx", " ", "\n", "a b", "a\nb", "a\rb", "a\tb", "a%0Ab", "a+b", "x+", "x%20", "x%", "%x", "x\v", "x\u00a0", "\x00", "\x7f", "é", long, long[1:]} {
		one, err := n.store("a", "", key)
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if other, known := by[one]; known {
			t.Errorf("%q and %q are the same", key, other)
		}
		by[one] = key
		if again, err := n.store("a", "", key); err != nil || again != one {
			t.Errorf("%q again: %v, %v, want %v", key, again, err, one)
		}
	}
}

func TestAKeyThatAHeaderLeavesAloneIsWrittenAsBefore(t *testing.T) {
	for _, key := range []string{"x", " x", "a b", "a\tb", "100%", "%0A", "é", "x\u00a0"} {
		if got := messageID("e", "a.b", key); got != "e a.b "+key {
			t.Errorf("%q is written %q", key, got)
		}
	}
}

package cluster

import (
	"errors"
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

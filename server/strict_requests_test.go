package server

import (
	"encoding/json"
	"strings"
	"testing"
)

// A request that could be read in two ways is refused, with its id, and does nothing.
func TestAmbiguousRequests(t *testing.T) {
	opts := topics()
	opts.Endpoints[0].Topics.Publish = []string{">"}
	s := start(t, opts)
	c := dial(t, s, "/ws", speakJSON)
	for request, problem := range map[string]string{
		`{"id":1,"subscribe":{"topic":"a"},"subscribe":{"topic":"b"}}`:      "subscribe is given twice",
		`{"id":1,"subscribe":{"topic":"a"},"s\u0075bscribe":{"topic":"b"}}`: "subscribe is given twice",
		`{"id":1,"subscribe":{"topic":"a","topic":"b"}}`:                    "subscribe.topic is given twice",
		`{"id":1,"publish":{"topic":"a","data":1,"data":2}}`:                "publish.data is given twice",
		`{"id":1,"publish":{"topic":"a","data":1,"Topic":"b"}}`:             "differs from topic in case only",
		`{"id":1,"publish":{"topic":"a","data":1,"\u212aey":"k"}}`:          "differs from key in case only",
		`{"id":1,"ping":{},"Publish":{"topic":"a","data":1}}`:               "differs from publish in case only",
		`{"id":1,"Ping":{}}`: "differs from ping in case only",
		`{"id":1,"subscribe":{"topic":"a","since":{"offset":1,"offset":2,"epoch":"E"}}}`: "subscribe.since.offset is given twice",
		`{"id":1,"refresh":{"token":"a","TOKEN":"b"}}`:                                   "differs from token in case only",
	} {
		if m := c.ask("%s", request); m.Error == nil || m.Error.Code != "bad_request" || !strings.Contains(m.text, problem) || !strings.Contains(m.text, `"id":1`) {
			t.Errorf("%s: %s, want %q", request, m.text, problem)
		}
	}
	if m := c.ask(`{"id":1,"ping":{},"x":1,"x":2,"since":null}`); m.text != `{"id":1,"pong":{}}` {
		t.Error(m.text)
	}
	if list, _ := s.Topics(">"); len(list) != 0 {
		t.Errorf("there are topics: %v", list)
	}
}

// So is a body that decides something at the internal interface.
func TestAmbiguousBodies(t *testing.T) {
	s := withAPI(t, Options{})
	for body, problem := range map[string]string{
		`{"on":true,"on":false}`:    "on is given twice",
		`{"On":true}`:               "differs from on in case only",
		`{"on":true,"ON":false}`:    "differs from on in case only",
		`{"on":null}`:               "on is null",
		`null`:                      "null",
		`{"on":true}{"on":false}`:   "JSON object",
		`{"on":true} and some more`: "JSON object",
	} {
		call(t, s, "PUT", "/v1/maintenance", body, asJSON).isProblem(t, 400, "bad-request", problem)
	}
	if s.ops.maintenance.Load() {
		t.Error("the server is under maintenance")
	}
	lines := []string{
		`{"topic":"a","topic":"b","data":1}`,
		`{"topic":"a","data":1,"Data":2}`,
		`{"topic":"a","data":1,"\u212aey":"k"}`,
		`{"topic":"a","data":1,"key":"k","key":"l"}`,
	}
	a := call(t, s, "POST", "/v1/messages", strings.Join(lines, "\n"), "Content-Type: application/x-ndjson").is(t, 200)
	var result struct {
		Results []struct {
			Offset *uint64
			Error  *problem
		}
	}
	if err := json.Unmarshal(a.body, &result); err != nil || len(result.Results) != len(lines) {
		t.Fatalf("%s: %v", a.body, err)
	}
	for i, r := range result.Results {
		if r.Error == nil || r.Error.Type != "/problems/bad-request" || r.Offset != nil {
			t.Errorf("%s: %s", lines[i], a.body)
		}
	}
}

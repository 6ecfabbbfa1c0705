package protocol

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestRequestIsCheckedWithoutAllocations(t *testing.T) {
	text := []byte(`{"id":7,"publish":{"topic":"prices.eu","data":{"a":[1,2,"\"x"]},"k\u0065y":"k"},"x":null}`)
	if n := testing.AllocsPerRun(100, func() {
		if err := requestShape.Check(text); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever a message is made of, the check costs less than what encoding/json has done with it before.
func BenchmarkRequestCheck(b *testing.B) {
	for name, text := range map[string][]byte{
		"small":    []byte(`{"id":7,"publish":{"topic":"prices.eu","data":{"bid":187.2,"ask":187.3}}}`),
		"names":    append(append([]byte(`{`), bytes.Repeat([]byte(`"\u0061":1,`), 90_000)...), `"ping":{}}`...),
		"brackets": []byte(`{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `,"ping":{}}`),
		"numbers":  append(append([]byte(`{"x":[`), bytes.Repeat([]byte(`1,`), 500_000)...), `1],"ping":{}}`...),
		"text":     append(append([]byte(`{"x":"`), bytes.Repeat([]byte(`x`), 1<<20)...), `","ping":{}}`...),
	} {
		b.Run("message="+name, func(b *testing.B) {
			b.Run("decode", func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				for b.Loop() {
					var r request
					if err := json.Unmarshal(text, &r); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("check", func(b *testing.B) {
				b.SetBytes(int64(len(text)))
				b.ReportAllocs()
				for b.Loop() {
					if err := requestShape.Check(text); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

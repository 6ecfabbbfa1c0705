package certs

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

// A client's first message is found to be whole, however it is cut into records.
func TestWholeHello(t *testing.T) {
	hello := helloOf(t, &tls.Config{ServerName: "example.com"})
	body := hello[RecordHead:]
	record := func(b []byte) []byte { return append([]byte{22, 3, 1, byte(len(b) >> 8), byte(len(b))}, b...) }
	for name, b := range map[string][]byte{
		"one record":                  hello,
		"a record that cuts its type": append(record(body[:1]), record(body[1:])...),
		"a record for each byte":      bytes.Join(mapped(body, func(x byte) []byte { return record([]byte{x}) }), nil),
	} {
		for n := range b {
			if whole, err := WholeHello(b[:n]); whole || err != nil {
				t.Fatalf("%s: %d of %d bytes: %v, %v", name, n, len(b), whole, err)
			}
		}
		for _, more := range []int{0, 1, 100} {
			if whole, err := WholeHello(append(bytes.Clone(b), make([]byte, more)...)); !whole || err != nil {
				t.Errorf("%s and %d bytes: %v, %v", name, more, whole, err)
			}
		}
	}
}

func mapped(b []byte, f func(byte) []byte) (all [][]byte) {
	for _, x := range b {
		all = append(all, f(x))
	}
	return all
}

func FuzzWholeHello(f *testing.F) {
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for n := range b { // what is whole stays so, and so does what is wrong
			whole, err := WholeHello(b[:n])
			after, later := WholeHello(b)
			if whole && !after || err != nil && later != err {
				t.Errorf("%x: %v, %v after %d bytes, then %v, %v", b, whole, err, n, after, later)
			}
		}
	})
}

// helloOf is a client's first message.
func helloOf(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go tls.Client(far, config).Handshake()
	b := make([]byte, 16<<10)
	n, err := near.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

package server

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rekeyer writes records of TLS 1.3 as a client that changes its keys, which crypto/tls cannot be asked to do.
type rekeyer struct {
	t      *testing.T
	secret []byte
	seal   cipher.AEAD
	iv     []byte
	number uint64 // of the next record
}

func newRekeyer(t *testing.T, secret []byte, number uint64) *rekeyer {
	r := &rekeyer{t: t, secret: secret}
	r.derive()
	r.number = number
	return r
}

// expand is HKDF-Expand-Label (RFC 8446, section 7.1).
func (r *rekeyer) expand(label string, n int) []byte {
	info := append(binary.BigEndian.AppendUint16(nil, uint16(n)), byte(len("tls13 "+label)))
	key, err := hkdf.Expand(sha256.New, r.secret, string(info)+"tls13 "+label+"\x00", n)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

func (r *rekeyer) derive() {
	block, _ := aes.NewCipher(r.expand("key", 16))
	r.seal, _ = cipher.NewGCM(block)
	r.iv, r.number = r.expand("iv", 12), 0
}

func (r *rekeyer) record(kind byte, body []byte) []byte {
	head := []byte{23, 3, 3, 0, byte(len(body) + 17)}
	nonce := bytes.Clone(r.iv)
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^r.number)
	r.number++
	return r.seal.Seal(head, nonce, append(bytes.Clone(body), kind), head)
}

// newKeys asks for new keys, and uses its own.
func (r *rekeyer) newKeys() []byte {
	b := r.record(22, []byte{24, 0, 0, 1, 1})
	r.secret = r.expand("traffic upd", 32)
	r.derive()
	return b
}

// dialRekeyer opens a WebSocket whose next records a rekeyer can write.
func dialRekeyer(t *testing.T, s *Server, a *authority, c *client) *rekeyer {
	t.Helper()
	log := &logBuffer{}
	config := a.client()
	config.MinVersion, config.KeyLogWriter = tls.VersionTLS13, log
	c.startTLS(config)
	if suite := c.state().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("this machine prefers %s", tls.CipherSuiteName(suite))
	}
	c.open("/echo")
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ := hex.DecodeString(f[2])
			return newRekeyer(t, secret, 1) // the request was the first record
		}
	}
	t.Fatal("the client has no secret")
	return nil
}

// A client changes its keys and asks the server for the same, as it may at any time.
func TestTLSNewKeys(t *testing.T) {
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
	c := dialRaw(t, s)
	below := c.conn
	keys := dialRekeyer(t, s, a, c)
	for i := range 20 {
		_, _ = below.Write(append(keys.newKeys(), keys.record(23, text(words(i)))...))
		c.want(words(i))
	}
}

// A client that asks for new keys again and again, and does not read the answers, is cut off: it could make the
// server keep them all.
func TestTLSFloodOfNewKeys(t *testing.T) {
	a := newAuthority(t)
	ended := make(chan error, 1)
	s := start(t, a.overTLS(Options{Endpoints: []Endpoint{{Path: "/echo", Handler: Handler{Close: func(_ *Conn, err error) { ended <- err }}}}}))
	c := dialSmall(t, s)
	below := c.conn
	keys := dialRekeyer(t, s, a, c)
	for c := range s.Conns() { // the kernel would take very many answers
		_ = unix.SetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8192)
	}
	pong := masked(0x8a, nil)
	_ = below.SetWriteDeadline(time.Now().Add(2 * patience))
	for {
		var b []byte
		for range 64 {
			b = append(append(b, keys.newKeys()...), keys.record(23, pong)...) // more than 16 without data would be refused
		}
		if _, err := below.Write(b); err != nil {
			break
		}
		if queued := s.Stats().QueuedBytes; queued > maxAnswers+2*clearSize {
			t.Fatalf("%d bytes are kept", queued)
		}
	}
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), errAnswers.Error()) {
			t.Errorf("the end: %v", err)
		}
	case <-time.After(patience):
		t.Error("it is not cut off")
	}
	if queued := s.Stats().QueuedBytes; queued != 0 {
		t.Errorf("%d bytes are kept", queued)
	}
}

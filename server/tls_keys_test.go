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

	"carillon/server/internal/reactor"
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

// A client that changes its keys all the time, or sends empty records, makes the loop work for nothing: crypto/tls
// lets it as long as one of 16 has a byte of data. It is cut off, whether it reads what it asks for or not, and
// before its request too.
func TestTLSFloodOfRecordsWithoutData(t *testing.T) {
	a := newAuthority(t)
	for _, row := range []struct {
		name  string
		empty func(*rekeyer) []byte
	}{
		{"new keys", (*rekeyer).newKeys},
		{"empty records", func(r *rekeyer) []byte { return r.record(23, nil) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
			bystander := dialTLS(t, s, a.client(), "/echo")
			c := dialSmall(t, s)
			below := c.conn
			keys := dialRekeyer(t, s, a, c)
			pong := masked(0x8a, nil)
			_ = below.SetWriteDeadline(time.Now().Add(patience))
			sent := 0
			for {
				var b []byte
				for range 12 { // more than 16 in a row are refused by crypto/tls itself
					b = append(b, row.empty(keys)...)
				}
				if _, err := below.Write(append(b, keys.record(23, pong)...)); err != nil {
					break
				}
				sent += 12
			}
			eventually(t, "it is cut off", func() bool { return s.Stats().Cuts[CutTLSRecords] == 1 })
			if sent < reactor.EmptyRecords-12 {
				t.Errorf("it is cut off after %d", sent)
			}
			if queued := s.Stats().QueuedBytes; queued != 0 {
				t.Errorf("%d bytes are kept", queued)
			}
			bystander.echoes("nothing happened")
		})
	}
}

// Some records without data are no reason to cut a client off, nor are many tiny ones with data.
func TestTLSTinyRecords(t *testing.T) {
	a := newAuthority(t)
	s := start(t, a.overTLS(Options{Endpoints: echoAndBroadcast()}))
	c := dialRaw(t, s)
	below := c.conn
	keys := dialRekeyer(t, s, a, c)
	var b []byte
	for range 5 {
		b = append(b, keys.record(23, nil)...)
		for i := range 100 {
			for _, one := range text(words(i)) {
				b = append(b, keys.record(23, []byte{one})...)
			}
		}
	}
	go below.Write(b)
	for range 5 {
		for i := range 100 {
			c.want(words(i))
		}
	}
}

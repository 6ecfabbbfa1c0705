package auth

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// A set of keys is taken as it stands, or not at all.
func TestWhatAKeySetMeans(t *testing.T) {
	i := testenv.NewIssuer(t)
	k := testenv.PublicJWK(i.ECDSA)
	x, y := k["x"], k["y"]
	whole := `{"kty":"EC","crv":"P-256","x":"` + x + `","y":"` + y + `"`
	for _, test := range []struct {
		set     string
		problem string // "" for one key
	}{
		{`{"keys":[` + whole + `,"d2":null,"z":1,"z":2}],"issuer":"x"}`, ""},
		{`{"keys":[` + whole + `,"use":"sig","key_ops":["verify"],"alg":"ES256","kid":"a"}]}`, ""},
		{`{"keys":null}`, "keys is null"},
		{`{"keys":[null]}`, "keys[0] of the response is not a JSON Web Key: is null"},
		{`null`, "is null"},
		{`{}`, "has no key"},
		{`{"keys":[]}`, "has no key"},
		{`{"Keys":[` + whole + `}]}`, "differs from keys"},
		{`{"keys":[],"keys":[` + whole + `}]}`, "keys is given twice"},
		{`{"keys":[` + whole + `}]} {}`, "is not a JSON Web Key Set"},
		{`{"keys":[` + whole + `,"kty":"EC"}]}`, "kty is given twice"},
		{`{"keys":[` + whole + `,"use":null}]}`, "use is null"},
		{`{"keys":[` + whole + `,"USE":"enc"}]}`, "differs from use"},
		{`{"keys":[` + whole + `,"kid":"a","\u004bid":"b"}]}`, "differs from kid"},
		{`{"keys":[` + whole + `,"use":"enc"}]}`, "has no key"},
		{`{"keys":[` + whole + `,"key_ops":["sign"]}]}`, "has no key"},
		{`{"keys":[` + whole + `,"key_ops":[]}]}`, "has no key"},
		{`{"keys":[` + whole + `,"kid":7}]}`, "has no key"},
		{`{"keys":[` + whole + `,"alg":"HS256"}]}`, "has no key"},
		{`{"keys":[{"kty":"oct","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw"}]}`, "has no key"},
	} {
		keys, err := parseJWKS([]byte(test.set))
		if test.problem == "" && (err != nil || len(keys) != 1) || test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)) {
			t.Errorf("%s: %d keys, %v; want %q", test.set, len(keys), err, test.problem)
		}
	}
}

// Keys that were asked for over TLS are not fetched without it, and only the issuer gets the URL.
func TestRedirectsOfKeySets(t *testing.T) {
	i := testenv.NewIssuer(t)
	set, _ := json.Marshal(map[string]any{"keys": []any{testenv.PublicJWK(i.ECDSA)}})
	referer := ""
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		referer = r.Referer()
		_, _ = w.Write(set)
	})
	plain, secure := httptest.NewServer(serve), httptest.NewTLSServer(serve)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	for _, test := range []struct {
		from func(http.Handler) *httptest.Server
		to   string
		good bool
	}{
		{httptest.NewServer, plain.URL, true},
		{httptest.NewServer, secure.URL, true},
		{httptest.NewTLSServer, secure.URL, true},
		{httptest.NewTLSServer, plain.URL, false},
	} {
		first := test.from(http.RedirectHandler(test.to, http.StatusFound))
		t.Cleanup(first.Close)
		j := newJWKS(first.URL+"/keys?token=sesame-of-the-issuer", nil)
		j.client.Transport = secure.Client().Transport
		referer = ""
		keys, err := j.fetch(context.Background())
		if test.good != (err == nil && len(keys) == 1) || referer != "" {
			t.Errorf("%s to %s: %d keys, %v, Referer %q", first.URL, test.to, len(keys), err, referer)
		}
		if err != nil && (!strings.Contains(err.Error(), "from https to http") || strings.Contains(err.Error(), "sesame")) {
			t.Error(err)
		}
	}
}

func FuzzParseJWKS(f *testing.F) {
	i := testenv.NewIssuer(f)
	for _, a := range algorithms[1:] {
		k, _ := json.Marshal(map[string]any{"keys": []any{testenv.PublicJWK(i.Private(a))}})
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := parseJWKS(text)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if a, err := algorithmOf(k.key); err != nil || a != k.algorithm {
				t.Errorf("%v: %v", k, err)
			}
		}
	})
}

package auth

import (
	"fmt"
	"testing"

	"carillon/internal/testenv"
)

// A key is not taken for anything but what its kind is for, even if an endpoint took every algorithm.
func TestEachKeyIsForOneAlgorithm(t *testing.T) {
	i := testenv.NewIssuer(t)
	ring := &Keyring{opts: &JWT{}}
	var keys []signatureKey
	for _, a := range algorithms {
		keys = append(keys, signatureKey{algorithm: a, key: i.Private(a)})
	}
	ring.keys.Store(&keys)
	for _, a := range algorithms {
		found, err := ring.find(a, "any")
		if err != nil || len(found.Keys) != 1 || fmt.Sprintf("%T", found.Keys[0]) != fmt.Sprintf("%T", i.Private(a)) {
			t.Errorf("%s: %T, %v", a, found.Keys, err)
		}
	}
	if _, err := ring.find("none", ""); err != errTokenKey {
		t.Error(err)
	}
}

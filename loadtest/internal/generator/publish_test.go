package generator

import (
	"net/http"
	"strings"
	"testing"
)

// The error of a failed publish request contains no secret of the URL.
func TestPublishErrorsHideSecrets(t *testing.T) {
	p := &publishers{spec: &Spec{}, client: http.DefaultClient}
	for _, url := range []string{"http://u:sesame@127.0.0.1:1/?token=sesame", "http://u:sesame@h/%zz"} {
		p.spec.PublishURL = url
		if err := p.post(nil); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

package demo

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"

	"carillon/client"
)

//go:embed web
var web embed.FS

// pages serves the files of the demo. What it knows never changes.
type pages struct{ files map[string]file }

type file struct {
	kind string // Content-Type
	body []byte
	tag  string
}

var kinds = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

func newPages() *pages {
	p := &pages{files: map[string]file{}}
	list, err := fs.ReadDir(web, "web")
	if err != nil {
		panic("demo: read the pages: " + err.Error())
	}
	for _, entry := range list {
		body, err := web.ReadFile(path.Join("web", entry.Name()))
		if err != nil {
			panic("demo: read the pages: " + err.Error())
		}
		p.add("/demo/"+entry.Name(), body)
	}
	p.add("/carillon.js", client.Script)
	p.files["/"] = p.files["/demo/index.html"]
	delete(p.files, "/demo/index.html") // its addresses are relative to /
	return p
}

func (p *pages) add(at string, body []byte) {
	sum := sha256.Sum256(body)
	p.files[at] = file{kind: kinds[path.Ext(at)], body: body, tag: `"` + base64.RawURLEncoding.EncodeToString(sum[:9]) + `"`}
}

// Handler serves the page at / and what it consists of, /carillon.js among it; all else is 404. It is for
// the same host and port as the endpoints.
func (d *Demo) Handler() http.Handler { return d.pages }

func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, ok := p.files[r.URL.Path]
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	switch {
	case !ok:
		http.NotFound(w, r)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "expected GET", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", "no-cache") // the tag makes asking again cheap
	h.Set("ETag", f.tag)
	h.Set("Referrer-Policy", "no-referrer")
	if r.URL.Path == "/carillon.js" { // a module, which a page of another origin may read only with this
		h.Set("Access-Control-Allow-Origin", "*")
	}
	h.Set("Content-Security-Policy", policy(r.Host))
	if r.Header.Get("If-None-Match") == f.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(f.body)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(f.body)
	}
}

var plainHost = regexp.MustCompile(`^[A-Za-z0-9.\-]+(:[0-9]+)?$|^\[[0-9A-Fa-f:.]+\](:[0-9]+)?$`)

// policy allows the page's own files and WebSockets to its own host, and nothing else. Older browsers do
// not take 'self' to stand for WebSockets too.
func policy(host string) string {
	sockets := ""
	if plainHost.MatchString(host) {
		sockets = " ws://" + host + " wss://" + host
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'" + sockets +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

package server

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"carillon/codec"
	"carillon/internal/redact"
	"carillon/server/internal/option"
)

// A browser opens a WebSocket for any page, to any server, with the cookies that its user has there. Only
// the header Origin says what page it was (RFC 6455, section 10.2). It stands in requests for server-sent
// events too, and a page that may not read them must not be able to ask for them either.

// origin is what a browser calls the source of a page (RFC 6454), in lower case. WebSocket libraries that are no
// browsers name their own server there, some with its ws or wss, which are read as http and https.
type origin struct {
	scheme, host string
	port         string // "" for the scheme's own
}

// origins are those whose pages may connect to an endpoint. Immutable.
type origins struct {
	all, null bool
	public    origin   // of Options.PublicURL
	exact     []origin // as listed
	below     []origin // of these, all whose host ends in this one's, which begins with a dot
}

// transport is how a request has come, as far as that is known.
type transport struct {
	scheme  string    // http or https, "" when it is not known
	tls     *tls.Conn // nil without TLS
	proxied bool      // by a trusted proxy
}

// allow reports whether a request may be answered.
func (o *origins) allow(r *codec.Request, via transport) bool {
	text, several := originHeader(r)
	switch {
	case several:
		return o.all
	case text == nil || o.all:
		return true
	}
	return o.listed(text) || o.own(text, r, via)
}

// readable returns the origin of a request if scripts from there may read the answer although it comes
// from elsewhere, and else "". byName reports whether the list names it, or its domain.
func (o *origins) readable(r *codec.Request) (text string, byName bool) {
	header, several := originHeader(r)
	if header == nil || several {
		return "", false
	}
	listed := o.listed(header)
	if !listed && !o.all {
		return "", false
	}
	return string(header), listed && string(header) != "null"
}

// originHeader returns the header Origin, nil when it is absent.
func originHeader(r *codec.Request) (text []byte, several bool) {
	const name = "Origin"
	for n, value := range r.Headers() {
		if len(n) == len(name) && strings.EqualFold(string(n), name) {
			if text != nil {
				return text, true
			}
			text = value
		}
	}
	return text, false
}

func (o *origins) listed(text []byte) bool {
	if string(text) == "null" {
		return o.null
	}
	is, ok := parseOrigin(string(text))
	if !ok {
		return false
	}
	for _, e := range o.exact {
		if e == is {
			return true
		}
	}
	for _, e := range o.below {
		if e.scheme == is.scheme && e.port == is.port && len(is.host) > len(e.host) && strings.HasSuffix(is.host, e.host) {
			return true
		}
	}
	return false
}

// own reports whether an origin is that of the server itself. What scheme the client has used is known
// where TLS is spoken and from a proxy: without both, http and https are taken for the same, each with its own
// port.
//
// Over TLS, an http origin may be a page that an attacker on the network has changed, and its WebSocket would carry the
// victim's cookies. But some libraries send http always, such as Python's websocket-client before version 1.3. So http is
// read as https if the request has no credentials that a browser adds by itself. Behind a proxy it never is: the proxy may
// have checked credentials that are not seen here.
func (o *origins) own(text []byte, r *codec.Request, via transport) bool {
	is, ok := parseOrigin(string(text))
	if !ok || is.scheme != "http" && is.scheme != "https" {
		return false
	}
	if is == o.public {
		return true
	}
	if via.scheme != "" && via.scheme != is.scheme && !isHarmlessOverTLS(r, via, is) {
		return false
	}
	host, ok := parseOrigin(is.scheme + "://" + string(r.Host))
	return ok && host == is
}

// isHarmlessOverTLS reports whether a request of an http origin over TLS has nothing that a browser adds by itself: no
// cookie, password or certificate. A browser adds no bearer token.
func isHarmlessOverTLS(r *codec.Request, via transport, is origin) bool {
	if is.scheme != "http" || via.tls == nil || via.proxied {
		return false
	}
	scheme, _, _ := strings.Cut(string(r.Header("Authorization")), " ")
	return r.Header("Cookie") == nil && (scheme == "" || strings.EqualFold(scheme, "Bearer")) && len(via.tls.ConnectionState().PeerCertificates) == 0
}

// parseOrigin reads scheme://host or scheme://host:port.
func parseOrigin(text string) (o origin, ok bool) {
	o.scheme, o.host, ok = strings.Cut(strings.ToLower(text), "://")
	if scheme := webScheme[o.scheme]; scheme != "" {
		o.scheme = scheme
	}
	if !ok || o.scheme == "" || strings.ContainsAny(o.scheme, ":/ ") {
		return origin{}, false
	}
	if colon := strings.LastIndexByte(o.host, ':'); colon >= 0 && !strings.HasSuffix(o.host, "]") {
		o.host, o.port = o.host[:colon], o.host[colon+1:]
		if o.port == "" || len(o.port) > 5 || strings.Trim(o.port, "0123456789") != "" {
			return origin{}, false
		}
	}
	if bracketed, is6 := strings.CutPrefix(o.host, "["); is6 {
		a, err := netip.ParseAddr(strings.TrimSuffix(bracketed, "]"))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return origin{}, false
		}
		o.host = "[" + a.String() + "]"
	} else if o.host == "" || strings.ContainsFunc(o.host, notInHost) {
		return origin{}, false
	}
	if o.port == ownPort[o.scheme] {
		o.port = ""
	}
	return o, true
}

// webScheme is the scheme of the page that a WebSocket belongs to.
var webScheme = map[string]string{"ws": "http", "wss": "https"}

// ownPort is the port of a scheme that an origin leaves out.
var ownPort = map[string]string{"http": "80", "https": "443"}

func notInHost(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/?#@:[]\"'<>^{|}`+"`,;*", r)
}

// originsOf prepares a list that has been checked.
func originsOf(list []string, publicURL string) (all origins) {
	for _, text := range list {
		switch scheme, domain, wild := strings.Cut(text, "://*."); {
		case text == "*":
			all.all = true
		case text == "null":
			all.null = true
		case wild:
			o, _ := parseOrigin(scheme + "://" + domain)
			o.host = "." + o.host
			all.below = append(all.below, o)
		default:
			o, _ := parseOrigin(text)
			all.exact = append(all.exact, o)
		}
	}
	if u, err := url.Parse(publicURL); err == nil && u.Host != "" {
		all.public, _ = parseOrigin(u.Scheme + "://" + u.Host)
	}
	return all
}

// checkOrigins adds what is wrong with a list of origins to the problems of c.
func checkOrigins(c *option.Checker, key string, list []string) {
	for i, text := range list {
		if text == "*" || text == "null" {
			continue
		}
		if _, ok := parseOrigin(strings.Replace(text, "://*.", "://", 1)); !ok {
			c.Add(fmt.Sprintf("%s[%d]", key, i),
				"%q is not an origin: expected one such as https://example.com, https://*.example.com, null or *", redact.URL(text))
		}
	}
}

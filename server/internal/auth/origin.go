package auth

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

// Origin is what a browser calls the source of a page (RFC 6454), in lower case. WebSocket libraries that are no
// browsers name their own server there, some with its ws or wss, which are read as http and https.
type Origin struct {
	Scheme, Host string
	Port         string // "" for the scheme's own
}

// Origins are those whose pages may connect to an endpoint. Immutable.
type Origins struct {
	all, null bool
	public    Origin   // the server's own, as it was configured
	exact     []Origin // as listed
	below     []Origin // of these, all whose host ends in this one's, which begins with a dot
}

// Transport is how a request has come, as far as that is known.
type Transport struct {
	Scheme  string    // http or https, "" when it is not known
	TLS     *tls.Conn // nil without TLS
	Proxied bool      // by a trusted proxy
}

// Allow reports whether a request may be answered.
func (o *Origins) Allow(r *codec.Request, via Transport) bool {
	text, several := OriginHeader(r)
	switch {
	case several:
		return o.all
	case text == nil || o.all:
		return true
	}
	return o.listed(text) || o.own(text, r, via)
}

// Readable returns the origin of a request if scripts from there may read the answer although it comes
// from elsewhere, and else "". ByName reports whether the list names it, or its domain.
func (o *Origins) Readable(r *codec.Request) (text string, byName bool) {
	header, several := OriginHeader(r)
	if header == nil || several {
		return "", false
	}
	listed := o.listed(header)
	if !listed && !o.all {
		return "", false
	}
	return string(header), listed && string(header) != "null"
}

// OriginHeader returns the header Origin, nil when it is absent, and whether there are several, of which it returns the
// first. The bytes are the request's.
func OriginHeader(r *codec.Request) (text []byte, several bool) {
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

func (o *Origins) listed(text []byte) bool {
	if string(text) == "null" {
		return o.null
	}
	is, ok := ParseOrigin(string(text))
	if !ok {
		return false
	}
	for _, e := range o.exact {
		if e == is {
			return true
		}
	}
	for _, e := range o.below {
		if e.Scheme == is.Scheme && e.Port == is.Port && len(is.Host) > len(e.Host) && strings.HasSuffix(is.Host, e.Host) {
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
// victim's cookies. But some libraries send http always, such as Python's websocket-client before version 1.3. So http
// is read as https if the request has no credentials that a browser adds by itself. Behind a proxy it never is: the
// proxy may have checked credentials that are not seen here.
func (o *Origins) own(text []byte, r *codec.Request, via Transport) bool {
	is, ok := ParseOrigin(string(text))
	if !ok || is.Scheme != "http" && is.Scheme != "https" {
		return false
	}
	if is == o.public {
		return true
	}
	if via.Scheme != "" && via.Scheme != is.Scheme && !isHarmlessOverTLS(r, via, is) {
		return false
	}
	host, ok := ParseOrigin(is.Scheme + "://" + string(r.Host))
	return ok && host == is
}

// isHarmlessOverTLS reports whether a request of an http origin over TLS has nothing that a browser adds by itself: no
// cookie, password or certificate. A browser adds no bearer token.
func isHarmlessOverTLS(r *codec.Request, via Transport, is Origin) bool {
	if is.Scheme != "http" || via.TLS == nil || via.Proxied {
		return false
	}
	scheme, _, _ := strings.Cut(string(r.Header("Authorization")), " ")
	return r.Header("Cookie") == nil && (scheme == "" || strings.EqualFold(scheme, "Bearer")) && len(via.TLS.ConnectionState().PeerCertificates) == 0
}

// ParseOrigin reads scheme://host or scheme://host:port.
func ParseOrigin(text string) (o Origin, ok bool) {
	o.Scheme, o.Host, ok = strings.Cut(strings.ToLower(text), "://")
	if scheme := webScheme[o.Scheme]; scheme != "" {
		o.Scheme = scheme
	}
	if !ok || o.Scheme == "" || strings.ContainsAny(o.Scheme, ":/ ") {
		return Origin{}, false
	}
	if colon := strings.LastIndexByte(o.Host, ':'); colon >= 0 && !strings.HasSuffix(o.Host, "]") {
		o.Host, o.Port = o.Host[:colon], o.Host[colon+1:]
		if o.Port == "" || len(o.Port) > 5 || strings.Trim(o.Port, "0123456789") != "" {
			return Origin{}, false
		}
	}
	if bracketed, is6 := strings.CutPrefix(o.Host, "["); is6 {
		a, err := netip.ParseAddr(strings.TrimSuffix(bracketed, "]"))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return Origin{}, false
		}
		o.Host = "[" + a.String() + "]"
	} else if o.Host == "" || strings.ContainsFunc(o.Host, notInHost) {
		return Origin{}, false
	}
	if o.Port == ownPort[o.Scheme] {
		o.Port = ""
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

// NewOrigins prepares a list that [CheckOrigins] has checked. The server's own origin is that of publicURL, if it is
// not "".
func NewOrigins(list []string, publicURL string) (all Origins) {
	for _, text := range list {
		switch scheme, domain, wild := strings.Cut(text, "://*."); {
		case text == "*":
			all.all = true
		case text == "null":
			all.null = true
		case wild:
			o, _ := ParseOrigin(scheme + "://" + domain)
			o.Host = "." + o.Host
			all.below = append(all.below, o)
		default:
			o, _ := ParseOrigin(text)
			all.exact = append(all.exact, o)
		}
	}
	if u, err := url.Parse(publicURL); err == nil && u.Host != "" {
		all.public, _ = ParseOrigin(u.Scheme + "://" + u.Host)
	}
	return all
}

// CheckOrigins adds what is wrong with a list of origins to the problems of c, under the key of the list.
func CheckOrigins(c *option.Checker, key string, list []string) {
	for i, text := range list {
		if text == "*" || text == "null" {
			continue
		}
		if _, ok := ParseOrigin(strings.Replace(text, "://*.", "://", 1)); !ok {
			c.Add(fmt.Sprintf("%s[%d]", key, i),
				"%q is not an origin: expected one such as https://example.com, https://*.example.com, null or *", redact.URL(text))
		}
	}
}

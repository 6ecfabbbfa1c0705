package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"carillon/loadtest/internal/generator"
	"carillon/loadtest/internal/wsclient"
)

// resolveTargets resolves and checks the URLs of a run.
func resolveTargets(ctx context.Context, o *options, sources generator.SourceRange) ([]generator.Target, error) {
	var list []generator.Target
	for _, text := range o.URLs {
		t, err := resolveTarget(ctx, o, text, sources)
		if err != nil && len(o.URLs) > 1 {
			err = fmt.Errorf("%s: %w", redactURL(text), err)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// resolveTarget parses a URL, resolves its host and opens one connection, so that errors are reported once
// and before anything is measured.
func resolveTarget(ctx context.Context, o *options, text string, sources generator.SourceRange) (generator.Target, error) {
	u, err := url.Parse(text)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL
		}
		if redactURL(text) != text {
			err = errors.New("details withheld, since they may contain a secret")
		}
		return generator.Target{}, fmt.Errorf("invalid URL: %w", err)
	}
	switch {
	case u.Scheme == "wss" || u.Scheme == "https":
		return generator.Target{}, errors.New("wss is not supported: use a ws:// URL of the server without TLS")
	case u.Scheme != "ws" && u.Scheme != "http" || u.Hostname() == "":
		return generator.Target{}, fmt.Errorf("%q is not a WebSocket URL such as %s", redactURL(text), defaultEcho)
	case u.User != nil:
		return generator.Target{}, errors.New("credentials in the URL are not supported: use --header 'Authorization: ...'")
	}
	port, err := strconv.Atoi(u.Port())
	if u.Port() == "" {
		port = 80
	} else if err != nil || port < 1 || port > 65535 {
		return generator.Target{}, fmt.Errorf("invalid port %q", u.Port())
	}
	uri := u.RequestURI()
	t := generator.Target{URL: redactURL(text), Handshake: wsclient.NewHandshake(u.Host, uri, o.Subprotocols, o.Compression, o.Headers)}

	ctx, cancel := context.WithTimeout(ctx, generator.DialTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return t, fmt.Errorf("resolve %s: %w", u.Hostname(), err)
	}
	var failed error
	for _, a := range addresses {
		t.Address = netip.AddrPortFrom(a.Unmap(), uint16(port))
		if sources.First.IsValid() && sources.First.Is4() != t.Address.Addr().Is4() {
			failed = errors.Join(failed, fmt.Errorf("%s cannot be reached from %s", t.Address, sources.First))
			continue
		}
		err := probe(ctx, &t, sources)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return t, err
		}
		failed = err
	}
	return t, failed
}

// probe opens one connection and closes it.
func probe(ctx context.Context, t *generator.Target, sources generator.SourceRange) error {
	d := net.Dialer{}
	if sources.First.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(sources.First, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", t.Address.String())
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("nothing listens at %s: %w", t.Address, syscall.ECONNREFUSED)
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w", t.Address, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()

	key := wsclient.AppendKey(nil, rand.Uint64())
	if _, err := fmt.Fprintf(conn, "%s%s\r\n\r\n", t.Handshake.Request, key); err != nil {
		return fmt.Errorf("send handshake to %s: %w", t.Address, err)
	}
	var response []byte
	for wsclient.HeadEnd(response) == 0 {
		n, err := conn.Read(room(&response))
		response = response[:len(response)+n]
		if err != nil && wsclient.HeadEnd(response) == 0 {
			return noResponse(t.Address, response, err)
		}
		if len(response) > wsclient.MaxHead {
			return fmt.Errorf("response head of %s too long", t.Address)
		}
	}
	head, body := response[:wsclient.HeadEnd(response)], response[wsclient.HeadEnd(response):]
	if _, err := t.Handshake.Verify(head, body, key); err == nil {
		_, _ = conn.Write(wsclient.AppendFrame(nil, wsclient.OpClose, false, rand.Uint32(), []byte{1000 >> 8, 1000 & 0xff}))
		return nil
	}
	if len(body) == 0 { // it may be in the next packet
		conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, _ := conn.Read(room(&body))
		body = body[:len(body)+n]
	}
	_, err = t.Handshake.Verify(head, body, key)
	return err
}

// noResponse describes a handshake without a complete response head.
func noResponse(address netip.AddrPort, response []byte, err error) error {
	if len(response) > 0 && !strings.HasPrefix("HTTP/1.", string(response[:min(7, len(response))])) {
		return fmt.Errorf("%s does not speak HTTP: it responded %q", address, wsclient.Shorten(wsclient.FirstLine(response)))
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s closed the connection without a response", address)
	}
	return fmt.Errorf("wait for a response from %s: %w", address, err)
}

// room returns free space at the end of a buffer, which it grows as needed.
func room(b *[]byte) []byte {
	const minRoom = 2048
	if cap(*b)-len(*b) < minRoom {
		*b = append(make([]byte, 0, cap(*b)+2*minRoom), *b...)
	}
	return (*b)[len(*b):cap(*b)]
}

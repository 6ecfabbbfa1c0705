package demo

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/internal/testenv"
)

// browser is a headless Chromium that is told what to do over its DevTools protocol, so that one test can
// have several pages that know nothing of each other.
type browser struct {
	t    testing.TB
	conn *websocket.Conn

	mu      sync.Mutex
	lastID  int
	replies map[int]chan reply
	pages   map[string]*page // by session
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// page is a tab with cookies and storage of its own.
type page struct {
	b       *browser
	session string

	mu         sync.Mutex
	complaints []string // errors and warnings in its console
}

func startBrowser(t testing.TB) *browser {
	t.Helper()
	path := testenv.Program(t, "chromium")
	dir, err := os.MkdirTemp("", "carillon-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // its helpers write for a moment after it has ended
		eventually(t, "the browser's files are gone", func() bool { return os.RemoveAll(dir) == nil })
	})
	ctx, cancel := context.WithCancel(context.Background())
	cmd := testenv.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--user-data-dir="+dir, "--remote-debugging-port=0", "about:blank")
	testenv.Home(cmd, dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that its helpers end too
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	var where []string
	eventually(t, "the browser listens", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		where = strings.Fields(string(text))
		return err == nil && len(where) == 2
	})
	conn, _, err := websocket.DefaultDialer.Dial("ws://127.0.0.1:"+where[0]+where[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	b := &browser{t: t, conn: conn, replies: map[int]chan reply{}, pages: map[string]*page{}}
	go b.read()
	return b
}

func (b *browser) read() {
	for {
		var m struct {
			ID        int
			Method    string
			SessionID string
			Params    json.RawMessage
			reply
		}
		if b.conn.ReadJSON(&m) != nil {
			return
		}
		b.mu.Lock()
		to, p := b.replies[m.ID], b.pages[m.SessionID]
		delete(b.replies, m.ID)
		b.mu.Unlock()
		switch {
		case m.ID != 0 && to != nil:
			to <- m.reply
		case p != nil:
			p.event(m.Method, m.Params)
		}
	}
}

func (b *browser) call(session, method string, params, result any) {
	b.t.Helper()
	b.mu.Lock()
	b.lastID++
	id, to := b.lastID, make(chan reply, 1)
	b.replies[id] = to
	request := map[string]any{"id": id, "method": method, "params": params}
	if session != "" {
		request["sessionId"] = session
	}
	err := b.conn.WriteJSON(request)
	b.mu.Unlock()
	if err != nil {
		b.t.Fatal(err)
	}
	select {
	case r := <-to:
		if r.Error != nil {
			b.t.Fatalf("%s: %s", method, r.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(r.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(patience):
		b.t.Fatalf("%s: no answer", method)
	}
}

type object map[string]any

// visit opens an address in a tab of its own.
func (b *browser) visit(address string, width, height int, dark bool) *page {
	b.t.Helper()
	var created struct{ BrowserContextID, TargetID, SessionID string }
	b.call("", "Target.createBrowserContext", object{}, &created)
	b.call("", "Target.createTarget", object{"url": "about:blank", "browserContextId": created.BrowserContextID}, &created)
	b.call("", "Target.attachToTarget", object{"targetId": created.TargetID, "flatten": true}, &created)
	p := &page{b: b, session: created.SessionID}
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Runtime", "Log", "Page"} {
		p.call(domain+".enable", object{}, nil)
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	p.call("Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 500}, nil)
	p.call("Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	p.call("Emulation.setFocusEmulationEnabled", object{"enabled": true}, nil)
	p.call("Page.navigate", object{"url": address}, nil)
	p.until("the page is loaded", `document.readyState === "complete" && location.href !== "about:blank"`)
	return p
}

func (p *page) call(method string, params, result any) {
	p.b.t.Helper()
	p.b.call(p.session, method, params, result)
}

func (p *page) event(method string, params json.RawMessage) {
	var complaint string
	switch method {
	case "Runtime.exceptionThrown":
		complaint = string(params)
	case "Log.entryAdded":
		var e struct {
			Entry struct{ Level, Text, URL string }
		}
		_ = json.Unmarshal(params, &e)
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			complaint = e.Entry.Text + " " + e.Entry.URL
		}
	case "Runtime.consoleAPICalled":
		var c struct {
			Type string
			Args json.RawMessage
		}
		_ = json.Unmarshal(params, &c)
		if c.Type == "error" || c.Type == "warning" || c.Type == "assert" {
			complaint = string(c.Args)
		}
	}
	if complaint != "" {
		p.mu.Lock()
		p.complaints = append(p.complaints, complaint)
		p.mu.Unlock()
	}
}

// wantQuiet fails the test if the page has complained in its console.
func (p *page) wantQuiet() {
	p.b.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.complaints {
		p.b.t.Errorf("the page complains: %.500s", c)
	}
}

// eval runs JavaScript and reads its value.
func (p *page) eval(result any, script string, args ...any) {
	p.b.t.Helper()
	for i, a := range args {
		text, err := json.Marshal(a)
		if err != nil {
			p.b.t.Fatal(err)
		}
		args[i] = text
	}
	if len(args) > 0 {
		script = fmt.Sprintf(script, args...)
	}
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	p.call("Runtime.evaluate", object{"expression": script, "awaitPromise": true, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		p.b.t.Fatalf("%s: %s", script, r.ExceptionDetails)
	}
	if result != nil {
		if err := json.Unmarshal(r.Result.Value, result); err != nil {
			p.b.t.Fatalf("%s: %v", script, err)
		}
	}
}

func (p *page) until(what, condition string, args ...any) {
	p.b.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var holds bool
		p.eval(&holds, "Boolean("+condition+")", append([]any{}, args...)...)
		if holds {
			return
		}
		if time.Now().After(end) {
			var text string
			p.eval(&text, "document.body.innerText")
			p.b.t.Fatalf("still not: %s\n%s", what, text)
		}
	}
}

// write puts text where the focus is, as a keyboard does.
func (p *page) write(text string) {
	p.b.t.Helper()
	p.call("Input.insertText", object{"text": text}, nil)
}

// press presses a key: Enter, Tab or Space.
func (p *page) press(key string) {
	p.b.t.Helper()
	codes := map[string]object{
		"Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
		"Tab":   {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
		"Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
	}
	for _, kind := range []string{"keyDown", "keyUp"} {
		event := object{"type": kind}
		for k, v := range codes[key] {
			event[k] = v
		}
		p.call("Input.dispatchKeyEvent", event, nil)
	}
}

// shot takes a picture of the page, if shots are wanted: the whole of it, or what is in view.
func (p *page) shot(name string, whole bool) {
	p.b.t.Helper()
	dir := os.Getenv(shotsEnv)
	if dir == "" {
		return
	}
	var picture struct{ Data string }
	p.call("Page.captureScreenshot", object{"format": "png", "captureBeyondViewport": whole}, &picture)
	data, err := base64.StdEncoding.DecodeString(picture.Data)
	if err != nil {
		p.b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), data, 0o600); err != nil {
		p.b.t.Fatal(err)
	}
}

// shotsEnv names a directory where the tests of the page leave pictures of it.
const shotsEnv = "CARILLON_TEST_SHOTS"

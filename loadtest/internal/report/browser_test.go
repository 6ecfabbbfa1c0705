package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"carillon/internal/testenv"
)

// browser runs headless Chromium on a page and returns its output.
func browser(t *testing.T, page string, args ...string) (stdout, stderr string) {
	t.Helper()
	path := testenv.Program(t, "chromium")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--enable-logging=stderr", "--user-data-dir=" + dir}, args...)
	cmd := testenv.CommandContext(ctx, path, append(args, "file://"+page)...)
	testenv.Home(cmd, dir)
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium: %v\n%s", err, &errs)
	}
	return out.String(), errs.String()
}

// framed puts a page into a frame of a given width, since Chromium's window cannot be as narrow as a phone.
// Once it has loaded, the frame's measures are in the document.
func framed(t *testing.T, page string, width int) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	frame := filepath.Join(t.TempDir(), "frame.html")
	outer := fmt.Sprintf(`<!doctype html><body style="margin:0"><iframe id="f" srcdoc="%s" style="width:%dpx;height:%dpx;border:0"></iframe>
<script>onload = () => {
  const d = document.getElementById("f").contentDocument
  const charts = [...d.querySelectorAll("figure > svg")].map(s => {
    const r = s.getBoundingClientRect()
    return {Label: s.getAttribute("aria-label"), X: r.x, Y: r.y, W: r.width, H: r.height}
  })
  document.body.dataset.measures = JSON.stringify({Charts: charts, Width: d.documentElement.scrollWidth, Tables: d.querySelectorAll("table").length})
}</script>`, html.EscapeString(string(text)), width, frameHeight)
	if err := os.WriteFile(frame, []byte(outer), 0o600); err != nil {
		t.Fatal(err)
	}
	return frame
}

const frameHeight = 12000

type measures struct {
	Charts []struct {
		Label      string
		X, Y, W, H float64
	}
	Width  int
	Tables int
}

var pageMeasures = regexp.MustCompile(`data-measures="([^"]*)"`)

func TestPageIsDrawnByABrowser(t *testing.T) {
	t.Parallel()
	page := writePage(t, sampleDocument(t))
	for _, c := range []struct {
		name  string
		width int
	}{
		{"on a phone", 390},
		{"on a desktop", 1280},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := framed(t, page, c.width)
			window := fmt.Sprintf("--window-size=%d,%d", max(c.width, 500), frameHeight)
			dom, log := browser(t, frame, window, "--dump-dom")
			for line := range strings.Lines(log) {
				if strings.Contains(line, "CONSOLE") {
					t.Errorf("the browser complains: %s", line)
				}
			}
			found := pageMeasures.FindStringSubmatch(dom)
			if found == nil {
				t.Fatalf("the page was not measured:\n%.2000s", dom)
			}
			var m measures
			if err := json.Unmarshal([]byte(html.UnescapeString(found[1])), &m); err != nil {
				t.Fatal(err)
			}
			if m.Width > c.width {
				t.Errorf("the page is %d wide, more than its window's %d", m.Width, c.width)
			}
			if len(m.Charts) < 15 || m.Tables != 2 {
				t.Errorf("%d charts and %d tables", len(m.Charts), m.Tables)
			}
			shot := filepath.Join(t.TempDir(), "shot.png")
			browser(t, frame, window, "--screenshot="+shot)
			picture := readPicture(t, shot)
			for _, chart := range m.Charts {
				box := image.Rect(int(chart.X), int(chart.Y), int(chart.X+chart.W), int(chart.Y+chart.H))
				if box.Dx() < 300 || box.Max.Y > frameHeight {
					t.Errorf("%s is at %v", chart.Label, box)
				}
				if drawn := paintedShare(picture, box); drawn < 0.01 || drawn > 0.5 {
					t.Errorf("%s: %.1f%% of the chart is painted", chart.Label, 100*drawn)
				}
			}
		})
	}
}

// TestBrowserComplaintsAreSeen makes sure that the test above would see an error.
func TestBrowserComplaintsAreSeen(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(page, []byte(`<script>console.error("oh no")</script>`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, log := browser(t, page, "--dump-dom"); !strings.Contains(log, "CONSOLE") {
		t.Errorf("an error in the console is not in the log:\n%s", log)
	}
}

func readPicture(t *testing.T, path string) image.Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

// paintedShare is the share of a box whose colour differs from its corner.
func paintedShare(picture image.Image, box image.Rectangle) float64 {
	ground := picture.At(box.Min.X+1, box.Min.Y+1)
	painted := 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			if picture.At(x, y) != ground {
				painted++
			}
		}
	}
	return float64(painted) / float64(box.Dx()*box.Dy())
}

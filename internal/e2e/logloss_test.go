package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// toStderr starts the program with a standard error of the test's own.
func toStderr(t *testing.T, stderr *os.File, env ...string) *program {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	cmd := exec.Command(path)
	cmd.Stderr = stderr
	return startCommand(t, append(env, "CARILLON_LOG_LEVEL=debug"), cmd)
}

// echoes has clients come, each of whom is at least two lines in the log, while one stays and is answered all
// the time, and another hears all that is published. It returns the address of the internal interface.
func echoes(t *testing.T, p *program) (api string) {
	t.Helper()
	url := p.url("/echo")
	_, interfaces, _ := strings.Cut(p.output(), "Internal HTTP interface")
	api = internalURL.FindString(interfaces)
	subscriber, _, err := websocket.DefaultDialer.Dial(strings.TrimSuffix(url, "/echo")+"/ws?topic=beat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	stays, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	for i := range 300 {
		c, _, err := websocket.DefaultDialer.Dial(url, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		want := fmt.Sprint("echo ", i)
		_ = stays.SetReadDeadline(time.Now().Add(soon))
		_ = stays.WriteMessage(websocket.TextMessage, []byte(want))
		if _, got, err := stays.ReadMessage(); string(got) != want || err != nil {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
		resp, err := http.Post(api+"/v1/topics/beat/messages", "text/plain", strings.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		_ = subscriber.SetReadDeadline(time.Now().Add(soon))
		if _, got, err := subscriber.ReadMessage(); string(got) != want || err != nil {
			t.Fatalf("the subscriber got %q, %v; want %q", got, err, want)
		}
	}
	return api
}

// lostLines reads the metric.
func lostLines(t *testing.T, api string) int {
	t.Helper()
	resp, err := http.Get(api + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	_, rest, _ := strings.Cut(string(text), "\ncarillon_log_lines_lost_total ")
	word, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(word, 64)
	if err != nil {
		t.Fatalf("%q in\n%s", word, text)
	}
	return int(n)
}

// The disk of the log is full: the program serves as before, counts what is lost, and ends in order.
func TestFullDiskForTheLog(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if runtime.GOOS != "linux" || err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	defer full.Close()
	p := toStderr(t, full)
	api := echoes(t, p)
	if n := lostLines(t, api); n < 20 {
		t.Errorf("%d lines are counted as lost", n)
	}
	p.signal(syscall.SIGTERM)
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// Standard error is a pipe that is not read, and it is full: no loop waits for it, and the end comes in order.
func TestLogIntoAPipeThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fill(t, w)
	p := toStderr(t, w)
	_ = w.Close()
	echoes(t, p)
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(soon):
		t.Fatal("it does not end")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// fill writes into a pipe until it takes nothing.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	fd := int(w.Fd())
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); ; {
		if _, err := syscall.Write(fd, block); err == syscall.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

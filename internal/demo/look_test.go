package demo

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"carillon/server"
)

// The page fits every screen from 320 pixels on, light and dark, with whatever people write. With
// CARILLON_TEST_SHOTS it leaves pictures in that directory, of a server that is busy for a while.
func TestPageFitsTheScreen(t *testing.T) {
	d, s := start(t, Options{})
	f := front(t, d, s)
	b := startBrowser(t)
	talk(t, s)
	var pages []*page
	var names []string
	for _, width := range []int{320, 390, 768, 1280} {
		for _, dark := range []bool{false, true} {
			name := fmt.Sprintf("%d-%s", width, map[bool]string{false: "light", true: "dark"}[dark])
			height := map[int]int{320: 640, 390: 844, 768: 1024, 1280: 800}[width]
			p := b.visit(f.URL, width, height, dark)
			p.until("the board is live", `document.getElementById("board-state").classList.contains("on")`)
			p.fits(name + " before joining")
			p.shot(name+"-entry", false)
			p.join([]string{"Ada", "Alan", "Kathleen", "Donald", "Frances", "Ken", "Margaret", strings.Repeat("W", 32)}[len(pages)])
			p.fits(name)
			pages, names = append(pages, p), append(names, name)
		}
	}
	last := pages[len(pages)-1]
	last.eval(nil, `document.getElementById("leave").click()`)
	last.fits("after leaving")
	if os.Getenv(shotsEnv) != "" {
		busy(t, s, 45*time.Second)
	}
	for i, p := range pages {
		p.until("the rates are there", `document.getElementById("messages-now").textContent !== "–" && document.getElementById("trip-now").textContent !== "–"`)
		p.fits(names[i])
		p.shot(names[i], false)
		p.shot(names[i]+"-whole", true)
		p.wantQuiet()
	}
}

// fits fails the test if something is wider than the screen, or a text is cut.
func (p *page) fits(when string) {
	p.b.t.Helper()
	var wide []string
	p.eval(&wide, `(() => {
		const width = document.documentElement.clientWidth
		if (document.documentElement.scrollWidth <= width) return []
		return [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width + 1 && !e.closest("pre"))
			.map((e) => e.tagName + "." + e.className + "#" + e.id)
	})()`)
	if len(wide) > 0 {
		p.b.t.Errorf("%s: too wide: %q", when, wide)
	}
}

// talk leaves a conversation in the chat.
func talk(t *testing.T, s *server.Server) {
	people := map[string]*person{}
	for _, name := range []string{"Grace", "Edsger", "Barbara"} {
		people[name] = arrive(t, s)
		people[name].enter(name, name, nil)
		go people[name].wait()
	}
	for i, said := range [][2]string{
		{"Grace", "Has anybody tried the new release?"},
		{"Edsger", "Running since this morning. 40,000 connections on two cores, and the round trip stays below a millisecond."},
		{"Edsger", "I pulled the plug twice. Nothing was lost."},
		{"Barbara", "Does it survive a proxy that cuts quiet connections after a minute?"},
		{"Grace", "It pings every 25 s, so yes. Here is the address that I used: https://example.com/" + strings.Repeat("a-rather-long-path/", 6)},
		{"Barbara", "<b>Nice</b> 🎉"},
	} {
		people[said[0]].say(fmt.Sprint("m", i), said[1])
		eventually(t, "it is kept", func() bool {
			past, err := s.History(chatTopic, server.Start{Last: 1}, 1)
			return err == nil && len(past.Messages) == 1 && strings.Contains(string(past.Messages[0].Payload), fmt.Sprintf(`"ref":"m%d"`, i))
		})
	}
}

// wait reads, and so answers pings, until the connection ends.
func (p *person) wait() {
	_ = p.conn.SetReadDeadline(time.Time{})
	for {
		if _, _, err := p.conn.ReadMessage(); err != nil {
			return
		}
	}
}

// busy gives the board something to draw.
func busy(t *testing.T, s *server.Server, long time.Duration) {
	var clients []*person
	for range 24 {
		conn, _, err := websocket.DefaultDialer.Dial("ws://"+s.Addr().String()+"/echo", nil)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, &person{t: t, conn: conn})
		defer conn.Close()
	}
	begin := time.Now()
	for n := 0; time.Since(begin) < long; n++ {
		c := clients[n%len(clients)]
		c.sendText(strings.Repeat("x", 200))
		if _, _, err := c.conn.ReadMessage(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(4+3*math.Sin(time.Since(begin).Seconds()/5)) * time.Millisecond)
	}
}

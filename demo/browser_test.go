package demo

import (
	"testing"
	"time"

	"carillon/codec"
)

// join enters a name by keyboard.
func (p *page) join(name string) {
	p.b.t.Helper()
	p.eval(nil, `document.getElementById("name").focus()`)
	p.eval(nil, `document.getElementById("name").select()`)
	p.write(name)
	p.press("Enter")
	p.until(name+" is connected", `!document.getElementById("room").hidden && document.getElementById("chat-state").classList.contains("on")`)
}

// say writes a message by keyboard; the focus is where it must be.
func (p *page) say(text string) {
	p.b.t.Helper()
	p.write(text)
	p.press("Enter")
}

type line struct {
	Who, Text, Time string
	Mine            bool
}

func (p *page) lines() (list []line) {
	p.b.t.Helper()
	p.eval(&list, `[...document.querySelectorAll("#log .say:not(.waiting)")].map((l) => ({
		who: l.querySelector("b")?.textContent, text: l.querySelector(".text").textContent,
		time: l.querySelector("time")?.dateTime, mine: l.classList.contains("mine") }))`)
	return list
}

func (p *page) wantLines(want ...line) {
	p.b.t.Helper()
	var got []line
	eventually(p.b.t, "as many lines as are wanted", func() bool {
		got = p.lines()
		return len(got) >= len(want)
	})
	for i, l := range got {
		at, err := time.Parse(time.RFC3339, l.Time)
		if err != nil || time.Since(at).Abs() > time.Minute {
			p.b.t.Errorf("line %d has the time %q", i, l.Time)
		}
		l.Time = ""
		if i >= len(want) || l != want[i] {
			p.b.t.Fatalf("line %d is %+v, want %+v", i, l, want)
		}
	}
}

func (p *page) people() (list []string) {
	p.b.t.Helper()
	p.eval(&list, `[...document.querySelectorAll("#people li")].map((l) => l.textContent)`)
	return list
}

// Ada and Bob meet in two browsers. Bob's message is no HTML, whatever it looks like. Then the line breaks,
// and Ada comes back by the button: nothing that was said is lost, and nothing is there twice.
func TestChatInTwoBrowsers(t *testing.T) {
	d, s := start(t, Options{})
	f := front(t, d, s)
	b := startBrowser(t)
	ada, bob := b.visit(f.URL, 1280, 800, false), b.visit(f.URL, 390, 844, true)
	ada.join("Ada")
	bob.join("Bob")
	ada.until("Bob is here", `document.getElementById("people").textContent.includes("Bob")`)

	const script = `<script>document.title = "taken"</script><img src=x onerror="document.title='taken'">`
	ada.say("Good morning")
	bob.until("Ada's message", `document.getElementById("log").textContent.includes("Good morning")`)
	bob.say(script)
	ada.wantLines(line{Who: "You", Text: "Good morning", Mine: true}, line{Who: "Bob", Text: script})
	bob.wantLines(line{Who: "Ada", Text: "Good morning"}, line{Who: "You", Text: script, Mine: true})
	for _, p := range []*page{ada, bob} {
		p.until("both are listed", `document.getElementById("here-count").textContent === "2 here"`)
		p.until("the title is the page's own", `document.title === "carillon" && !document.querySelector("#log script, #log img")`)
	}

	for c := range s.Conns() { // Ada's connection breaks
		if c.Path() == "/demo/chat" && d.nameOf(c) == "Ada" {
			_ = c.Close(codec.CloseGoingAway, "restart")
		}
	}
	ada.until("a notice", `document.getElementById("notice").checkVisibility()`)
	ada.until("the way back has the focus", `document.activeElement.id === "reconnect"`)
	bob.until("Ada is gone", `document.getElementById("here-count").textContent === "1 here"`)
	bob.say("Are you there?")
	bob.wantLines(line{Who: "Ada", Text: "Good morning"}, line{Who: "You", Text: script, Mine: true}, line{Who: "You", Text: "Are you there?", Mine: true})
	ada.press("Enter")
	ada.until("she is back", `!document.getElementById("notice").checkVisibility()`)
	ada.say("Yes")
	ada.wantLines(line{Who: "You", Text: "Good morning", Mine: true}, line{Who: "Bob", Text: script},
		line{Who: "Bob", Text: "Are you there?"}, line{Who: "You", Text: "Yes", Mine: true})
	if got := ada.people(); len(got) != 2 {
		t.Errorf("here are %q", got)
	}
	ada.wantQuiet()
	bob.wantQuiet()
}

// nameOf is who a connection is.
func (d *Demo) nameOf(c interface{ ID() uint64 }) string {
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	for other, g := range d.room.guests {
		if other.ID() == c.ID() {
			return g.name
		}
	}
	return ""
}

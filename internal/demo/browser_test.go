package demo

import (
	"fmt"
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

// Bob says nothing for too long. He is told why he was disconnected, finds everything with the keyboard, and
// hears on his return what was said without him.
func TestIdleInABrowser(t *testing.T) {
	d, s := start(t, Options{Idle: 1500 * time.Millisecond})
	f := front(t, d, s)
	b := startBrowser(t)
	bob := b.visit(f.URL, 390, 844, false)
	for range 20 { // to the field for the name
		var id string
		if bob.eval(&id, `document.activeElement.id`); id == "name" {
			break
		}
		bob.press("Tab")
	}
	bob.write("Bob")
	bob.press("Tab")
	bob.press("Enter")
	bob.until("he is connected", `document.getElementById("chat-state").classList.contains("on") && document.activeElement.id === "text"`)
	bob.until("the notice says why", `document.getElementById("notice").checkVisibility() &&
		document.getElementById("notice-text").textContent === "You were disconnected: you were silent for 2 seconds."`)
	bob.until("he cannot talk", `document.getElementById("text").disabled && document.getElementById("chat-state").textContent === "Not connected"`)
	bob.shot("390-idle", false)
	ada := arrive(t, s)
	ada.enter("Ada", "a", nil)
	ada.say("1", "where is Bob?")
	for ada.next().Data.Kind != "say" {
	}
	bob.press("Space")
	bob.until("he is back", `!document.getElementById("notice").checkVisibility() && document.getElementById("chat-state").textContent === "Connected as Bob"`)
	bob.wantLines(line{Who: "Ada", Text: "where is Bob?"})
	bob.until("he hears that he left", `document.getElementById("log").textContent.includes("Bob was silent for too long and left")`)
	bob.wantQuiet()
}

// A guest types faster than the house allows: what was refused is marked, and stands in the field again.
func TestTooFastInABrowser(t *testing.T) {
	d, s := start(t, Options{})
	b := startBrowser(t)
	p := b.visit(front(t, d, s).URL, 1280, 800, false)
	p.join("Ada")
	p.eval(nil, `(() => {
		for (let i = 0; i <= 5; i++) {
			document.getElementById("text").value = "message " + i
			document.getElementById("composer").requestSubmit()
		}
	})()`)
	p.until("one is refused", `document.querySelectorAll("#log .failed").length === 1`)
	p.until("it stands in the field", `document.getElementById("text").value === "message 5"`)
	p.until("the reason is there", `document.getElementById("hint").textContent.startsWith("Slow down")`)
	p.until("the others were said", `document.querySelectorAll("#log .say:not(.waiting):not(.failed)").length === 5`)
	p.eval(nil, `document.getElementById("text").value = "x".repeat(2001); document.getElementById("text").dispatchEvent(new Event("input"))`)
	p.press("Enter")
	p.until("a message that is too long stays", `document.getElementById("text").value.length === 2001 &&
		document.getElementById("hint").textContent === "2001 of 2000 characters"`)
	p.wantQuiet()
}

// The board has numbers and lines, the snippets run, and all that without a complaint.
func TestBoardInABrowser(t *testing.T) {
	d, s := start(t, Options{})
	b := startBrowser(t)
	p := b.visit(front(t, d, s).URL, 1280, 800, false)
	for _, id := range []string{"trip", "connections", "messages", "in", "bytes", "memory"} {
		p.until(id+" is a number", fmt.Sprintf(`/^[0-9]/.test(document.getElementById("%s-now").textContent)`, id))
	}
	for _, id := range []string{"trip", "connections", "messages", "bytes", "memory"} {
		p.until(id+" is drawn, one pixel for each of the screen's", fmt.Sprintf(`(() => {
			const canvas = document.getElementById("%s")
			const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
			const colors = new Set()
			for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) colors.add(data.slice(i, i + 3).join())
			return canvas.width === Math.round(canvas.getBoundingClientRect().width * 2) && colors.size >= 2 && canvas.ariaLabel.includes("now ")
		})()`, id))
	}
	p.eval(nil, `for (const button of document.querySelectorAll("#snippets button")) button.click()`)
	for i, want := range []string{"← hello", "← hello, all", "a"} {
		p.until("a snippet says what came", fmt.Sprintf(`document.querySelectorAll("#snippets output")[%d].textContent.includes(%q)`, i, want))
	}
	p.wantQuiet()
}

// nameOf is who a connection is.
func (d *Demo) nameOf(c interface{ ID() uint64 }) string {
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	for other, g := range d.room.guests.byConn {
		if other.ID() == c.ID() {
			return g.name
		}
	}
	return ""
}

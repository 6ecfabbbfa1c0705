// The chat of the demo page. What it says to the server, and hears from it, is at the top of chat.go.

const byID = (id) => document.getElementById(id)
const [entry, room, log, composer, text, hint, notice] = ["entry", "room", "log", "composer", "text", "hint", "notice"].map(byID)

const most = { text: 2000, lines: 500 }
const patience = 10_000 // for what was said to come back

let socket = null
let name = ""
let position = null // of the last message that is shown: where to go on after a lost connection
let people = new Set()
let peopleAt = 0 // joins and leaves up to this offset are in people already
let away = false // the connection was lost, and this is the way back
let lastSaid = null // to show who talks only once
const session = random() // the server knows this page by it when it comes back
const waiting = new Map() // what was said and has not come back, by ref

function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("")
}

function element(tag, className, content) {
  const e = document.createElement(tag)
  e.className = className
  if (content !== undefined) e.textContent = content // never as HTML: others wrote it
  return e
}

function connect() {
  const address = new URL("demo/chat", document.baseURI)
  address.protocol = address.protocol.replace("http", "ws")
  const mine = socket = new WebSocket(address)
  let opened = false
  state("Connecting …")
  entry.querySelector("button").disabled = byID("reconnect").disabled = true
  mine.onopen = () => {
    opened = true
    mine.send(JSON.stringify({ join: { name, session, since: position ?? undefined } }))
  }
  mine.onmessage = (event) => mine === socket && took(JSON.parse(event.data))
  mine.onclose = ({ code, reason }) => mine === socket && closed(opened, code, reason)
}

function took(message) {
  if (message.topic) heard(message)
  else if (message.welcome) welcomed(message.welcome)
  else if (message.subscribed) began(message.subscribed)
  else if (message.refused) refused(message.refused)
}

function welcomed(welcome) {
  name = welcome.name
  people = new Set(welcome.people)
  peopleAt = welcome.at.offset
  keep(name)
  entry.hidden = notice.hidden = true
  room.hidden = false
  enable(true)
  state("Connected as " + name, true)
  showPeople()
  const minutes = Math.round(welcome.idle / 60)
  tell(welcome.text)
  hint.textContent = minutes > 0 ? `Disconnects after ${minutes === 1 ? "a minute" : minutes + " minutes"} of silence.` : ""
  hint.className = "hint"
  text.focus({ preventScroll: true })
  for (const said of waiting.values()) send(said) // the server hears each only once
}

function began({ epoch, after, recovered }) {
  if (recovered === false) tell("Some messages sent while you were away are no longer available.")
  position = { offset: after, epoch }
  if (away) for (const said of waiting.values()) log.append(said.line) // behind what was missed
  away = false
}

const reasons = {
  1001: "The server is going away for a moment.",
  1006: "The connection was lost.",
  1013: "The server is overloaded right now.",
  4000: "You were disconnected",
  4001: "You joined on another connection.",
}

function closed(opened, code, reason) {
  disconnected()
  let why = reasons[code] ?? `The server closed the connection: ${reason || code}.`
  if (code === 4000) why += `: ${reason}.`
  if (!opened) why = "The server cannot be reached."
  if (room.hidden) byID("entry-error").textContent ||= why
  else notify(why)
}

function leave() {
  const left = socket
  disconnected()
  left.close(1000)
  notify("You have left the chat.", true)
}

function disconnected() {
  socket = null
  away = true
  clearTimeout(watch)
  state("Not connected")
  entry.querySelector("button").disabled = byID("reconnect").disabled = false
  enable(false)
  people.clear()
  showPeople()
}

/** Says why there is no connection, beside the way back. */
function notify(why, calm = false) {
  byID("notice-text").textContent = why
  notice.className = calm ? "notice calm" : "notice"
  notice.hidden = false
  byID("reconnect").focus({ preventScroll: true })
}

function heard({ offset, time, data }) {
  if (offset <= position.offset) return
  position = { ...position, offset }
  if (data.kind === "say") {
    const mine = waiting.get(data.ref)
    waiting.delete(data.ref)
    show(data, time, mine?.line)
    expect()
    return
  }
  if (offset > peopleAt) {
    if (data.kind === "join") people.add(data.name)
    else people.delete(data.name)
    showPeople()
  }
  const ways = { idle: "was silent for too long and left", lost: "lost the connection" }
  tell(`${data.name} ${data.kind === "join" ? "joined" : ways[data.why] ?? "left"}`, time)
}

/** Shows a message at the end, which is where the server has put it. */
function show({ name: who, text: words, ref }, time, line = element("li", "")) {
  const mine = own.has(ref)
  const more = lastSaid?.name === who && time - lastSaid.time < 120_000 && lastSaid.line === log.lastElementChild
  line.className = "say" + (mine ? " mine" : "") + (more ? " more" : "")
  const clock = element("time", "", new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }))
  clock.dateTime = new Date(time).toISOString()
  clock.title = new Date(time).toLocaleString()
  line.replaceChildren(element("b", more ? "unseen" : "who", mine ? "You" : who), bubble(words, clock))
  append(line)
  lastSaid = { name: who, time, line }
}

function bubble(words, ...more) {
  const e = element("div", "bubble")
  e.append(element("span", "text", words), ...more)
  return e
}

const own = new Set() // the refs of what was said here

function say(words) {
  const ref = random()
  own.add(ref)
  const line = element("li", "say mine waiting")
  line.append(bubble(words))
  const said = { ref, words, line }
  waiting.set(ref, said)
  append(line, true)
  send(said)
}

function send({ ref, words }) {
  socket?.send(JSON.stringify({ say: { ref, text: words } }))
  expect()
}

let watch = 0

/** A connection on which nothing comes back is lost, though the browser may not know for minutes. */
function expect() {
  clearTimeout(watch)
  if (waiting.size === 0 || !socket) return
  watch = setTimeout(() => {
    const dead = socket
    closed(true, 1006, "")
    dead.close()
  }, patience)
}

function refused({ text: why, ref }) {
  const said = waiting.get(ref)
  if (said) {
    waiting.delete(ref)
    said.line.className = "say mine failed"
    text.value ||= said.words
    fit()
    expect()
  }
  if (room.hidden) {
    byID("entry-error").textContent = why
    socket?.close(1000)
    return
  }
  hint.textContent = why
  hint.className = "hint bad"
}

function tell(words, time) {
  const line = element("li", "event", words)
  if (time) line.title = new Date(time).toLocaleString()
  append(line)
}

let atEnd = true // then the newest message stays in view

function append(line, follow = false) {
  log.append(line)
  while (log.childElementCount > most.lines) log.firstElementChild.remove()
  if (atEnd || follow) toEnd()
  else byID("newer").hidden = false
}

function toEnd() {
  log.scrollTop = log.scrollHeight
}

function showPeople() {
  const names = [...people].sort((a, b) => (b === name) - (a === name) || a.localeCompare(b)) // oneself first
  byID("here").hidden = !socket
  byID("here-count").textContent = names.length + " here"
  byID("people").replaceChildren(...names.map((n) => element("li", n === name ? "you" : "", n)))
}

function state(words, on = false) {
  byID("chat-state").textContent = words
  byID("chat-state").className = on ? "state on" : "state"
}

function enable(on) {
  for (const e of composer.elements) e.disabled = !on
}

function keep(value) {
  try {
    sessionStorage.setItem("carillon.name", value)
  } catch {} // it may be forbidden
}

try {
  byID("name").value = sessionStorage.getItem("carillon.name") ?? ""
} catch {}

function fit() {
  text.style.height = "auto"
  text.style.height = text.scrollHeight + 2 + "px"
  const length = [...text.value.trim()].length
  if (length > most.text - 200) {
    hint.textContent = `${length} of ${most.text} characters`
    hint.className = length > most.text ? "hint bad" : "hint"
  } else if (hint.className === "hint bad" && text.value) {
    hint.textContent = ""
  }
}

entry.addEventListener("submit", (event) => {
  event.preventDefault()
  name = byID("name").value.trim()
  byID("entry-error").textContent = name ? "" : "Enter a name first."
  if (name && !socket) connect()
})

composer.addEventListener("submit", (event) => {
  event.preventDefault()
  const words = text.value.trim()
  if (!words || !socket) return
  if ([...words].length > most.text) {
    fit()
    return
  }
  text.value = ""
  fit()
  say(words)
})

text.addEventListener("input", fit)
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    composer.requestSubmit()
  }
})
byID("reconnect").addEventListener("click", () => !socket && connect())
byID("leave").addEventListener("click", leave)
byID("newer").addEventListener("click", toEnd)
log.addEventListener("scroll", () => {
  atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60
  if (atEnd) byID("newer").hidden = true
})
new ResizeObserver(() => atEnd && toEnd()).observe(log)

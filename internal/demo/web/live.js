// The live board of the demo page: what the server publishes about itself once a second, and what this page
// measures by itself.

import { Carillon } from "../carillon.js"
import { Chart } from "./chart.js"

const byID = (id) => document.getElementById(id)
const span = 120

const digits = (v) => (v >= 100 || v === 0 ? v.toFixed(0) : v >= 10 ? v.toFixed(1).replace(/\.0$/, "") : v.toFixed(2).replace(/\.?0+$/, ""))

function count(v) {
  if (v >= 1e6) return digits(v / 1e6) + "M"
  return v >= 1e4 ? digits(v / 1e3) + "k" : v < 9.95 ? String(+v.toFixed(1)) : Math.round(v).toLocaleString("en")
}

function bytes(v) {
  if (v === 0) return "0"
  const unit = ["B", "KiB", "MiB", "GiB", "TiB"]
  let i = 0
  while (v >= 1024 && i < unit.length - 1) [v, i] = [v / 1024, i + 1]
  return `${digits(v)} ${unit[i]}`
}

const millis = (v) => (v === 0 ? "0" : v >= 1000 ? digits(v / 1000) + " s" : v < 0.095 ? digits(v * 1000) + " µs" : digits(v) + " ms")

const charts = {
  trip: new Chart(byID("trip"), ["--accent"], millis, 1),
  connections: new Chart(byID("connections"), ["--accent"], count, 4),
  messages: new Chart(byID("messages"), ["--second", "--accent"], count, 4),
  bytes: new Chart(byID("bytes"), ["--accent"], bytes, 1024, 2),
  memory: new Chart(byID("memory"), ["--accent"], bytes, 1 << 20, 2),
}

const client = new Carillon(new URL("demo/live", document.baseURI))
const probeTopic = "demo.probe." + Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(36)).join("")
const sent = new Map() // when each probe left
let probes = 0
let skew = null // the clock here is ahead of the server's by so much, the shortest way included
let shown = [] // subscriptions, while somebody looks

const now = () => Date.now() - (skew ?? 0)

function took({ time, data }) {
  const ahead = Date.now() - time
  skew = skew === null ? ahead : Math.min(skew, ahead)
  charts.connections.add(0, time, data.connections)
  charts.memory.add(0, time, data.memory)
  write("connections", count(data.connections))
  write("memory", bytes(data.memory))
  if (data.out === undefined) return
  charts.messages.add(0, time, data.in)
  charts.messages.add(1, time, data.out)
  charts.bytes.add(0, time, data.bytesOut)
  write("messages", count(data.out))
  write("in", count(data.in))
  write("bytes", bytes(data.bytesOut))
}

function write(id, words) {
  byID(id + "-now").textContent = words
}

function returned({ data }) {
  const since = sent.get(data)
  if (since === undefined) return
  sent.delete(data)
  const trip = performance.now() - since
  charts.trip.add(0, now(), trip)
  charts.trip.draw(now())
  const all = charts.trip.values(0).sort((a, b) => a - b)
  write("trip", millis(trip))
  if (all.length > 4) {
    const at = (share) => millis(all[Math.min(all.length - 1, Math.floor(share * all.length))])
    byID("trip-detail").textContent = `median ${at(0.5)}, 99th percentile ${at(0.99)}`
  }
}

function second() {
  if (shown.length > 0 && client.transport === "websocket") {
    sent.clear() // what has not come back within a second is not waited for
    sent.set(++probes, performance.now())
    client.publish(probeTopic, probes, { key: "", timeout: 5000 }).catch(() => {})
  }
  for (const [id, chart] of Object.entries(charts)) {
    chart.draw(now())
    chart.canvas.ariaLabel = `Chart of the last two minutes, now ${byID(id + "-now").textContent}`
  }
}

/** A page that nobody looks at asks for nothing. */
function look() {
  for (const sub of shown) sub.unsubscribe()
  shown = []
  if (document.visibilityState !== "visible" || client.state === "closed") return
  for (const [id, chart] of Object.entries(charts)) if (id !== "trip") chart.clear()
  shown = [client.subscribe("demo.stats", took, { last: span }), client.subscribe(probeTopic, returned)]
}

function state(words, on = false) {
  byID("board-state").textContent = words
  byID("board-state").className = on ? "state on" : "state"
}

client.on("open", ({ transport }) => {
  state(transport === "websocket" ? "Live, once a second" : "Live over server-sent events, without a round-trip probe", true)
})
client.on("reconnecting", () => state("Connection lost, reconnecting"))
client.on("close", ({ final, reason }) => final && state("The server closed the connection: " + reason))
document.addEventListener("visibilitychange", look)
look()
setInterval(second, 1000)

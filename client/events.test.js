// Run by TestEventsInABrowser in a page, since only a browser has the real EventSource.

import { Carillon } from "/carillon.js"

const url = `http://${new URLSearchParams(location.search).get("server")}/ws`
const log = []
const failures = [] // that nothing has caught
globalThis.addEventListener("error", ({ message }) => failures.push(message))

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(what, holds) {
  for (let i = 0; i < 2000; i++) {
    if (await holds()) return
    await sleep(10)
  }
  throw new Error("still not: " + what)
}

function same(got, want, what = "") {
  if (JSON.stringify(got) !== JSON.stringify(want)) {
    throw new Error(`${what}: got ${JSON.stringify(got)}, want ${JSON.stringify(want)}`)
  }
}

const control = (what, query = {}, body = undefined) =>
  fetch(`/${what}?${new URLSearchParams(query)}`, { method: "POST", body })

const publish = (topic, data) => control("publish", { topic }, JSON.stringify(data))

/** A WebSocket that a proxy does not let through. */
class Blocked {
  static tries = 0
  constructor() {
    Blocked.tries++
    setTimeout(() => this.onclose?.({ code: 1006, reason: "" }), 5)
  }
  close() {}
}

function connect(options = {}, address = url) {
  const client = new Carillon(address, { WebSocket: Blocked, minDelay: 10, maxDelay: 100, ...options })
  client.events = []
  for (const event of ["open", "close", "gap", "error"]) client.on(event, (detail) => client.events.push([event, detail]))
  client.count = (event) => client.events.filter(([e]) => e === event).length
  return client
}

function listen(client, topic, options) {
  const list = []
  list.sub = client.subscribe(topic, (message) => list.push(message), options)
  list.data = () => list.map((message) => message.data)
  return list
}

const tests = {
  async "auto falls back to events after three WebSockets that did not open, and can only receive"() {
    Blocked.tries = 0
    const client = connect()
    const early = client.publish("log.a", 1).catch((error) => error.code)
    const list = listen(client, "log.a")
    await until("open", () => client.state === "open")
    same([Blocked.tries, client.transport], [3, "events"])
    same(await early, "events_only", "a publish from before")
    same(await client.publish("log.a", 1).catch((error) => [error.code, error.message.includes("can only receive")]), ["events_only", true])
    same(await client.history("log.a").catch((error) => error.code), "events_only")
    await until("subscribed", () => list.sub.position)
    await publish("log.a", { n: 1 })
    await control("publish", { topic: "log.a", format: "binary" }, new Uint8Array([0, 255]))
    await until("both", () => list.length === 2)
    same(list[0].data, { n: 1 })
    same([list[1].data instanceof Uint8Array, [...list[1].data], list[1].offset], [true, [0, 255], 2])
    client.close()
  },

  async "with a real WebSocket there are no events"() {
    const client = connect({ WebSocket: globalThis.WebSocket })
    await until("open", () => client.state === "open")
    same(client.transport, "websocket")
    const list = listen(client, "log.ws")
    await until("subscribed", () => list.sub.position)
    await client.publish("log.ws", new Uint8Array([1, 2]))
    await until("one", () => list.length === 1)
    same([...list[0].data], [1, 2])
    client.close()
  },

  async "never does not fall back"() {
    Blocked.tries = 0
    const client = connect({ eventSource: "never" })
    listen(client, "log.a")
    await until("many tries", () => Blocked.tries > 8)
    same(client.count("open"), 0)
    client.close()
  },

  async "only begins with events, and each topic is resumed by itself"() {
    const client = connect({ eventSource: "only" })
    await sleep(50)
    same(client.state, "connecting", "without a topic")
    const lists = { a: listen(client, "log.only.a"), b: listen(client, "log.only.b", { last: 10 }) }
    await until("subscribed", () => lists.a.sub.position && lists.b.sub.position)
    for (let i = 0; i < 30; i++) {
      await publish("log.only.a", i)
      await publish("log.only.b", i)
      if (i % 7 === 3) await control("cut")
    }
    await until("all", () => lists.a.length >= 30 && lists.b.length >= 30)
    const numbers = Array.from({ length: 30 }, (_, i) => i)
    same(lists.a.data(), numbers)
    same(lists.b.data(), numbers)
    same([client.count("gap"), client.count("close") > 1], [0, true])
    lists.a.sub.unsubscribe()
    await publish("log.only.a", "late")
    await publish("log.only.b", "late")
    await until("the other", () => lists.b.length === 31)
    same(lists.a.length, 30)
    client.close()
  },

  async "a stream that a proxy holds back is not open"() {
    const client = connect({ eventSource: "only", pingTimeout: 200 }, new URL("/held", location.href))
    listen(client, "log.held")
    await until("three tries", async () => (await (await fetch("/held-count")).json()) >= 3)
    same([client.count("open"), client.transport, client.state === "open"], [0, null, false])
    client.close()
  },

  async "a client that is closed when it opens says nothing more"() {
    const client = connect({ eventSource: "only" })
    const list = listen(client, "log.early", { last: 10 })
    client.on("open", () => client.close())
    await until("closed", () => client.state === "closed")
    await sleep(50)
    same([list.sub.position, client.count("open"), failures], [null, 1, []])
  },

  async "a gap is reported"() {
    const client = connect({ eventSource: "only" })
    const gaps = []
    const list = listen(client, "small.e", { onGap: (gap) => gaps.push(gap.topic) })
    await until("subscribed", () => list.sub.position)
    await publish("small.e", 1)
    await until("one", () => list.length === 1)
    await control("refuse", { on: true })
    await control("cut")
    for (let i = 2; i <= 9; i++) await publish("small.e", i)
    await control("refuse", { on: false })
    await until("what is kept", () => list.length === 4)
    same([list.data(), gaps], [[1, 7, 8, 9], ["small.e"]])
    client.close()
  },

  async "a new epoch is a gap"() {
    const client = connect({ eventSource: "only" })
    const list = listen(client, "log.e")
    await until("subscribed", () => list.sub.position)
    for (let i = 1; i <= 3; i++) await publish("log.e", i)
    await until("three", () => list.length === 3)
    await control("restart")
    await publish("log.e", "new")
    await until("the new one", () => list.length === 4)
    same([list.data(), client.count("gap")], [[1, 2, 3, "new"], 1])
    client.close()
  },

  async "a refused topic ends its subscription, not the others"() {
    const client = connect({ eventSource: "only" })
    const list = listen(client, "log.ok")
    await until("subscribed", () => list.sub.position)
    const errors = []
    listen(client, "secret", { onError: (error) => errors.push([error.code, error.topic]) })
    await until("refused", () => errors.length === 1)
    same(errors, [["not_allowed", "secret"]])
    await publish("log.ok", 1)
    await until("one", () => list.length === 1)
    same(client.count("close"), 0)
    client.close()
  },

  async "a server that says 1008 is not asked again"() {
    const client = connect({ eventSource: "only" })
    const list = listen(client, "log.final")
    await until("subscribed", () => list.sub.position)
    await control("close", { code: 1008, reason: "go away" })
    await until("closed", () => client.state === "closed")
    same(client.events.at(-1), ["close", { code: 1008, reason: "go away", final: true }])
  },

  async "a server that was down is found again, be it with events or a WebSocket"() {
    await control("refuse", { on: true })
    const client = connect({ WebSocket: globalThis.WebSocket })
    const list = listen(client, "log.down")
    await sleep(600)
    await control("refuse", { on: false })
    await until("open", () => client.state === "open")
    await until("subscribed", () => list.sub.position)
    await publish("log.down", 1)
    await until("one", () => list.length === 1)
    client.close()
  },

  async "from events it goes on with a WebSocket once one opens"() {
    let open = false
    class Later {
      constructor(...args) { return open ? new globalThis.WebSocket(...args) : new Blocked() }
    }
    const client = connect({ WebSocket: Later, upgradeInterval: 300 })
    const list = listen(client, "log.up")
    await until("events", () => client.transport === "events")
    await until("subscribed", () => list.sub.position)
    open = true
    for (let i = 0; i < 100; i++) {
      await publish("log.up", i)
      await sleep(5)
    }
    await until("a WebSocket", () => client.transport === "websocket")
    await client.publish("log.up", 100)
    await until("all", () => list.length >= 101)
    same(list.data(), Array.from({ length: 101 }, (_, i) => i))
    same(client.count("gap"), 0)
    client.close()
  },
}

const result = { ok: true }
for (const [name, run] of Object.entries(tests)) {
  try {
    await run()
    log.push("ok: " + name)
  } catch (error) {
    log.push(`FAILED: ${name}: ${error.stack}`)
    result.ok = false
    await control("refuse", { on: false })
  }
}
await fetch("/result", { method: "POST", body: JSON.stringify({ ...result, log: log.join("\n") }) })

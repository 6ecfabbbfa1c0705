// Run by TestNode, which starts the server, and a line to it that these tests break.

import assert from "node:assert/strict"
import { webcrypto } from "node:crypto"
import { test } from "node:test"
import { Carillon, CarillonError } from "./carillon.js"

globalThis.crypto ??= webcrypto // Node 18
const WebSocket = globalThis.WebSocket ?? (await import(process.env.CARILLON_WS)).WebSocket
const url = process.env.CARILLON_URL

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function until(what, holds) {
  for (let i = 0; i < 4000; i++) {
    if (await holds()) return
    await sleep(5)
  }
  throw new Error("still not: " + what)
}

async function control(what, query = {}, body = undefined) {
  const method = ["log", "stats"].includes(what) ? "GET" : "POST"
  const response = await fetch(`${process.env.CARILLON_CONTROL}/${what}?${new URLSearchParams(query)}`, { method, body })
  assert.equal(response.status, 200)
  const text = await response.text()
  return text && JSON.parse(text)
}

const publish = (topic, data) => control("publish", { topic }, JSON.stringify(data))

/** A client that is closed when the test ends, and a list of what it emits. */
function connect(t, options = {}, address = url) {
  const client = new Carillon(address, { WebSocket, minDelay: 20, maxDelay: 200, ...options })
  client.events = []
  for (const event of ["open", "close", "reconnecting", "gap", "error"]) {
    client.on(event, (detail) => client.events.push([event, detail]))
  }
  client.count = (event) => client.events.filter(([e]) => e === event).length
  client.opened = (n = 1) => until(`open ${n} times`, () => client.count("open") >= n)
  t.after(() => client.close())
  return client
}

/** Subscribes, and waits until that is so. */
async function listen(client, topic, options = {}) {
  const list = []
  let replies = 0
  list.subscribed = (n) => until(`${topic} subscribed ${n} times`, () => replies >= n)
  const at = await new Promise((resolve, reject) => {
    const onSubscribed = (reply) => { replies++; resolve(reply) }
    list.sub = client.subscribe(topic, (message) => list.push(message), { ...options, onSubscribed, onError: reject })
  })
  list.at = at
  list.data = () => list.map((message) => message.data)
  return list
}

test("messages come as they were published, in order, to everybody", async (t) => {
  const alice = connect(t)
  const bob = connect(t)
  const [a, b] = [await listen(alice, "open.news"), await listen(bob, "open.news")]
  assert.equal(a.at.offset, 0)
  const before = Date.now()
  const receipts = [
    await alice.publish("open.news", { n: 1 }),
    await alice.publish("open.news", "plain", { encoding: "text" }),
    await alice.publish("open.news", new Uint8Array([0, 255, 128])),
    await alice.publish("open.news", "AP+A", { encoding: "base64" }),
    await alice.publish("open.news", null),
  ]
  assert.deepEqual(receipts.map((r) => [r.topic, r.offset, r.subscribers]), [1, 2, 3, 4, 5].map((n) => ["open.news", n, 2]))
  await until("both have five", () => a.length === 5 && b.length === 5)
  const bytes = new Uint8Array([0, 255, 128])
  for (const list of [a, b]) {
    assert.deepEqual(list.data(), [{ n: 1 }, "plain", bytes, bytes, null])
    assert.deepEqual(list.map((m) => m.offset), [1, 2, 3, 4, 5])
    assert.ok(list.every((m) => m.time >= before - 1000 && m.topic === "open.news"))
  }
  assert.deepEqual(a.sub.position, { offset: 5, epoch: receipts[4].epoch })
  assert.equal(alice.state, "open")
  assert.equal(alice.transport, "websocket")
})

test("a large binary message survives", async (t) => {
  const client = connect(t)
  const list = await listen(client, "open.large")
  const bytes = Uint8Array.from({ length: 45_000 }, (_, i) => i * 7)
  await client.publish("open.large", bytes.buffer)
  await until("it is here", () => list.length === 1)
  assert.deepEqual(list[0].data, bytes)
})

test("history and presence", async (t) => {
  const client = connect(t)
  for (let i = 1; i <= 5; i++) await client.publish("log.h", i)
  const { epoch } = await client.publish("log.h", new Uint8Array([6]))
  const all = await client.history("log.h")
  assert.deepEqual(all.messages.map((m) => m.data), [1, 2, 3, 4, 5, new Uint8Array([6])])
  const some = await client.history("log.h", { since: { offset: 2, epoch }, limit: 2 })
  assert.deepEqual(some.messages.map((m) => m.data), [3, 4])
  assert.equal(some.recovered, true)
  await listen(client, "log.h")
  assert.equal((await client.presence("log.h")).count, 1)
})

test("last and since say where to begin", async (t) => {
  const client = connect(t)
  for (let i = 1; i <= 5; i++) await client.publish("log.begin", i)
  const list = await listen(client, "log.begin", { last: 2 })
  await until("the last two", () => list.length === 2)
  const other = connect(t)
  const rest = await listen(other, "log.begin", { since: { offset: 1, epoch: list.at.epoch } })
  await until("the rest", () => rest.length === 4)
  await client.publish("log.begin", 6)
  await until("the live one", () => list.length === 3 && rest.length === 5)
  assert.deepEqual(list.data(), [4, 5, 6])
  assert.deepEqual(rest.data(), [2, 3, 4, 5, 6])
})

test("last of less than there is, then a cut: no gap, nothing twice", async (t) => {
  const client = connect(t)
  for (let i = 1; i <= 5; i++) await client.publish("open.nothing-kept", i)
  const list = await listen(client, "open.nothing-kept", { last: 3 })
  assert.equal(list.sub.position.offset, 5)
  await control("cut")
  await list.subscribed(2)
  await client.publish("open.nothing-kept", 6)
  await until("the live one", () => list.length === 1)
  assert.equal(client.count("gap"), 0)
})

test("patterns", async (t) => {
  const client = connect(t)
  const list = await listen(client, "open.p.*")
  const deep = await listen(client, "open.q.>")
  for (const topic of ["open.p.a", "open.q.a", "open.q.a.b", "open.p.b"]) await client.publish(topic, topic)
  await until("all are here", () => list.length === 2 && deep.length === 2)
  assert.deepEqual([list.data(), deep.data()], [["open.p.a", "open.p.b"], ["open.q.a", "open.q.a.b"]])
  assert.equal(list.sub.position, null)
  await control("cut")
  await client.opened(2)
  await until("a gap can't be ruled out", () => client.count("gap") === 2)
})

test("a topic with latest begins with its value", async (t) => {
  const client = connect(t)
  for (let i = 1; i <= 3; i++) await client.publish("latest.x", i)
  const list = await listen(client, "latest.x")
  await until("the value", () => list.length === 1)
  assert.deepEqual(list.data(), [3])
  await control("cut")
  await list.subscribed(2)
  await client.publish("latest.x", 4)
  await until("the next", () => list.length === 2)
  assert.deepEqual(list.data(), [3, 4])
})

test("unsubscribing ends it at once, and a topic can be had again", async (t) => {
  const client = connect(t)
  const first = await listen(client, "open.u")
  await client.publish("open.u", 1)
  await until("one", () => first.length === 1)
  first.sub.unsubscribe()
  const second = []
  await new Promise((onSubscribed) => client.subscribe("open.u", (m) => second.push(m.data), { onSubscribed }))
  await client.publish("open.u", 2)
  await until("two", () => second.length === 1)
  assert.equal(first.length, 1)
  assert.throws(() => client.subscribe("open.u", () => {}), { code: "already_subscribed" })

  const third = client.subscribe("open.never", () => assert.fail("unsubscribed before the reply"))
  third.unsubscribe()
  third.unsubscribe()
  await client.publish("open.never", 1)
  await until("nobody", async () => (await client.presence("open.never")).count === 0)
})

test("a listener that unsubscribes gets nothing more", async (t) => {
  const client = connect(t)
  for (let i = 1; i <= 5; i++) await client.publish("log.once", i)
  const got = []
  const sub = client.subscribe("log.once", (m) => { got.push(m.data); sub.unsubscribe() }, { last: 5 })
  await until("one", () => got.length === 1)
  await client.publish("log.once", 6)
  assert.deepEqual(got, [1])
})

test("a listener that throws harms no other", async (t) => {
  const client = connect(t)
  const thrown = []
  const caught = (error) => thrown.push(error.message)
  const others = process.listeners("uncaughtException")
  process.removeAllListeners("uncaughtException")
  process.on("uncaughtException", caught)
  t.after(() => {
    process.off("uncaughtException", caught)
    for (const f of others) process.on("uncaughtException", f)
  })
  client.subscribe("open.t1", () => { throw new Error("mine") })
  const list = await listen(client, "open.t2") // behind the other
  await client.publish("open.t1", 1)
  await client.publish("open.t2", 1)
  await until("the other", () => list.length === 1 && thrown.length === 1)
  assert.deepEqual(thrown, ["mine"])
})

test("errors have the codes of the protocol", async (t) => {
  const client = connect(t)
  await assert.rejects(client.publish("secret", 1), { name: "CarillonError", code: "not_allowed" })
  await assert.rejects(client.publish("a..b", 1), { code: "invalid_topic" })
  await assert.rejects(client.publish("open.x", "%", { encoding: "base64" }), { code: "bad_request" })
  await assert.rejects(client.publish("open.x"), { code: "bad_request" })
  await assert.rejects(client.publish("open.x", 1n), TypeError)
  await assert.rejects(client.history("secret"), { code: "not_allowed" })
  await assert.rejects(client.presence("a..b"), { code: "invalid_topic" })
  await assert.rejects(listen(client, "secret"), { code: "not_allowed" })
  await listen(client, "open.o.>")
  await assert.rejects(listen(client, "open.o.x"), { code: "overlap" })
  assert.deepEqual(client.events.filter(([e]) => e === "error").map(([, e]) => [e.code, e.topic]),
    [["not_allowed", "secret"], ["overlap", "open.o.x"]])
  assert.throws(() => new Carillon(url + "?topic=x", { WebSocket }), TypeError)
  assert.throws(() => new Carillon(url, { WebSocket: null }), TypeError)
  assert.ok(new CarillonError("x", "y") instanceof Error)
})

test("a refused subscription is not asked for again", async (t) => {
  const client = connect(t)
  await assert.rejects(listen(client, "secret"), { code: "not_allowed" })
  const list = await listen(client, "open.r")
  await control("cut")
  await list.subscribed(2)
  assert.equal(client.count("error"), 1)
})

test("a connection that breaks at random loses nothing, for receivers and publishers", async (t) => {
  const receivers = [connect(t), connect(t), connect(t)]
  const lists = receivers.map((client) => {
    const list = []
    client.subscribe("log.random", (m) => list.push(m), { last: 10_000 })
    return list
  })
  const publisher = connect(t)
  await Promise.all([publisher, ...receivers].map((client) => client.opened()))
  let stop = false
  const cuts = (async () => {
    for (let i = 0; i < 40; i++) {
      await sleep(10 + Math.random() * 60)
      await control(...(i % 3 === 0 ? ["close", { code: 1001, reason: "restart" }] : ["cut"]))
    }
    stop = true
  })()
  const published = []
  const publishing = (async () => {
    for (let i = 0; !stop; i++) {
      published.push(publisher.publish("log.random", i))
      if (i % 5 === 0) await sleep(1)
    }
  })()
  const outside = (async () => {
    for (let i = 0; !stop; i++) {
      await publish("log.random", "outside " + i)
      await sleep(2)
    }
  })()
  await Promise.all([cuts, publishing, outside])
  const receipts = await Promise.all(published)
  const log = await control("log", { topic: "log.random" })
  await until("all are here", () => lists.every((list) => list.length >= log.length))
  for (const [i, list] of lists.entries()) {
    assert.deepEqual(list.map((m) => m.data), log, `receiver ${i}`)
    assert.deepEqual(list.map((m) => m.offset), log.map((_, n) => n + 1))
    assert.equal(receivers[i].count("gap"), 0)
  }
  assert.ok(publisher.count("open") > 5, "it was cut off")
  // Each was published once, in the order of the calls, and its receipt says where.
  assert.deepEqual(log.filter((data) => typeof data === "number"), receipts.map((_, n) => n))
  for (const [n, receipt] of receipts.entries()) assert.equal(log[receipt.offset - 1], n)
})

test("a gap is reported, and what is kept still comes", async (t) => {
  const client = connect(t)
  const gaps = []
  const list = await listen(client, "small.a", { onGap: (gap) => gaps.push(gap) })
  await client.publish("small.a", 1)
  await until("one", () => list.length === 1)
  await control("refuse", { on: true })
  await control("cut")
  for (let i = 2; i <= 9; i++) await publish("small.a", i)
  await control("refuse", { on: false })
  await client.opened(2)
  await until("what is kept", () => list.length === 4)
  assert.deepEqual(list.data(), [1, 7, 8, 9])
  assert.deepEqual(gaps, [{ topic: "small.a", since: { offset: 1, epoch: list.at.epoch }, position: { offset: 6, epoch: list.at.epoch } }])
  assert.equal(client.count("gap"), 1)
  await control("cut")
  await list.subscribed(3)
  await client.publish("small.a", 10)
  await until("the live one", () => list.length === 5)
  assert.equal(client.count("gap"), 1, "the gap is told once")
})

/** A server of a cluster, as its client sees it: it says what a test has it say. */
class ClusterSocket {
  protocol = "carillon.v1.json"

  constructor() {
    ClusterSocket.last = this
    setTimeout(() => this.onopen())
  }

  say(frame) { this.onmessage({ data: JSON.stringify(frame) }) }

  send(text) {
    const { id, subscribe } = JSON.parse(text)
    if (!subscribe) return this.say({ id, pong: {} })
    this.say({ id, subscribed: { topic: subscribe.topic, offset: 300, epoch: "e", after: 99 } })
    for (const offset of [100, 150, 200]) this.say({ topic: subscribe.topic, offset, time: 1, data: offset })
  }

  close() {}
}

test("offsets of a cluster have holes, and a gap may be in the midst", async (t) => {
  const client = connect(t, { WebSocket: ClusterSocket })
  const gaps = []
  const list = await listen(client, "log", { last: 3, onGap: (gap) => gaps.push(gap) })
  assert.deepEqual(list.data(), [100, 150, 200])
  const server = ClusterSocket.last
  server.say({ topic: "log", offset: 310, time: 1, data: 310 })
  server.say({ subscribed: { topic: "log", offset: 900, epoch: "e", after: 899, recovered: false } })
  server.say({ topic: "log", offset: 900, time: 1, data: 900 })
  server.say({ subscribed: { topic: "log", offset: 7, epoch: "new", after: 5, recovered: false } })
  server.say({ topic: "log", offset: 7, time: 1, data: 7 })
  assert.deepEqual(list.data(), [100, 150, 200, 310, 900, 7])
  assert.deepEqual(gaps.map((gap) => gap.since), [{ offset: 310, epoch: "e" }, { offset: 900, epoch: "e" }])
  assert.deepEqual(list.sub.position, { offset: 7, epoch: "new" })
})

/** What some runtimes throw for an address has it in full. */
class Throwing {
  constructor(address) { throw new SyntaxError(`The URL '${address}' is invalid`) }
}

test("an error of the runtime is passed on without the token", async (t) => {
  const client = connect(t, { WebSocket: Throwing }, `${url}?token=sesame`)
  await until("it tries again", () => client.count("reconnecting") > 0)
  const { reason } = client.events.find(([e]) => e === "reconnecting")[1]
  assert.match(reason, /is invalid/)
  assert.ok(!JSON.stringify(client.events).includes("sesame"), reason)
})

test("a new epoch is a gap, and nothing of it is taken for old", async (t) => {
  const client = connect(t)
  const list = await listen(client, "log.epoch")
  const quiet = await listen(client, "open.epoch")
  for (let i = 1; i <= 5; i++) await client.publish("log.epoch", i)
  await client.publish("open.epoch", 1)
  await until("five", () => list.length === 5 && quiet.length === 1)
  await control("refuse", { on: true })
  await control("restart")
  await publish("log.epoch", "new 1")
  for (let i = 0; i < 3; i++) await publish("open.epoch", "missed")
  await control("refuse", { on: false })
  await client.opened(2)
  await until("the new ones", () => list.length === 6)
  await until("gaps", () => client.count("gap") === 2)
  await client.publish("log.epoch", "new 2")
  await until("the live one", () => list.length === 7)
  assert.deepEqual(list.data(), [1, 2, 3, 4, 5, "new 1", "new 2"])
  assert.notEqual(list.sub.position.epoch, list.at.epoch)
  assert.equal(quiet.sub.position.offset, 3)
  await control("cut")
  await quiet.subscribed(3)
  assert.equal(client.count("gap"), 2, "each gap is told once")
})

test("a publish without a connection waits for one", async (t) => {
  await control("refuse", { on: true })
  const client = connect(t)
  const published = client.publish("log.wait", "late")
  await until("it has tried", () => client.count("reconnecting") > 2)
  await control("refuse", { on: false })
  assert.equal((await published).offset, 1)
})

test("a publish without a key fails when the connection breaks, and is not repeated", async (t) => {
  const client = connect(t)
  await client.opened()
  await control("freeze")
  const once = assert.rejects(client.publish("log.once-only", 1, { key: "" }), { code: "disconnected" })
  const safe = client.publish("log.once-only", 2)
  await control("cut")
  await once
  await safe
  assert.deepEqual(await control("log", { topic: "log.once-only" }), [2])
})

test("a key makes a publish safe to repeat", async (t) => {
  const client = connect(t)
  const first = await client.publish("log.key", "a", { key: "order-17" })
  assert.deepEqual(await client.publish("log.key", "a", { key: "order-17" }), first)
  assert.deepEqual(await control("log", { topic: "log.key" }), ["a"])
})

test("a request without an answer ends with its time-out", async (t) => {
  const client = connect(t)
  await client.opened()
  await control("freeze")
  await assert.rejects(client.presence("open.x", { timeout: 50 }), { code: "timeout" })
  await assert.rejects(client.publish("open.x", 1, { timeout: 50 }), { code: "timeout" })
})

test("a dead link is noticed, and the client comes back", async (t) => {
  const client = connect(t, { pingInterval: 50, pingTimeout: 3000 }) // which is what a connection has to open, too
  const list = await listen(client, "log.dead")
  await sleep(3500)
  assert.equal(client.count("close"), 0, "a quiet link is not dead")
  await control("freeze")
  await publish("log.dead", 1)
  await client.opened(2)
  await until("what was missed", () => list.length === 1)
  assert.equal(client.events.find(([e]) => e === "close")[1].reason, "the server does not answer")
})

test("a server that accepts and says nothing is given up", async (t) => {
  const net = await import("node:net")
  const silent = net.createServer(() => {}).listen(0, "127.0.0.1")
  t.after(() => silent.close())
  await until("it listens", () => silent.address())
  const client = connect(t, { pingTimeout: 50 }, `ws://127.0.0.1:${silent.address().port}/`)
  await until("it tries again", () => client.count("reconnecting") >= 2)
  assert.equal(client.state, "reconnecting")
})

test("an endpoint without the subprotocol is not taken for one", async (t) => {
  const client = connect(t, {}, url.replace("/ws", "/echo"))
  await until("it tries again", () => client.count("reconnecting") >= 2)
  assert.equal(client.count("open"), 0)
})

test("the waits grow, have full jitter and an end, and begin anew after a connection that lasted", async (t) => {
  await control("refuse", { on: true })
  const now = Date.now
  const client = connect(t, { minDelay: 8, maxDelay: 50, random: () => 0.5 })
  await until("six waits", () => client.count("reconnecting") >= 6)
  await control("refuse", { on: false })
  await client.opened()
  const delays = () => client.events.filter(([e]) => e === "reconnecting").map(([, d]) => d.delay)
  assert.deepEqual(delays().slice(0, 6), [4, 8, 16, 25, 25, 25])
  await control("cut") // it had just opened, so the waits go on
  await client.opened(2)
  assert.equal(delays().at(-1), 25)
  t.after(() => { Date.now = now })
  Date.now = () => now() + 10_000
  await control("cut")
  await client.opened(3)
  assert.equal(delays().at(-1), 4)
})

test("when the network is back, it connects at once", async (t) => {
  const handlers = new Map()
  globalThis.addEventListener = (event, f) => handlers.set(event, f)
  globalThis.removeEventListener = (event) => handlers.delete(event)
  globalThis.document = { visibilityState: "hidden", addEventListener, removeEventListener }
  t.after(() => {
    for (const name of ["addEventListener", "removeEventListener", "document"]) delete globalThis[name]
  })
  const client = connect(t, { minDelay: 600_000, maxDelay: 600_000, random: () => 1, pingTimeout: 3000 })
  const list = await listen(client, "log.offline")
  await control("refuse", { on: true })
  await control("cut")
  await until("it waits", () => client.state === "reconnecting")
  await publish("log.offline", "missed")
  await control("refuse", { on: false })
  handlers.get("visibilitychange")() // still hidden
  await sleep(50)
  assert.equal(client.count("open"), 1)
  handlers.get("online")()
  await until("what was missed", () => list.length === 1)

  await control("cut")
  await until("it waits", () => client.state === "reconnecting")
  document.visibilityState = "visible"
  handlers.get("visibilitychange")()
  await client.opened(3)

  await control("freeze") // a laptop wakes up with another address
  handlers.get("online")()
  await until("the link is found dead", () => client.count("close") === 3)
  client.close()
  assert.equal(handlers.size, 0)
})

for (const code of [1008, 1003]) {
  test(`after ${code} it does not come back`, async (t) => {
    const client = connect(t)
    const list = await listen(client, "open.final")
    await control("close", { code, reason: "go away" })
    await until("it is closed", () => client.state === "closed")
    assert.deepEqual(client.events.at(-1), ["close", { code, reason: "go away", final: true }])
    await assert.rejects(client.publish("open.final", 1), { code: "closed" })
    assert.throws(() => client.subscribe("open.other", () => {}), { code: "closed" })
    await sleep(300)
    assert.equal(client.count("open"), 1)
    assert.equal(list.length, 0)
  })
}

test("when the server says when to come back, it does", async (t) => {
  const client = connect(t, { minDelay: 20_000 })
  await client.opened()
  await control("close", { code: 1001, reason: "server is shutting down; retry=12" })
  await client.opened(2)
  assert.equal(client.events.find(([e]) => e === "reconnecting")[1].delay, 12)
})

for (const code of [1000, 1001, 1011, 1013]) {
  test(`after ${code} it comes back`, async (t) => {
    const client = connect(t)
    await client.opened()
    await control("close", { code, reason: "later" })
    await client.opened(2)
    assert.deepEqual(client.events[1], ["close", { code, reason: "later", final: false }])
  })
}

test("a message that is too large fails and is not repeated", async (t) => {
  const client = connect(t)
  await client.opened()
  await assert.rejects(client.publish("open.x", "x".repeat(70_000)), { code: "too_large" })
  await client.publish("open.x", "small")
  assert.equal(client.count("open"), 2)
})

test("close ends everything", async (t) => {
  const client = connect(t)
  const list = await listen(client, "open.close")
  await control("freeze")
  const waiting = assert.rejects(client.publish("open.close", 1), { code: "closed" })
  client.close()
  client.close()
  await waiting
  assert.equal(client.state, "closed")
  assert.equal(client.transport, null)
  await control("publish", { topic: "open.close" }, "1")
  assert.equal(list.length, 0)
  assert.equal(client.count("close"), 1)

  const early = connect(t)
  const never = early.publish("open.close", 1)
  early.close()
  await assert.rejects(never, { code: "closed" })
  await control("cut")
  await until("no connection is left", async () => (await control("stats")).open === 0)
})

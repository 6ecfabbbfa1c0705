// The client of carillon's topics, for browsers and Node: one module, no dependencies.
//
//   import { Carillon } from "/carillon.js"
//   const carillon = new Carillon("/ws")
//   carillon.subscribe("prices.eu", (message) => console.log(message.offset, message.data))
//   await carillon.publish("prices.eu", { AAPL: 187.2 })
//
// It connects again whenever the connection is lost, and goes on after the last message of each topic: none
// comes twice or out of order, and gaps are reported. docs/protocol.md has the protocol.

/**
 * @typedef {{offset: number, epoch: string}} Position  a place in a topic: after the message with this offset
 *
 * @typedef {object} Message
 * @property {string} topic
 * @property {number} offset  of the message in its topic: 1, 2, 3 and so on
 * @property {number} time    when the server took it, in milliseconds since 1970
 * @property {any} data       what was published; a Uint8Array if that was binary
 *
 * @typedef {object} Options  times are in milliseconds
 * @property {number} [minDelay]      the longest wait before the first try to reconnect; 250
 * @property {number} [maxDelay]      the longest wait before any try; 30000
 * @property {number} [timeout]       how long a request may take, reconnecting included; 15000
 * @property {number} [pingInterval]  how often the server is asked for a sign of life; 25000
 * @property {number} [pingTimeout]   how long it may take to answer, and a connection to open: a stream of
 *   server-sent events is open when the first has come, which a proxy may hold back for ever; 10000
 * @property {"auto"|"never"|"only"} [eventSource]  whether to use server-sent events, which can only
 *   receive. "auto", the default, does when no WebSocket ever opened in `attempts` tries.
 * @property {boolean} [withCredentials]  whether server-sent events from another origin are asked for with
 *   cookies, as a WebSocket always is: the server must list this page's origin by name; false
 * @property {number} [attempts]      see eventSource; 3
 * @property {number} [upgradeInterval]  how often a WebSocket is tried beside server-sent events; 60000
 * @property {typeof globalThis.WebSocket} [WebSocket]      where there is none, as in Node before 22
 * @property {typeof globalThis.EventSource} [EventSource]
 * @property {() => number} [random]  0 to 1, for the waits; Math.random
 *
 * @typedef {object} SubscribeOptions
 * @property {Position} [since]  go on from here; then last does not count
 * @property {number} [last]     begin with so many of the newest messages that are kept
 * @property {(gap: {topic: string, since: ?Position, position: ?Position}) => void} [onGap]  messages are
 *   missing before the next: read the state from elsewhere. After a lost connection, any pattern may have one.
 * @property {(at: {topic: string, offset?: number, epoch?: string, after?: number, recovered?: boolean}) => void} [onSubscribed]
 * @property {(error: CarillonError) => void} [onError]  the server refused: the subscription has ended
 *
 * @typedef {object} Subscription
 * @property {string} topic
 * @property {?Position} position  of the last message that was handed out, or before the first: what `since` needs to go on
 * @property {() => void} unsubscribe  nothing is handed out from now on
 */

const protocol = "carillon.v1.json"

/** After a connection that has lasted so long, the waits begin anew. */
const stable = 5000

/** The close codes after which coming back would only repeat what went wrong. */
const final = new Set([1003, 1008])

/** The errors of a subscription that pass. */
const passing = new Set(["overloaded", "rate_limited", "too_many_topics", "unavailable"])

/**
 * What a request fails with. `code` is one of the protocol's, or "timeout", "disconnected" (a publish
 * without a key was on its way), "events_only" or "closed".
 */
export class CarillonError extends Error {
  constructor(code, message, topic) {
    super(message)
    Object.assign(this, { name: "CarillonError", code, topic })
  }
}

export class Carillon {
  #options
  #state = "connecting"
  #link = null // the connection, or the attempt at one
  #probe = null // an attempt at a WebSocket beside server-sent events
  #timer = 0 // of the next attempt
  #probeTimer = 0
  #failures = 0 // since the last connection that lasted: the waits grow with it
  #unopened = 0 // WebSockets in a row that did not open
  #everOpened = false
  #triedEvents = false // in the attempt before
  #lastID = 0
  #requests = new Map() // by id, in the order in which they were made
  #subscriptions = new Map() // by topic or pattern
  #listeners = new Map()
  #hurry = () => this.#now()
  #seen = () => globalThis.document.visibilityState === "visible" && this.#now()

  /**
   * @param {string | URL} url  of the endpoint, such as "/ws" or "wss://example.com/ws"
   * @param {Options} [options]
   */
  constructor(url, options = {}) {
    const address = new URL(url, globalThis.location?.href)
    if (address.searchParams.has("topic")) throw new TypeError("the URL has a topic: use subscribe instead")
    this.#options = {
      minDelay: 250, maxDelay: 30000, timeout: 15000, pingInterval: 25000, pingTimeout: 10000,
      eventSource: "auto", withCredentials: false, attempts: 3, upgradeInterval: 60000, random: Math.random,
      WebSocket: globalThis.WebSocket, EventSource: globalThis.EventSource, ...options,
      url: Object.assign(new URL(address), { protocol: address.protocol.replace(/^http/, "ws") }),
      eventsURL: Object.assign(new URL(address), { protocol: address.protocol.replace(/^ws/, "http") }),
    }
    const { eventSource, WebSocket, EventSource } = this.#options
    if (eventSource !== "only" && !WebSocket) throw new TypeError("there is no WebSocket here: pass one as an option")
    if (eventSource === "only" && !EventSource) throw new TypeError("there is no EventSource here: pass one as an option")
    globalThis.addEventListener?.("online", this.#hurry)
    globalThis.document?.addEventListener("visibilitychange", this.#seen)
    this.#connect()
  }

  /** @returns {"connecting"|"open"|"reconnecting"|"closed"} closed is the end */
  get state() { return this.#state }

  /** @returns {?("websocket"|"events")} what the open connection is */
  get transport() { return this.#state === "open" ? this.#link.kind : null }

  /**
   * Calls a function on "open" ({transport}), "close" ({code, reason, final}: a connection has ended, or,
   * if final, the client), "reconnecting" ({attempt, delay, code, reason}), "gap" (as onGap) or "error"
   * (a CarillonError that concerns no request).
   * @param {"open"|"close"|"reconnecting"|"gap"|"error"} event @param {(detail: any) => void} listener
   * @returns {() => void} takes the function away again
   */
  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set())
    this.#listeners.get(event).add(listener)
    return () => this.#listeners.get(event).delete(listener)
  }

  /**
   * Hands out the messages of a topic, or of all topics that match a pattern. A client has each topic once.
   * @param {string} topic @param {(message: Message) => void} listener @param {SubscribeOptions} [options]
   * @returns {Subscription}
   */
  subscribe(topic, listener, options = {}) {
    if (this.#state === "closed") throw new CarillonError("closed", "the client is closed", topic)
    if (this.#subscriptions.has(topic)) throw new CarillonError("already_subscribed", `${topic} is subscribed to already`, topic)
    const sub = {
      topic, listener, options, pattern: isPattern(topic), last: options.last ?? 0,
      position: options.since ?? null,
      request: 0, // the id of the request on this connection
      live: false, // the server has replied on this connection, so messages may come
      begun: false, // the server has replied before
    }
    this.#subscriptions.set(topic, sub)
    if (this.#state === "open") this.#begin(sub)
    else if (!this.#link && !this.#timer) this.#connect() // events need a topic to begin with
    return {
      topic,
      get position() { return sub.position && { ...sub.position } },
      unsubscribe: () => this.#end(sub),
    }
  }

  /**
   * Publishes a message, once there is a connection. If that breaks, the message is repeated under its key,
   * which is made up unless given, and so delivered once. With the key "" it fails then instead, and nobody
   * knows what became of it.
   * @param {string} topic
   * @param {any} data  JSON, or bytes (a Uint8Array or an ArrayBuffer), or a string for the encoding
   * @param {{encoding?: "text"|"base64", key?: string, timeout?: number}} [options]
   * @returns {Promise<{topic: string, offset: number, epoch: string, subscribers: number}>}
   */
  async publish(topic, data, { encoding, key = randomKey(), timeout } = {}) {
    if (data instanceof ArrayBuffer) data = new Uint8Array(data)
    if (data instanceof Uint8Array) {
      data = toBase64(data)
      encoding = "base64"
    }
    return this.#request("publish", { topic, data, encoding, key: key || undefined }, timeout, key !== "")
  }

  /**
   * Reads what a topic keeps: the oldest messages after `since`, or the newest ones.
   * @param {string} topic @param {{since?: Position, limit?: number, timeout?: number}} [options]
   * @returns {Promise<{topic: string, offset: number, epoch: string, recovered: boolean, messages: Message[]}>}
   */
  async history(topic, { since, limit, timeout } = {}) {
    const reply = await this.#request("history", { topic, since, limit }, timeout)
    return { ...reply, messages: reply.messages.map(unpack) }
  }

  /**
   * Says who is subscribed to a topic.
   * @param {string} topic @param {{timeout?: number}} [options]
   * @returns {Promise<{topic: string, count: number, connections: {id: string}[]}>}
   */
  async presence(topic, { timeout } = {}) {
    return this.#request("presence", { topic }, timeout)
  }

  /** Ends all subscriptions and requests, and the connection. */
  close() {
    this.#stop(1000, "", new CarillonError("closed", "the client was closed"))
  }

  #connect() {
    clearTimeout(this.#timer)
    this.#timer = 0
    if (this.#options.eventSource === "only" && this.#subscriptions.size === 0) return
    this.#triedEvents = this.#wantsEvents()
    this.#link = this.#triedEvents
      ? new EventsLink(this.#options, this.#hooks, this.#subscriptions.values())
      : new SocketLink(this.#options, this.#hooks)
  }

  /** After an attempt with events comes one with a WebSocket: perhaps it was the server that was down. */
  #wantsEvents() {
    const { eventSource, EventSource, attempts } = this.#options
    if (eventSource !== "auto") return eventSource === "only"
    return Boolean(EventSource) && this.#subscriptions.size > 0 && !this.#everOpened && this.#unopened >= attempts && !this.#triedEvents
  }

  #hooks = {
    opened: (link) => this.#opened(link),
    ended: (link, code, reason) => this.#ended(link, code, reason),
    frame: (link, frame) => link === this.#link && this.#frame(frame),
    subscribed: (sub, reply) => this.#subscribed(sub, reply),
    message: (sub, message) => this.#message(sub, message),
    refused: (sub, error) => this.#refused(sub, error),
  }

  #opened(link) {
    if (link === this.#probe) { // a WebSocket at last: it takes over
      this.#probe = null
      this.#link.end(1000, "", true)
      this.#link = link
    }
    if (link.kind === "websocket") {
      this.#everOpened = true
      this.#unopened = 0
      this.#silence()
    } else {
      this.#probeLater()
    }
    this.#state = "open"
    for (const sub of this.#subscriptions.values()) this.#begin(sub)
    for (const [id, request] of this.#requests) {
      if (link.kind === "websocket") this.#send(request)
      else this.#settle(id, eventsOnly())
    }
    this.#emit("open", { transport: link.kind })
  }

  #ended(link, code, reason) {
    if (link === this.#probe) {
      this.#probe = null
      this.#probeLater()
      return
    }
    if (link !== this.#link) return
    this.#link = null
    this.#silence()
    if (link.kind === "websocket" && !link.since) this.#unopened++
    if (link.since && Date.now() - link.since >= stable) this.#failures = 0
    if (final.has(code)) {
      this.#stop(code, reason, new CarillonError("closed", `the server closed the connection for good: ${code} ${reason}`))
      return
    }
    for (const [id, request] of this.#requests) {
      if (!request.sent) continue
      request.sent = false
      if (code === 1009) this.#settle(id, new CarillonError("too_large", "the server refused a message as too large"))
      else if (!request.repeat) {
        this.#settle(id, new CarillonError("disconnected", "the connection broke; nobody knows whether the message was published"))
      }
    }
    const asked = /; retry=(\d{1,7})$/.exec(reason) // by the server
    const delay = asked ? +asked[1]
      : this.#options.random() * Math.min(this.#options.maxDelay, this.#options.minDelay * 2 ** this.#failures)
    this.#failures++
    this.#state = "reconnecting"
    this.#timer = setTimeout(() => this.#connect(), delay)
    if (link.since) this.#emit("close", { code, reason, final: false })
    if (this.#state === "reconnecting") this.#emit("reconnecting", { attempt: this.#failures, delay, code, reason })
  }

  #now() {
    if (this.#timer) this.#connect()
    else if (this.#state === "open") this.#link.check()
  }

  #probeLater() {
    if (this.#options.eventSource === "only") return
    clearTimeout(this.#probeTimer)
    this.#probeTimer = setTimeout(() => { this.#probe = new SocketLink(this.#options, this.#hooks) }, this.#options.upgradeInterval)
  }

  #silence() {
    clearTimeout(this.#probeTimer)
    this.#probe?.end(1000, "", true)
    this.#probe = null
    for (const sub of this.#subscriptions.values()) sub.live = false
  }

  #stop(code, reason, error) {
    if (this.#state === "closed") return
    this.#state = "closed"
    clearTimeout(this.#timer)
    this.#silence()
    this.#link?.end(1000, "", true)
    this.#link = null
    this.#subscriptions.clear()
    globalThis.removeEventListener?.("online", this.#hurry)
    globalThis.document?.removeEventListener("visibilitychange", this.#seen)
    for (const id of this.#requests.keys()) this.#settle(id, error)
    this.#emit("close", { code, reason, final: true })
  }

  #request(what, body, timeout = this.#options.timeout, repeat = true) {
    if (this.#state === "closed") throw new CarillonError("closed", "the client is closed")
    if (this.transport === "events") throw eventsOnly()
    const id = ++this.#lastID
    const text = JSON.stringify({ id, [what]: body }) // may throw
    return new Promise((resolve, reject) => {
      const late = () => this.#settle(id, new CarillonError("timeout", `no answer for ${timeout} ms`))
      const request = { text, repeat, sent: false, resolve, reject, timer: setTimeout(late, timeout) }
      this.#requests.set(id, request)
      if (this.#state === "open") this.#send(request)
    })
  }

  #send(request) {
    request.sent = true
    this.#link.send(request.text)
  }

  #settle(id, result) {
    const request = this.#requests.get(id)
    if (!request) return
    this.#requests.delete(id)
    clearTimeout(request.timer)
    if (result instanceof Error) request.reject(result)
    else request.resolve(result)
  }

  #frame(frame) {
    if (frame.topic !== undefined) {
      const sub = this.#subscriptions.get(frame.topic) ?? [...this.#subscriptions.values()].find((s) => s.pattern && matches(s.topic, frame.topic))
      if (sub) this.#message(sub, frame)
      return
    }
    // Without an id the server has missed something itself.
    const missed = frame.id === undefined && frame.subscribed?.recovered === false && this.#subscriptions.get(frame.subscribed.topic)
    const sub = missed?.live ? missed : frame.id && [...this.#subscriptions.values()].find((s) => s.request === frame.id)
    const error = frame.error && new CarillonError(frame.error.code, frame.error.message, sub?.topic)
    if (frame.subscribed) {
      if (sub) this.#subscribed(sub, frame.subscribed)
    } else if (sub && error) {
      this.#refused(sub, error)
    } else {
      this.#settle(frame.id, error ?? frame.published ?? frame.history ?? frame.present ?? frame.pong)
    }
  }

  #begin(sub) {
    sub.live = false
    if (this.#link.kind === "events") {
      this.#link.subscribe(sub)
      return
    }
    sub.request = ++this.#lastID
    this.#link.send(JSON.stringify({ id: sub.request, subscribe: { topic: sub.topic, ...startOf(sub) } }))
  }

  #end(sub) {
    if (this.#subscriptions.get(sub.topic) !== sub) return
    this.#subscriptions.delete(sub.topic)
    sub.live = false
    if (this.#state !== "open") return
    if (this.#link.kind === "events") this.#link.unsubscribe(sub)
    else this.#link.send(JSON.stringify({ id: ++this.#lastID, unsubscribe: { topic: sub.topic } }))
  }

  #subscribed(sub, reply) {
    if (this.#subscriptions.get(sub.topic) !== sub) return
    const since = sub.position
    const gap = sub.pattern ? sub.begun : reply.recovered === false
    sub.live = sub.begun = true
    if (!sub.pattern) {
      // An older server does not send `after`: a gap that is reported twice is better than messages that are lost in silence.
      const offset = reply.after ?? (since && !gap ? since.offset : 0)
      sub.position = { offset, epoch: reply.epoch }
      sub.seen = offset
    }
    call(sub.options.onSubscribed, reply)
    if (gap && sub.live) {
      const detail = { topic: sub.topic, since, position: sub.position && { ...sub.position } }
      call(sub.options.onGap, detail)
      this.#emit("gap", detail)
    }
  }

  #message(sub, message) {
    if (!sub.live) return // it is what is left of an earlier subscription
    if (!sub.pattern) {
      if (message.offset <= sub.seen) return
      sub.seen = message.offset
      sub.position = { offset: message.offset, epoch: sub.position.epoch }
    }
    call(sub.listener, unpack(message))
  }

  #refused(sub, error) {
    if (this.#subscriptions.get(sub.topic) !== sub) return
    if (passing.has(error.code)) {
      const link = this.#link
      const again = () => this.#link === link && this.#subscriptions.get(sub.topic) === sub && this.#begin(sub)
      setTimeout(again, 1000 + 4000 * this.#options.random())
      return
    }
    this.#subscriptions.delete(sub.topic)
    call(sub.options.onError, error)
    this.#emit("error", error)
  }

  #emit(event, detail) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) call(listener, detail)
  }
}

/** A WebSocket that notices when the other end is gone. */
class SocketLink {
  kind = "websocket"
  since = 0 // when it opened
  #socket = null
  #hooks
  #options
  #deadline = 0
  #pings = 0

  constructor(options, hooks) {
    this.#options = options
    this.#hooks = hooks
    this.#expect()
    try {
      const socket = this.#socket = new options.WebSocket(options.url.href, protocol)
      socket.onopen = () => this.#opened(socket.protocol)
      socket.onmessage = ({ data }) => this.#took(data)
      socket.onclose = ({ code, reason }) => this.end(code, reason)
      // A close follows with the reason, but not in every version of Node if the connection did not open.
      socket.onerror = () => setTimeout(() => this.end(1006, "the connection failed"), 50)
    } catch (error) { // such as an insecure address on a secure page
      const { search } = options.url // may have a token, which some of these errors repeat
      setTimeout(() => this.end(1006, search ? String(error.message).replaceAll(search, "?(set)") : error.message))
    }
  }

  #opened(chosen) {
    if (chosen !== protocol) {
      this.end(1006, `the endpoint does not speak ${protocol}`)
      return
    }
    this.#alive()
    this.since = Date.now()
    this.#pings = setInterval(() => this.check(), this.#options.pingInterval)
    this.#hooks.opened(this)
  }

  #took(data) {
    this.#alive()
    let frame
    try {
      frame = JSON.parse(data)
    } catch {
      this.end(1006, "the server sent what is not JSON")
      return
    }
    this.#hooks.frame(this, frame)
  }

  #alive() {
    clearTimeout(this.#deadline)
    this.#deadline = 0
  }

  #expect() {
    this.#deadline ||= setTimeout(() => this.end(1006, "the server does not answer"), this.#options.pingTimeout)
  }

  check() {
    this.send('{"id":"ping","ping":{}}')
    this.#expect()
  }

  send(text) { this.#socket.send(text) }

  /** Ends it, once. Nobody waits for a close handshake: on a dead link that takes long. */
  end(code, reason, quietly = false) {
    const socket = this.#socket
    if (!this.#hooks) return
    const hooks = this.#hooks
    this.#hooks = null
    this.#alive()
    clearInterval(this.#pings)
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null
      socket.close()
    }
    if (!quietly) hooks.ended(this, code, reason)
  }
}

/** Server-sent events: one stream for each topic, since only then can it be resumed. */
class EventsLink {
  kind = "events"
  since = 0
  #options
  #hooks
  #sources = new Map() // by subscription
  #deadline = 0

  constructor(options, hooks, subscriptions) {
    this.#options = options
    this.#hooks = hooks
    this.#deadline = setTimeout(() => this.end(1006, "the server does not answer"), options.pingTimeout)
    for (const sub of subscriptions) this.subscribe(sub)
  }

  subscribe(sub) {
    if (this.#sources.has(sub)) return
    sub.live = false
    const url = new URL(this.#options.eventsURL)
    url.searchParams.set("topic", sub.topic)
    url.searchParams.set("envelope", "true")
    const { since, last } = startOf(sub)
    if (since) {
      url.searchParams.set("since", since.offset)
      url.searchParams.set("epoch", since.epoch)
    } else if (last) url.searchParams.set("last", last)
    const source = new this.#options.EventSource(url.href, { withCredentials: this.#options.withCredentials })
    const ours = (handle) => (event) => this.#sources.get(sub) === source && handle(event)
    this.#sources.set(sub, source)
    source.onmessage = ours(({ data }) => this.#hooks.message(sub, JSON.parse(data)))
    source.addEventListener("subscribed", ours(({ data }) => {
      this.#opened() // not before: a proxy may let the answer begin and hold back what follows
      this.#hooks?.subscribed(sub, JSON.parse(data)) // a listener to "open" may have closed the client
    }))
    source.addEventListener("close", ours(({ data }) => {
      const { code, reason } = JSON.parse(data)
      this.end(code, reason)
    }))
    source.onerror = ours(() => this.#failed(sub, source))
  }

  unsubscribe(sub) {
    this.#sources.get(sub)?.close()
    this.#sources.delete(sub)
  }

  #opened() {
    if (this.since) return
    clearTimeout(this.#deadline)
    this.since = Date.now()
    this.#hooks.opened(this)
  }

  /**
   * A browser does not tell why a stream has failed. It gives one up for good when the answer was not a
   * stream; if the server is there for others, that answer was meant for this topic.
   */
  #failed(sub, source) {
    const others = [...this.#sources.values()].some((other) => other !== source && other.readyState === 1)
    if (sub.live || source.readyState !== 2 || !others) {
      this.end(1006, "the stream of events broke")
      return
    }
    this.unsubscribe(sub)
    this.#hooks.refused(sub, new CarillonError("not_allowed", `the server refused the topic ${sub.topic}`, sub.topic))
  }

  check() {}

  end(code, reason, quietly = false) {
    if (!this.#hooks) return
    const hooks = this.#hooks
    this.#hooks = null
    clearTimeout(this.#deadline)
    for (const sub of this.#sources.keys()) this.unsubscribe(sub)
    if (!quietly) hooks.ended(this, code, reason)
  }
}

function startOf(sub) {
  if (sub.position) return { since: sub.position }
  return sub.last > 0 ? { last: sub.last } : {}
}

function eventsOnly() {
  return new CarillonError("events_only", "no WebSocket could be opened, and server-sent events, which are used instead, can only receive")
}

function isPattern(topic) {
  return topic.split(".").some((level) => level === "*" || level === ">")
}

function matches(pattern, topic) {
  const levels = topic.split(".")
  const words = pattern.split(".")
  const open = words.at(-1) === ">"
  if (open ? levels.length < words.length : levels.length !== words.length) return false
  return words.every((word, i) => word === "*" || word === levels[i] || (word === ">" && i === words.length - 1))
}

function unpack(message) {
  if (message.encoding !== "base64") return message
  const { encoding, data, ...rest } = message
  return { ...rest, data: Uint8Array.from(atob(data), (c) => c.charCodeAt(0)) }
}

function toBase64(bytes) {
  let text = ""
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000))
  return btoa(text)
}

/** crypto.randomUUID would need a page that came over TLS. */
function randomKey() {
  return Array.from(globalThis.crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("")
}

/** Calls a function of the application. What it throws is the application's, and stops nothing here. */
function call(f, detail) {
  try {
    f?.(detail)
  } catch (error) {
    setTimeout(() => { throw error })
  }
}

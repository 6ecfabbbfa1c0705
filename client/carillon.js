// The carillon client for topics, for browsers and Node: one module, no dependencies.
//
//   import { Carillon } from "/carillon.js"
//   const carillon = new Carillon("/ws")
//   carillon.subscribe("prices.eu", (message) => console.log(message.offset, message.data))
//   await carillon.publish("prices.eu", { AAPL: 187.2 })
//
// It reconnects whenever the connection is lost, and resumes after the last message of each topic: messages
// arrive once and in order, and gaps are reported. docs/protocol.md describes the protocol.

/**
 * @typedef {{offset: number, epoch: string}} Position  a position in a topic: after the message with this offset
 *
 * @typedef {object} Message
 * @property {string} topic
 * @property {number} offset  of the message in its topic: 1, 2, 3 and so on
 * @property {number} time    when the server accepted it, in milliseconds since 1970
 * @property {any} data       the published data; a Uint8Array if it was binary
 *
 * @typedef {object} Options  times are in milliseconds
 * @property {number} [minDelay]      the maximum delay before the first attempt to reconnect; 250
 * @property {number} [maxDelay]      the maximum delay before any attempt; 30000
 * @property {number} [timeout]       how long a request may take, including reconnects; 15000
 * @property {number} [pingInterval]  how often the client pings the server; 25000
 * @property {number} [pingTimeout]   how long the server may take to answer, and a connection to open: an event
 *   stream is open when its first event has arrived, which a proxy may hold back for ever; 10000
 * @property {"auto"|"never"|"only"} [eventSource]  whether to use server-sent events, which can only
 *   receive. "auto", the default, uses them if no WebSocket has ever opened in `attempts` attempts.
 * @property {boolean} [withCredentials]  whether to send cookies with server-sent events from another origin, as
 *   a WebSocket always does: the server must list this page's origin by name; false
 * @property {number} [attempts]      see eventSource; 3
 * @property {number} [upgradeInterval]  how often to try a WebSocket while using server-sent events; 60000
 * @property {typeof globalThis.WebSocket} [WebSocket]      for platforms without one, such as Node before 22
 * @property {typeof globalThis.EventSource} [EventSource]
 * @property {() => number} [random]  0 to 1, for the delays; Math.random
 *
 * @typedef {object} SubscribeOptions
 * @property {Position} [since]  resume from here; last is then ignored
 * @property {number} [last]     start with this many of the newest kept messages
 * @property {(gap: {topic: string, since: ?Position, position: ?Position}) => void} [onGap]  messages are
 *   missing before the next one: read the state from elsewhere. After a reconnect, any pattern may have a gap.
 * @property {(at: {topic: string, offset?: number, epoch?: string, after?: number, recovered?: boolean}) => void} [onSubscribed]
 * @property {(error: CarillonError) => void} [onError]  the server refused the subscription, which has ended
 *
 * @typedef {object} Subscription
 * @property {string} topic
 * @property {?Position} position  of the last message delivered, or before the first: pass it as `since` to resume
 * @property {() => void} unsubscribe  stops the delivery at once
 */

const protocol = "carillon.v1.json"

/** A connection that has lasted this long resets the delays. */
const stable = 5000

/** The close codes after which a reconnect would only repeat the failure. */
const final = new Set([1003, 1008])

/** The temporary errors of a subscription. */
const passing = new Set(["overloaded", "rate_limited", "too_many_topics", "unavailable"])

/**
 * The error of a failed request. `code` is one of the protocol's, or "timeout", "disconnected" (a publish
 * without a key was in flight), "events_only" or "closed".
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
  #link = null // the connection, or the attempt to open one
  #probe = null // an attempt to open a WebSocket while using server-sent events
  #timer = 0 // for the next attempt
  #probeTimer = 0
  #failures = 0 // since the last stable connection: the delays grow with it
  #unopened = 0 // consecutive WebSockets that did not open
  #everOpened = false
  #triedEvents = false // in the previous attempt
  #lastID = 0
  #requests = new Map() // by id, in order of creation
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
    if (address.searchParams.has("topic")) throw new TypeError("the URL must not have a topic: use subscribe")
    this.#options = {
      minDelay: 250, maxDelay: 30000, timeout: 15000, pingInterval: 25000, pingTimeout: 10000,
      eventSource: "auto", withCredentials: false, attempts: 3, upgradeInterval: 60000, random: Math.random,
      WebSocket: globalThis.WebSocket, EventSource: globalThis.EventSource, ...options,
      url: Object.assign(new URL(address), { protocol: address.protocol.replace(/^http/, "ws") }),
      eventsURL: Object.assign(new URL(address), { protocol: address.protocol.replace(/^ws/, "http") }),
    }
    const { eventSource, WebSocket, EventSource } = this.#options
    if (eventSource !== "only" && !WebSocket) throw new TypeError("this platform has no WebSocket: pass one as an option")
    if (eventSource === "only" && !EventSource) throw new TypeError("this platform has no EventSource: pass one as an option")
    globalThis.addEventListener?.("online", this.#hurry)
    globalThis.document?.addEventListener("visibilitychange", this.#seen)
    this.#connect()
  }

  /** @returns {"connecting"|"open"|"reconnecting"|"closed"} closed is final */
  get state() { return this.#state }

  /** @returns {?("websocket"|"events")} the transport of the open connection */
  get transport() { return this.#state === "open" ? this.#link.kind : null }

  /**
   * Calls a function on "open" ({transport}), "close" ({code, reason, final}: a connection has ended, or
   * the client if final), "reconnecting" ({attempt, delay, code, reason}), "gap" (like onGap) or "error"
   * (a CarillonError that belongs to no request).
   * @param {"open"|"close"|"reconnecting"|"gap"|"error"} event @param {(detail: any) => void} listener
   * @returns {() => void} removes the function
   */
  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set())
    this.#listeners.get(event).add(listener)
    return () => this.#listeners.get(event).delete(listener)
  }

  /**
   * Delivers the messages of a topic, or of all topics that match a pattern. A topic can be subscribed to once.
   * @param {string} topic @param {(message: Message) => void} listener @param {SubscribeOptions} [options]
   * @returns {Subscription}
   */
  subscribe(topic, listener, options = {}) {
    if (this.#state === "closed") throw new CarillonError("closed", "the client is closed", topic)
    if (this.#subscriptions.has(topic)) throw new CarillonError("already_subscribed", `already subscribed to ${topic}`, topic)
    const sub = {
      topic, listener, options, pattern: isPattern(topic), last: options.last ?? 0,
      position: options.since ?? null,
      request: 0, // the id of the request on this connection
      live: false, // the server has replied on this connection, so messages may come
      begun: false, // the server has replied at least once
    }
    this.#subscriptions.set(topic, sub)
    if (this.#state === "open") this.#begin(sub)
    else if (!this.#link && !this.#timer) this.#connect() // an event stream needs a topic
    return {
      topic,
      get position() { return sub.position && { ...sub.position } },
      unsubscribe: () => this.#end(sub),
    }
  }

  /**
   * Publishes a message as soon as there is a connection. If that breaks, the client repeats the message with its
   * key, which is random unless given, so it is delivered once. With the key "" the publish fails instead, and its
   * outcome is unknown.
   * @param {string} topic
   * @param {any} data  JSON, or bytes (a Uint8Array or an ArrayBuffer), or a string if there is an encoding
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
   * Reads the history of a topic: the oldest messages after `since`, or the newest ones.
   * @param {string} topic @param {{since?: Position, limit?: number, timeout?: number}} [options]
   * @returns {Promise<{topic: string, offset: number, epoch: string, recovered: boolean, messages: Message[]}>}
   */
  async history(topic, { since, limit, timeout } = {}) {
    const reply = await this.#request("history", { topic, since, limit }, timeout)
    return { ...reply, messages: reply.messages.map(unpack) }
  }

  /**
   * Lists the subscribers of a topic.
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

  /** An attempt with a WebSocket follows one with events: perhaps the server was down. */
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
    if (link === this.#probe) { // a WebSocket has opened at last: it takes over
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
      this.#stop(code, reason, new CarillonError("closed", `the server closed the connection permanently: ${code} ${reason}`))
      return
    }
    for (const [id, request] of this.#requests) {
      if (!request.sent) continue
      request.sent = false
      if (code === 1009) this.#settle(id, new CarillonError("too_large", "the server refused the message as too large"))
      else if (!request.repeat) {
        this.#settle(id, new CarillonError("disconnected", "the connection was lost; it is unknown whether the message was published"))
      }
    }
    const asked = /; retry=(\d{1,7})$/.exec(reason) // the server's request
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
      const late = () => this.#settle(id, new CarillonError("timeout", `no reply within ${timeout} ms`))
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
    // Without an id: the server itself has missed messages.
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
      // An older server does not send `after`: reporting a gap twice is better than losing messages silently.
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
    if (!sub.live) return // left over from an earlier subscription
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

/** A WebSocket that detects when its peer is gone. */
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
      // A close event with the reason follows, but not in every version of Node if the connection did not open.
      socket.onerror = () => setTimeout(() => this.end(1006, "the connection failed"), 50)
    } catch (error) { // for example an insecure URL on a secure page
      const { search } = options.url // may contain a token, which some of these errors repeat
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
      this.end(1006, "the server sent invalid JSON")
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

  /** Ends the connection, once. It does not wait for a close handshake, which takes long on a dead connection. */
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

/** Server-sent events: one stream per topic, since only such a stream can be resumed. */
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
      this.#opened() // not earlier: a proxy may pass on the start of the response and hold back the rest
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
   * A browser does not report why a stream has failed. It gives a stream up for good if the response was not an
   * event stream. If other streams are open, that response was about this topic.
   */
  #failed(sub, source) {
    const others = [...this.#sources.values()].some((other) => other !== source && other.readyState === 1)
    if (sub.live || source.readyState !== 2 || !others) {
      this.end(1006, "the event stream broke")
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
  return new CarillonError("events_only", "no WebSocket could be opened, and the server-sent events used instead can only receive")
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

/** crypto.randomUUID would require a secure context. */
function randomKey() {
  return Array.from(globalThis.crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("")
}

/** Calls a function of the application. Its exceptions are rethrown later, so that they stop nothing here. */
function call(f, detail) {
  try {
    f?.(detail)
  } catch (error) {
    setTimeout(() => { throw error })
  }
}

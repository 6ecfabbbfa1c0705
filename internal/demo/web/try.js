// The snippets of the demo page: what is shown, and the same again to run, since the page's policy allows
// no scripts but its own files.

import { Carillon } from "../carillon.js"

const address = (path) => {
  const url = new URL(path, document.baseURI)
  url.protocol = url.protocol.replace("http", "ws")
  return url.href
}

const [echo, broadcast, topics] = ["echo", "broadcast", "ws"].map(address)

const snippets = [{
  title: "/echo",
  about: "Every message is echoed to its sender.",
  code: `const socket = new WebSocket(
  "${echo}")
socket.onopen = () =>
  socket.send("hello")
socket.onmessage = (event) =>
  console.log(event.data)`,
  run: (print) => talk(echo, "hello", print),
}, {
  title: "/broadcast",
  about: "Every message goes to everyone on this path, including the sender.",
  code: `const socket = new WebSocket(
  "${broadcast}")
socket.onopen = () =>
  socket.send("hello, all")
socket.onmessage = (event) =>
  console.log(event.data)`,
  run: (print) => talk(broadcast, "hello, all", print),
}, {
  title: "/ws",
  about: "Topics: subscribe, publish, and lose nothing when the connection drops.",
  code: `import { Carillon } from
  "${new URL("carillon.js", document.baseURI)}"

const carillon = new Carillon(
  "${topics}")
carillon.subscribe("news", (message) =>
  console.log(message.data))
await carillon.publish("news", { a: 1 })`,
  run: listen,
}]

/** Runs for some seconds, so that what others send is seen too. */
const runtime = 5000

function talk(url, words, print) {
  const socket = new WebSocket(url)
  socket.onopen = () => socket.send(words)
  socket.onmessage = ({ data }) => print("← " + data)
  return new Promise((done) => {
    const timer = setTimeout(() => socket.close(), runtime)
    socket.onclose = ({ code, reason }) => {
      clearTimeout(timer)
      done(code === 1006 ? "No answer: this server may not serve this path." : reason)
    }
  })
}

async function listen(print) {
  const carillon = new Carillon(topics, { timeout: runtime, eventSource: "never" })
  try {
    await new Promise((onSubscribed, onError) => {
      carillon.subscribe("news", ({ offset, data }) => print(`← ${offset} ${JSON.stringify(data)}`), { onSubscribed, onError })
      setTimeout(onError, runtime, new Error("No answer: this server may not serve this path."))
    })
    await carillon.publish("news", { a: 1 })
    await new Promise((done) => setTimeout(done, runtime))
  } catch (error) {
    return error.code === "not_allowed" ? "This server lets no browser publish here." : error.message
  } finally {
    carillon.close()
  }
}

for (const { title, about, code, run } of snippets) {
  const element = (tag, className, words) => Object.assign(document.createElement(tag), { className, textContent: words })
  const card = element("article", "card snippet", "")
  const pre = element("pre", "", "")
  pre.append(element("code", "", code))
  const row = element("div", "row", "")
  const button = element("button", "", "Run")
  const output = element("output", "", "")
  button.ariaLabel = "Run " + title
  button.addEventListener("click", async () => {
    button.disabled = true
    output.textContent = "…"
    const end = await run((line) => { output.textContent = line })
    if (end) output.textContent = end
    button.disabled = false
  })
  row.append(button, output)
  card.append(element("h3", "", title), element("p", "", about), pre, row)
  document.getElementById("snippets").append(card)
}

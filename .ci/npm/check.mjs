// Checks a WebSocket server with the npm package ws:
//
//     node check.mjs ws://localhost:8080
//
// /echo and /broadcast must compress for clients that offer it. Prints a line for each check that
// went well; at the first that did not, says why and exits with status 1.

import { once } from 'node:events';
import process from 'node:process';
import WebSocket from 'ws';

const base = process.argv[2];
if (!base) {
  console.error('usage: node check.mjs ws://host:port');
  process.exit(2);
}

const patience = 20_000; // ms for anything that must happen; it says nothing about speed
const sizes = [0, 1, 125, 126, 4 << 10, 64 << 10, 1 << 20];

function check(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}

// Client is a WebSocket whose events can be waited for, also when they came before a caller waited.
class Client {
  static async open(path, perMessageDeflate) {
    const client = new Client();
    client.ws = new WebSocket(base + path, { perMessageDeflate });
    client.events = [];
    client.waiting = [];
    const keep = (event) => {
      const next = client.waiting.shift();
      if (next) next(event);
      else client.events.push(event);
    };
    client.ws.on('message', (data, binary) => keep({ type: 'message', data, binary }));
    client.ws.on('pong', (data) => keep({ type: 'pong', data }));
    client.ws.on('close', (code, reason) => keep({ type: 'close', code, reason: reason.toString() }));
    await once(client.ws, 'open');
    client.ws.on('error', (error) => keep({ type: 'error', error }));
    const extensions = client.ws.extensions;
    check(extensions === (perMessageDeflate ? 'permessage-deflate' : ''), `the extensions of ${path} are "${extensions}"`);
    return client;
  }

  async next(type) {
    const event = this.events.shift() ?? (await new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`no ${type} came`)), patience);
      this.waiting.push((e) => {
        clearTimeout(late);
        resolve(e);
      });
    }));
    check(event.type === type, `instead of ${type} came ${event.type} ${event.error ?? event.code ?? ''}`);
    return event;
  }

  async hears(payload) {
    const { data, binary } = await this.next('message');
    check(binary === Buffer.isBuffer(payload), `the message is ${binary ? 'binary' : 'text'}`);
    check(data.equals(Buffer.from(payload)), `${payload.length} bytes came as ${data.length} others`);
  }

  async closes(code, reason) {
    const event = await this.next('close');
    check(event.code === code && event.reason === reason, `closed with ${event.code} "${event.reason}", want ${code} "${reason}"`);
  }
}

function payloads(size) {
  const unit = Buffer.from([0x00, 0xff, 0xfe, 0x80, 0x01, 0x7f, 0x81]);
  return [size ? Buffer.alloc(size, unit) : Buffer.alloc(0), 'said again and '.repeat(size / 15 + 1).slice(0, size)];
}

async function echo(deflate) {
  const client = await Client.open('/echo', deflate);
  for (const size of sizes) {
    for (const payload of [...payloads(size)]) {
      client.ws.send(payload);
      await client.hears(payload);
    }
  }
  client.ws.send('Grüße, 世界 🔔');
  await client.hears('Grüße, 世界 🔔');
  for (let i = 0; i < 100; i++) client.ws.send(`message ${i}`);
  for (let i = 0; i < 100; i++) await client.hears(`message ${i}`);
  client.ws.close(1000);
  await client.closes(1000, '');
}

async function broadcast() {
  const room = [];
  for (let i = 0; i < 6; i++) {
    const client = await Client.open('/broadcast', i % 2 === 0);
    room.push(client);
    client.ws.send(`${i} is here`); // once it has heard itself, it hears everybody
    for (const other of room) await other.hears(`${i} is here`);
  }
  for (const [i, size] of sizes.entries()) {
    for (const payload of payloads(size)) {
      room[i % room.length].ws.send(payload);
      for (const client of room) await client.hears(payload);
    }
  }
  for (const client of room) {
    client.ws.close(1001, 'leaving');
    await client.closes(1001, '');
  }
}

async function fragments(deflate) {
  const client = await Client.open('/echo', deflate);
  for (const part of ['one ', 'message ', 'in four ']) client.ws.send(part, { fin: false });
  client.ws.ping('in between');
  client.ws.send('fragments', { fin: true });
  check((await client.next('pong')).data.toString() === 'in between', 'the pong has another payload');
  await client.hears('one message in four fragments');
  client.ws.close();
  await client.closes(1005, '');
}

// Repeats itself from everywhere within 100 KB, so that a window that is not kept to is found out.
function rambling(size) {
  const text = Buffer.alloc(size);
  for (let at = 0, x = 1; at < size; x = (x * 48271) % 2147483647) {
    const back = 60 + (x % 100_000);
    if (x % 3 === 0 && back <= at) at += text.copy(text, at, at - back, at - back + 60);
    else at += text.write(x.toString(36) + ' ', at);
  }
  return text.toString();
}

async function windows() {
  const room = [];
  for (let bits = 8; bits <= 15; bits++) {
    // ws gives zlib a window of just this size to inflate with.
    room.push(await Client.open('/broadcast', { serverMaxWindowBits: bits, clientMaxWindowBits: Math.max(bits, 9) }));
    room.at(-1).ws.send(`${bits} bits`);
    for (const client of room) await client.hears(`${bits} bits`);
  }
  for (const [i, sender] of room.entries()) {
    const text = rambling(200_000 + i);
    sender.ws.send(text);
    for (const client of room) await client.hears(text);
  }
  for (const client of room) {
    client.ws.close(1000);
    await client.closes(1000, '');
  }
}

async function ping() {
  const client = await Client.open('/echo', false);
  for (const data of ['', 'a', 'p'.repeat(125)]) {
    client.ws.ping(data);
    check((await client.next('pong')).data.toString() === data, 'the pong has another payload');
  }
  client.ws.terminate();
  await client.closes(1006, '');
}

async function closeCodes() {
  for (const code of [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]) {
    const client = await Client.open('/echo', false);
    client.ws.close(code, 'as the client says');
    await client.closes(code, '');
  }
  const client = await Client.open('/echo', false);
  client.ws.send(Buffer.alloc((1 << 20) + 1));
  const { code, reason } = await client.next('close');
  check(code === 1009 && reason !== '', `a message that is too big was closed with ${code} "${reason}"`);
}

const checks = [
  ['echo', () => echo(false)],
  ['echo with compression', () => echo(true)],
  ['broadcast among clients with and without compression', broadcast],
  ['fragments with a ping in between', () => fragments(false)],
  ['compressed fragments with a ping in between', () => fragments(true)],
  ['a window of the client\'s choice', windows],
  ['ping and pong', ping],
  ['close codes', closeCodes],
];

for (const [name, run] of checks) {
  try {
    await run();
    console.log(`ok: ${name}`);
  } catch (error) {
    console.error(`FAILED: ${name}: ${error.message}`);
    process.exit(1);
  }
}
process.exit(0);

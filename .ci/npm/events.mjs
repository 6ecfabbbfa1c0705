// Prints what the npm package eventsource, as it comes, reads from a stream of events:
//
//     node events.mjs 'http://localhost:8080/ws?topic=news'
//
// a line for each event: "open", "error STATUS", or "message ID DATA".

import process from 'node:process';
import { EventSource } from 'eventsource';

const source = new EventSource(process.argv[2]);
source.onopen = () => console.log('open');
source.onerror = ({ code }) => console.log(`error ${code ?? 'none'}`);
source.onmessage = ({ lastEventId, data }) => console.log(`message ${lastEventId} ${data}`);

// A proxy of the kind that compresses what it passes on: express, with compression and http-proxy-middleware, as they come.
//
//     node proxy.mjs http://localhost:8080
//
// Prints its own address, such as 127.0.0.1:40001, when it listens.

import process from 'node:process';
import compression from 'compression';
import express from 'express';
import { createProxyMiddleware } from 'http-proxy-middleware';

const proxy = createProxyMiddleware({ target: process.argv[2], ws: true });
const app = express();
app.use(compression({ threshold: 0 }));
app.use(proxy);
const server = app.listen(0, '127.0.0.1', () => console.log(`127.0.0.1:${server.address().port}`));
server.on('upgrade', proxy.upgrade);

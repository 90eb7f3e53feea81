/** The relay between real sockets: what goes through is what was sent, and neither end outlives the other. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startRateRelay } from '../src/copy/rate-relay.ts';

const accepted: Socket[] = [];
const server = createServer((socket) => {
  accepted.push(socket);
});
let port = 0;

beforeEach(async () => {
  server.listen({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  port = (server.address() as AddressInfo).port;
});

afterEach(async () => {
  for (const socket of accepted.splice(0)) socket.destroy();
  server.close();
  await once(server, 'close');
});

test('hands on every byte in both directions, and the end of the stream', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    bytesPerSecond: 100 * 1024 ** 2,
  });
  const payload = Buffer.alloc(3 * 1024 ** 2, 'abc');
  const client = connect({ host: relay.address, port: relay.port });
  const connection = once(server, 'connection');
  client.write('request');
  const [upstream] = (await connection) as [Socket];
  const [request] = (await once(upstream, 'data')) as [Buffer];

  upstream.end(payload);
  const received: Buffer[] = [];
  for await (const chunk of client) received.push(chunk as Buffer);

  expect(request.toString()).toBe('request');
  expect(Buffer.concat(received).equals(payload)).toBe(true);
});

test('lets go of both ends when it is closed', async () => {
  const relay = await startRateRelay({ to: { address: '127.0.0.1', port }, bytesPerSecond: 1000 });
  const connection = once(server, 'connection');
  const client = connect({ host: relay.address, port: relay.port });
  const [upstream] = (await connection) as [Socket];
  const ended = Promise.all([once(client, 'close'), once(upstream, 'close')]);
  upstream.resume();
  client.on('error', () => {});

  await relay[Symbol.asyncDispose]();

  await ended;
  expect(client.destroyed).toBe(true);
});

test('ends the other side when one side is gone', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    bytesPerSecond: 1000,
  });
  const connection = once(server, 'connection');
  const client = connect({ host: relay.address, port: relay.port });
  const [upstream] = (await connection) as [Socket];
  upstream.on('error', () => {});
  const gone = once(upstream, 'close');
  upstream.resume();

  client.destroy();

  await gone;
  expect(upstream.destroyed).toBe(true);
});

/** The relay between real sockets: what goes through is what was sent, and neither end outlives the other. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type RateRelay, startRateRelay } from '../src/copy/rate-relay.ts';

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

/** A client of a source that never runs dry, and how much it has got. */
async function drink(relay: RateRelay) {
  const client = connect({ host: relay.address, port: relay.port });
  const [upstream] = (await once(server, 'connection')) as [Socket];
  const drop = Buffer.alloc(64 * 1024);
  const pour = () => {
    while (!upstream.destroyed && upstream.write(drop));
  };
  upstream.on('drain', pour).on('error', () => {});
  pour();
  let bytes = 0;
  client.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
  });
  return {
    bytes: () => bytes,
    until: async (wanted: number) => {
      while (bytes < wanted) await once(client, 'data');
    },
    [Symbol.dispose]: () => void client.destroy(),
  };
}

const MEGABYTE = 1024 ** 2;

test('another limit holds for what is open, for all of it together, and nothing is owed from before', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    bytesPerSecond: null,
  });
  using one = await drink(relay);
  using other = await drink(relay);
  await Promise.all([one.until(20 * MEGABYTE), other.until(20 * MEGABYTE)]);

  relay.limit(20 * MEGABYTE);
  const before = one.bytes() + other.bytes();
  const sinceMs = performance.now();
  await Promise.all([
    one.until(one.bytes() + 20 * MEGABYTE),
    other.until(other.bytes() + 20 * MEGABYTE),
  ]);

  const seconds = (performance.now() - sinceMs) / 1000;
  const more = one.bytes() + other.bytes() - before;
  // What had left the relay before is still on its way through the buffers of two sockets.
  expect(more).toBeLessThan(20 * MEGABYTE * seconds + 20 * MEGABYTE);
});

test('a limit that is lifted or raised ends the wait that the one before had begun', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    // A piece of it takes a tenth of a second, the megabytes below would take minutes.
    bytesPerSecond: 10_000,
  });
  using one = await drink(relay);
  using other = await drink(relay);
  await Promise.all([one.until(1), other.until(1)]);

  relay.limit(100 * MEGABYTE);
  await Promise.all([one.until(5 * MEGABYTE), other.until(5 * MEGABYTE)]);
  relay.limit(10_000);
  relay.limit(null);
  await Promise.all([one.until(20 * MEGABYTE), other.until(20 * MEGABYTE)]);

  expect(one.bytes()).toBeGreaterThan(0);
});

test('many connections under one limit get their turns, so that none of them seems to stand still', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    bytesPerSecond: 10 * MEGABYTE,
  });
  using opened = new DisposableStack();
  const all: Awaited<ReturnType<typeof drink>>[] = [];
  while (all.length < 16) all.push(opened.use(await drink(relay)));
  const before = all.map(({ bytes }) => bytes());
  const served = () => all.map(({ bytes }, index) => bytes() - (before[index] ?? 0));
  const total = () => served().reduce((sum, bytes) => sum + bytes, 0);

  while (total() < 10 * MEGABYTE) await nextTurn();

  const share = total() / all.length;
  for (const bytes of served()) expect(bytes).toBeGreaterThan(share / 2);
});

test('who is gone takes no turn from those who are left', async () => {
  await using relay = await startRateRelay({
    to: { address: '127.0.0.1', port },
    // A piece of it takes a tenth of a second.
    bytesPerSecond: 10_000,
  });
  using left = await drink(relay);
  await left.until(1);
  const gone: Disposable[] = [];
  while (gone.length < 60) gone.push(await drink(relay));
  // Its next turn comes after theirs.
  await left.until(left.bytes() + 1);

  for (const one of gone) one[Symbol.dispose]();
  const served = left.until(left.bytes() + 1).then(() => 'served');

  expect(await Promise.race([served, delay(3_000, 'waits for six seconds')])).toBe('served');
});

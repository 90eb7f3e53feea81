/** Real locks and listeners on this machine. */
import { mkdir, readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { freePort, scratchDirectory } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { findLockDirectory } from '../src/target/locks.ts';
import { writeMarker } from '../src/target/marker.ts';
import {
  forgetPorts,
  hasReservedPort,
  lookForPort,
  reserveAgain,
  reservePort,
} from '../src/target/ports.ts';

const { signal } = new AbortController();
const owned = new AsyncDisposableStack();
let scratch = '';
let clones = 0;

beforeAll(async () => {
  scratch = owned.use(await scratchDirectory()).path;
});

afterAll(async () => {
  // What is left of the clones names directories that are gone: the next one to look takes their ports.
  await owned.disposeAsync();
});

/** Two ports that nobody uses: no other test takes them from the system within the moments that this one takes. */
async function twoPorts() {
  for (;;) {
    const first = await freePort();
    const probe = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      probe.once('error', () => {
        resolve(false);
      });
      probe.listen({ port: first + 1, host: '127.0.0.1' }, () => {
        probe.close(() => {
          resolve(true);
        });
      });
    });
    if (isFree && first < 65_535) return { first, last: first + 1 };
  }
}

async function newClone() {
  clones += 1;
  const id = clones.toString(16).padStart(32, '0');
  const dataDirectory = join(scratch, String(clones));
  await mkdir(dataDirectory);
  return {
    id,
    dataDirectory,
    reservation: reservePort(id),
    fill: async () => {
      await writeMarker(dataDirectory, 'data', { cloneId: id, dataDirectory, finished: true });
    },
  };
}

test('clones that are being made get different ports, until there is none', async () => {
  const range = await twoPorts();
  const [one, two, three] = [await newClone(), await newClone(), await newClone()];
  await using _ = one.reservation;
  await using _two = two.reservation;

  const ports = await Promise.all([
    one.reservation.pick(range, { ...one, signal }),
    two.reservation.pick(range, { ...two, signal }),
  ]);

  expect(ports.toSorted()).toEqual([range.first, range.last]);
  expect(await three.reservation.pick(range, { ...three, signal })).toBeNull();
  expect(await one.reservation.pick(range, { ...one, signal })).toBe(ports[0]);
});

test('a port that was asked for is nobody else’s, although somebody listens there just now', async () => {
  const { first } = await twoPorts();
  const range = { first, last: first };
  const [asking, other] = [await newClone(), await newClone()];
  const listener = createServer();
  await new Promise<void>((resolve) =>
    listener.listen({ port: first, host: '127.0.0.1' }, resolve),
  );

  const port = await asking.reservation.pick(range, { ...asking, isAsked: true, signal });
  await asking.fill();
  await asking.reservation[Symbol.asyncDispose]();
  await new Promise((resolve) => listener.close(resolve));

  expect(port).toBe(first);
  expect(await other.reservation.pick(range, { ...other, signal })).toBeNull();
});

test('a clone that is there keeps its port until its directory goes, and its directory gets the same again', async () => {
  const range = await twoPorts();
  const [stopped, other] = [await newClone(), await newClone()];
  const port = await stopped.reservation.pick(range, { ...stopped, signal });
  await stopped.fill();
  await stopped.reservation[Symbol.asyncDispose]();

  const look = async (of: { readonly dataDirectory: string }) =>
    await lookForPort('f'.repeat(32)).pick(range, { dataDirectory: of.dataDirectory, signal });

  expect(port).toBe(range.first);
  expect(await look(other)).toBe(range.last);
  expect(await look(stopped)).toBe(range.first);
  // Neither a look nor a clone that failed before it took the place of this one has cost it its port.
  const failing = reservePort('e'.repeat(32));
  expect(await failing.pick(range, { ...stopped, signal })).toBe(range.first);
  await failing[Symbol.asyncDispose]();
  expect(await look(other)).toBe(range.last);
  await rm(stopped.dataDirectory, { recursive: true });
  expect(await look(other)).toBe(range.first);
});

test('the file of a port goes with the clone that had it, and no other does', async () => {
  const range = await twoPorts();
  const [removed, kept] = [await newClone(), await newClone()];
  for (const clone of [removed, kept]) {
    await clone.reservation.pick(range, { ...clone, signal });
    await clone.fill();
    await clone.reservation[Symbol.asyncDispose]();
  }
  const files = async () => {
    const names = await readdir(await findLockDirectory());
    return [range.first, range.last].filter((port) =>
      names.includes(`pgcloned-port-${String(port)}`),
    );
  };

  await forgetPorts(removed.dataDirectory);
  expect(await files()).toEqual([range.first, range.last]);
  await rm(removed.dataDirectory, { recursive: true });
  await forgetPorts(removed.dataDirectory);

  expect(await files()).toEqual([range.last]);
});

test('a port on which somebody listens is passed over', async () => {
  const range = await twoPorts();
  const clone = await newClone();
  await using _ = clone.reservation;
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen({ port: range.first, host: '127.0.0.1' }, resolve);
  });

  const port = await clone.reservation.pick(range, { ...clone, signal });
  server.close();

  expect(port).toBe(range.last);
});

test('a port that a restart of the host has made everybody forget can be reserved again, unless it has gone to another', async () => {
  const range = await twoPorts();
  const [stopped, other] = [await newClone(), await newClone()];
  await Promise.all([stopped.fill(), other.fill()]);
  const look = async () =>
    await lookForPort('f'.repeat(32)).pick(range, { dataDirectory: join(scratch, 'new'), signal });
  expect(await hasReservedPort(stopped.dataDirectory)).toBe(false);

  await reserveAgain(stopped.id, { ...stopped, port: range.first, signal });
  await reserveAgain(other.id, { ...other, port: range.first, signal });

  expect(await hasReservedPort(stopped.dataDirectory)).toBe(true);
  expect(await hasReservedPort(other.dataDirectory)).toBe(false);
  expect(await look()).toBe(range.last);
});

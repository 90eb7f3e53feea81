/**
 * Real rsyncs from a real daemon or through a real sshd, whose number and rate are changed while they copy.
 *
 * Between the source and the copy lies a slow line of our own, so that there is time for a change on any machine; no test
 * measures time.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { listFiles, type RsyncDaemon, type SourceEntry, startDaemon } from '@pgcloned/rsync';
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import {
  makeDirectory,
  type ScratchDirectory,
  scratchDirectory,
  startSshd,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { queueBatches } from '../src/copy/batches.ts';
import { copyAll } from '../src/copy/pool.ts';
import { startRateRelay } from '../src/copy/rate-relay.ts';
import { openRoad } from '../src/copy/road.ts';
import { fromDaemon, overSsh, type Transport } from '../src/copy/transport.ts';
import { controlTransfer, workersOf } from '../src/transfer-control.ts';

const FILES = 24;
const FILE_BYTES = 512 * 1024;
const LINE_BYTES_PER_SECOND = 4 * 1024 ** 2;

const owned = new AsyncDisposableStack();
const { signal } = new AbortController();
let ssh: SshConnection;
let daemon: RsyncDaemon;
let source: string;
let entries: readonly SourceEntry[];
let scratch: ScratchDirectory;

beforeAll(async () => {
  const sshd = owned.use(await startSshd());
  ssh = owned.use(await connectSsh(sshd.target, { signal }));
  const directory = owned.use(await scratchDirectory()).path;
  source = join(directory, 'pgdata');
  await makeDirectory(source);
  for (let file = 0; file < FILES; file += 1)
    await writePartsFile(join(source, String(file)), randomBytes(FILE_BYTES / 2).toString('hex'));
  daemon = owned.use(
    await startDaemon(ssh, {
      name: `pgcloned_${randomBytes(16).toString('hex')}_1`,
      modules: [{ name: 'pgdata', path: source }],
      connectAddress: '127.0.0.1',
      bindAddress: null,
      ports: { first: 45_000, last: 45_999 },
      connectionsMax: 20,
      leaseMs: 20_000,
      directory,
      signal,
    }),
  );
  const [listing] = await listFiles(ssh, { roots: [source], stallMs: 20_000, signal });
  entries = (listing ?? []).filter(({ type }) => type === 'file');
});

afterAll(async () => {
  await owned.disposeAsync();
});

beforeEach(async () => {
  scratch = await scratchDirectory();
  return async () => {
    await scratch[Symbol.asyncDispose]();
  };
});

async function byDaemon(): Promise<Transport> {
  return await Promise.resolve(fromDaemon(daemon));
}

async function bySsh(): Promise<Transport> {
  return await overSsh(ssh, { parent: scratch.path, silenceMs: 20_000 });
}

/** A copy that has begun, with what can be seen of it. */
async function startCopy(
  limits: { readonly workers: number; readonly maxRate: number | null },
  open: () => Promise<Transport> = byDaemon,
) {
  const transport = await open();
  const line = await startRateRelay({ to: transport, bytesPerSecond: LINE_BYTES_PER_SECOND });
  const control = controlTransfer(limits);
  const road = openRoad(line, control);
  const seen = { running: 0, straight: 0, capped: 0, wireBytes: 0, bytes: 0, files: 0 };
  const complaints: string[] = [];
  let changed = Promise.withResolvers<void>();
  const see = (change: Partial<typeof seen>) => {
    for (const [name, more] of Object.entries(change)) seen[name as keyof typeof seen] += more;
    changed.resolve();
    changed = Promise.withResolvers();
  };
  const workers = () => workersOf(control.limits());
  const copying = copyAll(queueBatches([entries], { workers }), {
    workers,
    onWorkersChange: control.onChange,
    admit: async () => await Promise.resolve([road.closed()]),
    transfer: async (batch, { worker, repeat, onBytes, signal: batchSignal }) => {
      const at = await road.endpoint();
      see({ running: 1, [at === line ? 'straight' : 'capped']: 1 });
      try {
        return await transport.transfer({
          ...{ worker, through: at, from: { module: 'pgdata', source } },
          ...{ names: batch.names, destination: scratch.path },
          ...{ send: repeat === null ? 'whole' : 'delta', compare: 'quick', compression: 'none' },
          ...{ timeoutMs: 20_000, inheritedFds: [], signal: batchSignal },
          onBytes,
          onWireBytes: (wireBytes) => {
            see({ wireBytes });
          },
        });
      } finally {
        see({ running: -1 });
      }
    },
    copied: ({ bytes, files }) => {
      see({ bytes, files });
    },
    log: (_level, message) => complaints.push(message),
    signal,
  }).finally(() => {
    see({});
  });
  return {
    control,
    seen,
    complaints,
    until: async (isReached: () => boolean) => {
      while (!isReached())
        await Promise.race([changed.promise, copying.then(() => changed.promise)]);
    },
    finish: async () => {
      await copying;
      for (const { name, bytes } of entries) {
        const [there, here] = await Promise.all(
          [source, scratch.path].map((path) => readFile(join(path, name))),
        );
        expect(here?.length).toBe(bytes);
        expect(here?.equals(there ?? Buffer.alloc(0))).toBe(true);
      }
      expect([seen.bytes, seen.files]).toEqual([FILES * FILE_BYTES, FILES]);
      expect(complaints).toEqual([]);
    },
    [Symbol.asyncDispose]: async () => {
      await copying.catch(() => undefined);
      await road[Symbol.asyncDispose]();
      // The daemon is for all of them.
      if (open !== byDaemon) await transport[Symbol.asyncDispose]();
      await line[Symbol.asyncDispose]();
    },
  };
}

test('a crawling copy by one worker goes on by four, and without its limit, from where it was', async () => {
  await using copy = await startCopy({ workers: 1, maxRate: 400_000 });
  const { control, seen } = copy;
  await copy.until(() => seen.wireBytes > FILE_BYTES);

  control.change({ workers: 4, maxRate: 400_000 });
  await copy.until(() => seen.running === 4);
  control.change({ workers: 4, maxRate: null });
  await copy.finish();

  expect(seen.straight).toBe(0);
  // All came once, but for the part of a file that each of them had just begun.
  expect(seen.wireBytes).toBeLessThan((FILES + 6) * FILE_BYTES);
});

test('of four workers three stop at once, and the one that is left does their work', async () => {
  await using copy = await startCopy({ workers: 4, maxRate: 400_000 });
  const { control, seen } = copy;
  // Four share the files only if somebody has told them.
  control.change({ workers: 1, maxRate: 400_000 });
  control.change({ workers: 4, maxRate: 400_000 });
  await copy.until(() => seen.running === 4 && seen.wireBytes > FILE_BYTES);

  control.change({ workers: 1, maxRate: 400_000 });
  await copy.until(() => seen.running === 1);
  control.change({ workers: 1, maxRate: null });
  await copy.finish();

  expect(seen.wireBytes).toBeLessThan((FILES + 12) * FILE_BYTES);
});

test.each([
  ['a daemon', byDaemon],
  ['SSH', bySsh],
])(
  'a limit on a copy by %s that had none takes its rsyncs from the straight way, and they go on through the relay',
  async (_, open) => {
    await using copy = await startCopy({ workers: 2, maxRate: null }, open);
    const { control, seen } = copy;
    await copy.until(() => seen.wireBytes > FILE_BYTES);
    const { straight } = seen;

    control.change({ workers: 2, maxRate: 300_000 });
    await copy.until(() => seen.capped > 0 && seen.running === seen.capped);
    const bytesSoFar = seen.wireBytes;
    await copy.until(() => seen.wireBytes > bytesSoFar);
    control.change({ workers: 2, maxRate: null });
    await copy.finish();

    expect(seen.straight).toBe(straight);
    expect(seen.wireBytes).toBeLessThan((FILES + 6) * FILE_BYTES);
  },
);

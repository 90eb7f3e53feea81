/**
 * Filesystems that run out of space while a clone is made: it pauses and says so, or ends in order, and never fills one.
 *
 * The filesystems are small, so what a clone keeps free on each is two and a half segments of WAL: 40 MiB.
 */
import { existsSync } from 'node:fs';
import { readdir, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  adoptServer,
  compareTables,
  findDamage,
  freePort,
  installAmcheck,
  leftBehind,
  listProcesses,
  makeDirectory,
  mountFilesystem,
  PGCLONED,
  type PostgresServer,
  runAsPartsUser,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startCluster,
  startPrimary,
  type TestFilesystem,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Gate, openGate } from '../kill-matrix/gate.ts';
import type { HoldName } from '../kill-matrix/holds.ts';
import { type Product, startProduct } from './product.ts';
import { type Ended, runClone, startClone } from './run-clone.ts';

const MEGABYTE = 1_000_000;
const BYTES = 200 * MEGABYTE;
/** A cluster of 45 MB takes seconds like this: there is a middle. */
const SLOW = { maxRate: 10 * MEGABYTE, workers: 2 };
/** Less than what is kept free, and more than the half at which WAL ends the clone. */
const SHORT_BYTES = 36 * MEGABYTE;

const owned = new AsyncDisposableStack();
let filesystem: TestFilesystem;
let product: Product;
let source: Source;

describe.skipIf(!runsAsRoot)('a filesystem that runs out of space while a clone is made', () => {
  beforeAll(async () => {
    filesystem = owned.use(await mountFilesystem({ type: 'tmpfs', bytes: BYTES }));
    product = owned.use(await startProduct({ worker: { dataRoots: [filesystem.path] } }));
    source = product.source;
    await source.primary.query(
      'CREATE TABLE kept AS SELECT i, md5(i::text) FROM generate_series(1, 200000) i',
    );
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  test('pauses the copy and shows so in the record; once there is room, the same attempt goes on and the clone is equal', async () => {
    const dataDirectory = join(filesystem.path, 'paused');
    await using watch = watchFree(filesystem);
    const { id } = await product.create('paused', {
      target: { dataDirectory },
      transfer: SLOW,
      replica: { start: true, port: await freePort(), waitFor: 'streaming' },
    });
    await product.until(id, ({ progress }) => progress.bytesDone > 5 * MEGABYTE);
    await using ballast = await leaveOnly(SHORT_BYTES, filesystem);

    const paused = await product.until(id, ({ waitingFor }) => waitingFor !== null);
    expect(paused).toMatchObject({ state: 'running', phase: 'copy-files', attempt: 1 });
    expect(paused.waitingFor).toMatch(
      new RegExp(
        `^free space on ${filesystem.path}: [\\d.]+ MB left, 40.0 MB kept free, [\\d.]+ MB still to come$`,
      ),
    );
    await noTransfers(dataDirectory);
    const pausedBytes = await bytesFree(filesystem);
    await ballast.remove();
    const ended = await product.ended(id);

    expect(ended).toMatchObject({ state: 'succeeded', attempt: 1, waitingFor: null });
    expect(product.logged(id).join('\n')).toMatch(
      /^the clone waits for free space on .*^the clone goes on$/ms,
    );
    expect(pausedBytes).toBeGreaterThan(0.8 * SHORT_BYTES);
    expect(watch.leastBytes()).toBeGreaterThan(0);
    await expectEqual(dataDirectory);
    await product.expectNothingLeft(ended);
  });

  test('fails the clone if nobody makes room, before it is full, and leaves nothing on the source', async () => {
    await using small = await mountFilesystem({ type: 'tmpfs', bytes: BYTES });
    await using watch = watchFree(small);
    const target = { dataDirectory: join(small.path, 'main') };
    const clone = await startClone(
      source,
      { target, transfer: SLOW },
      { env: { PGCLONED_WORKER_NO_SPACE_SECONDS: '1' } },
    );
    await clone.copied(0.05);
    await using ballast = await leaveOnly(SHORT_BYTES, small);
    await clone.said(/^the clone waits for free space on /);
    const ended = await clone.ended;

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'copy-files',
      message: expect.stringMatching(
        `^there is too little space on ${small.path}: .* MB left, 40.0 MB kept free, .* MB still to come$`,
      ),
      hint: expect.stringMatching(/^Make room there/),
    });
    expect(watch.leastBytes()).toBeGreaterThan(0.8 * SHORT_BYTES);
    expect(existsSync(join(target.dataDirectory, 'global/pg_control'))).toBe(false);
    await expectNothingLeft(ended);
    // What was copied is of use to the next clone.
    await ballast.remove();
    const next = await runClone(source, { target });
    expect(next.error).toBeUndefined();
    expect(next.result.result.keptBytes).toBeGreaterThan(0);
  });

  test('fails the clone before WAL fills a filesystem of its own', async () => {
    await using small = await mountFilesystem({ type: 'tmpfs', bytes: 100 * MEGABYTE });
    await using watch = watchFree(small);
    await using scratch = await scratchDirectory();
    const target = {
      dataDirectory: join(scratch.path, 'main'),
      temporaryWalDirectory: small.path,
    };
    const clone = await startClone(source, {
      target,
      transfer: { maxRate: 2 * MEGABYTE, workers: 2 },
    });
    await clone.reached('copy-files');
    await using _ = writeWal();
    await clone.said(/^warn: free space for WAL on /);
    const ended = await clone.ended;

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'copy-files',
      message: expect.stringContaining(`no space left for WAL on ${small.path}`),
      hint: expect.stringMatching(/^Make room there/),
    });
    expect(watch.leastBytes()).toBeGreaterThan(0);
    expect(existsSync(join(target.dataDirectory, 'global/pg_control'))).toBe(false);
    await expectNothingLeft(ended);
  });

  test('pauses the copy also where it is that of a tablespace alone', async () => {
    await using small = await mountFilesystem({ type: 'tmpfs', bytes: BYTES });
    await using scratch = await scratchDirectory();
    const location = join(scratch.path, 'tablespace');
    await makeDirectory(location);
    await source.primary.query(`CREATE TABLESPACE apart LOCATION '${location}'`);
    await source.primary.query(
      'CREATE TABLE apart TABLESPACE apart AS SELECT i, md5(i::text) FROM generate_series(1, 200000) i',
    );
    const clone = await startClone(source, {
      target: {
        dataDirectory: join(scratch.path, 'main'),
        tablespaces: { [location]: join(small.path, 'apart') },
      },
      transfer: SLOW,
    });
    await clone.copied(0.05);
    await using ballast = await leaveOnly(SHORT_BYTES, small);
    await clone.said(new RegExp(`^the clone waits for free space on ${small.path}: `));
    await ballast.remove();
    const ended = await clone.ended;

    expect(ended.error).toBeUndefined();
    expect(ended.messages.join('\n')).toMatch('the clone goes on');
    expect(ended.messages.join('\n')).not.toMatch('attempt 2');
  });
});

describe.skipIf(!runsAsRoot)('a filesystem that a local source and its clones share', () => {
  const parts = new AsyncDisposableStack();
  let shared: TestFilesystem;
  let primary: PostgresServer;
  let gate: Gate;
  let env: Readonly<Record<string, string>>;
  let mask = '';

  beforeAll(async () => {
    shared = parts.use(await mountFilesystem({ type: 'xfs', bytes: 512 * 1024 ** 2 }));
    primary = parts.use(await startPrimary({ dataDirectory: join(shared.path, 'origin', 'data') }));
    await installAmcheck(primary);
    await primary.query(
      'CREATE TABLE kept AS SELECT i, md5(i::text) FROM generate_series(1, 300000) i',
    );
    const { path } = parts.use(await scratchDirectory());
    mask = join(path, 'mask.sql');
    // What was shared becomes the clone's own, some megabytes at a time, without an end.
    await writePartsFile(
      mask,
      'DO $$BEGIN LOOP UPDATE kept SET md5 = upper(md5) WHERE random() < 0.03; COMMIT; PERFORM pg_sleep(0.05); END LOOP; END$$',
    );
    gate = parts.use(await openGate(join(path, 'gate')));
    const hold = new URL('../kill-matrix/hold-phases.ts', import.meta.url);
    hold.searchParams.set('socket', gate.socketPath);
    env = { NODE_OPTIONS: `--import=${hold.href}` };
  });

  afterAll(async () => {
    await parts.disposeAsync();
  });

  const dataDirectory = () => join(shared.path, 'clone', 'data');
  const sourceHere = (onReady: readonly string[] = []) => ({
    configuration: {
      local: true,
      dataDirectory: primary.dataDirectory,
      user: 'postgres',
      onReady,
    } as never,
  });
  const reflinked = (replica: object = {}) => ({
    method: 'reflink',
    target: { dataDirectory: dataDirectory() },
    replica: { role: 'detached', ...replica },
  });

  /** The clone is held there until this is all that is left. */
  const cloneWithOnly = async (bytes: number, from: HoldName, replica: object = {}) => {
    using held = gate.catchAt(from);
    const clone = await startClone(sourceHere(), reflinked(replica), { env });
    await held.held;
    // Makes the next segment, which a full disk would deny the source: that would end it, and not the clone.
    await primary.query("SELECT pg_logical_emit_message(true, 'test', '')");
    const ballast = join(shared.path, 'ballast');
    // To the last byte first, or XFS would find more when it needs some: what it has set aside for files that grow.
    const script = `dd if=/dev/zero of=${ballast} bs=1M; truncate --size=-${String(bytes)} ${ballast}`;
    await runAsPartsUser(['sh', '-c', script]);
    held.letGo();
    const ended = await clone.ended;
    await rm(ballast);
    return ended;
  };

  const expectUntouched = async (...names: readonly string[]) => {
    expect(await readdir(shared.path)).toEqual(['origin']);
    expect(await leftBehind({ names, servers: [primary], directories: [shared.path] })).toEqual([]);
    expect(await findDamage(primary)).toBe('');
  };

  test('is not filled by what onReady rewrites in a clone: that ends first, and the source goes on writing', async () => {
    await using ballast = await leaveOnly(80 * MEGABYTE, shared);
    await using watch = watchFree(shared);
    const { error, name } = await runClone(sourceHere([mask]), reflinked());
    await ballast.remove();

    expect(error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'publish',
      message: expect.stringMatching(
        `^there is no space left for the clone on ${shared.path}: .* left, 40.0 MB kept free$`,
      ),
      facts: { path: shared.path, freeBytes: expect.any(Number) },
      hint: 'Make room there, then clone again.',
    });
    expect(watch.leastBytes()).toBeGreaterThan(2 * MEGABYTE);
    await primary.query('INSERT INTO kept VALUES (0)');
    await expectUntouched(name);
  });

  test('ends a clone whose files are made while somebody else takes the room', async () => {
    const ended = await cloneWithOnly(15 * MEGABYTE, 'makeDirectories');

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      message: expect.stringContaining(`no space left for the clone on ${shared.path}`),
    });
    await expectUntouched(ended.name);
  });

  test('may be that of a log: a clone whose words cannot be written is made all the same', async () => {
    const asked = [...['run', '--method', 'reflink'], primary.dataDirectory, dataDirectory()];
    const { status } = await runAsPartsUser(
      ['sh', '-c', 'exec "$@" 2>/dev/full', 'sh', process.execPath, PGCLONED, ...asked],
      { accept: 'any' },
    );

    expect(status).toBe(0);
    await rm(join(shared.path, 'clone'), { recursive: true });
    await expectUntouched();
  });

  test('is named by a clone that cannot start for want of room, and is started once there is some', async () => {
    const ended = await cloneWithOnly(5 * MEGABYTE, 'configureReplica', {
      start: true,
    });

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'start-replica',
      message: expect.stringMatching(`, for want of space: .* left on ${shared.path} now$`),
      facts: { path: shared.path, log: expect.stringContaining('No space left on device') },
      hint: expect.stringContaining(
        `then start the clone in ${dataDirectory()}, which is complete`,
      ),
    });
    {
      await using clone = await startCluster(dataDirectory());
      await expect
        .poll(async () => await clone.query('SELECT pg_is_in_recovery() AS r').catch(String))
        .toEqual([{ r: false }]);
    }
    await rm(join(shared.path, 'clone'), { recursive: true });
    await expectUntouched(ended.name);
  });
});

async function bytesFree({ path }: TestFilesystem): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}

/** Takes so much of a filesystem that this is left. */
async function leaveOnly(
  bytes: number,
  on: TestFilesystem,
): Promise<AsyncDisposable & { readonly remove: () => Promise<void> }> {
  const path = join(on.path, 'ballast');
  const takenBytes = (await bytesFree(on)) - bytes;
  await runAsPartsUser(['fallocate', '--length', String(takenBytes), path]);
  const remove = async () => {
    await rm(path, { force: true });
  };
  return { remove, [Symbol.asyncDispose]: remove };
}

/** Looks at what is free for as long as it lives. */
function watchFree(on: TestFilesystem): AsyncDisposable & { readonly leastBytes: () => number } {
  const stopping = new AbortController();
  let leastBytes = Number.POSITIVE_INFINITY;
  const watching = (async () => {
    while (!stopping.signal.aborted) {
      leastBytes = Math.min(leastBytes, await bytesFree(on));
      await delay(5);
    }
  })();
  return {
    leastBytes: () => leastBytes,
    [Symbol.asyncDispose]: async () => {
      stopping.abort();
      await watching;
    },
  };
}

/** Some segments of WAL per second. */
function writeWal(): AsyncDisposable {
  const stopping = new AbortController();
  const writing = (async () => {
    while (!stopping.signal.aborted)
      await source.primary.query(
        "SELECT pg_logical_emit_message(true, 'testbed', repeat('x', 4000000))",
      );
  })();
  return {
    [Symbol.asyncDispose]: async () => {
      stopping.abort();
      await writing;
    },
  };
}

/** Settles once no rsync writes below the directory. */
async function noTransfers(directory: string): Promise<void> {
  for (;;) {
    const running = (await listProcesses()).filter(
      ({ args }) => args.startsWith('rsync ') && args.includes(directory),
    );
    if (running.length === 0) return;
  }
}

async function expectEqual(dataDirectory: string): Promise<void> {
  await using standby = await adoptServer(dataDirectory);
  await waitForReplay(source.primary, standby);
  expect(await compareTables(source.primary, standby)).toEqual([]);
}

async function expectNothingLeft({ name }: Ended): Promise<void> {
  expect(
    await leftBehind({
      names: [name],
      servers: [source.primary],
      directories: [filesystem.path],
    }),
  ).toEqual([]);
}

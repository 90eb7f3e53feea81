/** A real pg_receivewal against a real server; what it has collected is then proved, damaged and proved again. */
import { copyFile, mkdir, open, readdir, readFile, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import {
  descendantsOf,
  type ListedProcess,
  listProcesses,
  mountFilesystem,
  type PostgresServer,
  runsAsRoot,
  scratchDirectory,
  startPrimary,
} from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import {
  openSession,
  parseLsn,
  pinWal,
  proveWal,
  type Session,
  segmentName,
  segmentStart,
  segmentsBetween,
  startBackup,
  startWalReceiver,
  stopBackup,
  type WalPin,
  type WalReceiver,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const applicationName = 'pgcloned_0123456789abcdef0123456789abcdef_1';
const segmentBytes = 1024 * 1024;
const stallMs = 20_000;

let server: PostgresServer;
let session: Session;
beforeAll(async () => {
  server = await startPrimary({
    settings: { max_wal_size: '2MB', min_wal_size: '2MB', max_wal_senders: '2' },
    initdbArgs: ['--wal-segsize=1'],
  });
  session = await openSession(connectionTo(server), { applicationName: 'observer', signal });
});
afterAll(async () => {
  await session[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

afterEach(async () => {
  // A WAL sender notices only a moment later that its client has gone, and would be taken for that of the next test.
  await expect.poll(async () => await server.query('SELECT FROM pg_stat_replication')).toEqual([]);
});

interface Streaming extends AsyncDisposable {
  readonly receiver: WalReceiver;
  readonly directory: string;
  readonly seed: { readonly timeline: number; readonly lsn: string; readonly segmentBytes: number };
}

/** Keeps WAL as the engine does; these servers remove it as early as they can. */
async function pin(): Promise<WalPin> {
  return await pinWal(connectionTo(server), {
    slotName: applicationName,
    applicationName: 'pin',
    signal,
  });
}

async function stream(
  from: PostgresServer = server,
  more: Partial<Parameters<typeof startWalReceiver>[0]> = {},
): Promise<Streaming> {
  await using stack = new AsyncDisposableStack();
  const scratch = stack.use(await scratchDirectory());
  const directory = join(scratch.path, 'wal');
  await mkdir(directory);
  const [row] = await from.query<{ lsn: string }>(
    'SELECT redo_lsn::text AS lsn FROM pg_control_checkpoint()',
  );
  const seed = more.seed ?? { timeline: 1, lsn: row?.lsn ?? '', segmentBytes };
  const receiver = stack.use(
    await startWalReceiver({
      binDirectory: from.binDirectory,
      settings: connectionTo(from),
      applicationName,
      directory,
      seed,
      session,
      inheritedFds: [],
      stallMs,
      signal,
      ...more,
    }),
  );
  const owned = stack.move();
  return { receiver, directory, seed, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** @returns The end of the last of them. */
async function writeSegments(count: number): Promise<string> {
  for (let segment = 0; segment < count; segment++) {
    await server.query(
      `SELECT pg_logical_emit_message(false, 'x', repeat('y', 900000)), pg_switch_wal()`,
    );
  }
  const [row] = await server.query<{ lsn: string }>(
    'SELECT pg_current_wal_flush_lsn()::text AS lsn',
  );
  return segmentStart({ lsn: row?.lsn ?? '', segmentBytes });
}

test('the stream begins with the segment of the seed and covers the start of a backup that comes later', async () => {
  await using pinned = await pin();
  await writeSegments(3);
  const seed = { timeline: pinned.restartTimeline, lsn: pinned.restartLsn, segmentBytes };
  await using streaming = await stream(server, { seed });
  const { receiver, directory } = streaming;

  const start = await startBackup(session, { label: 'x', fast: true, signal });
  const { startLsn, timeline } = start;
  await writeSegments(2);
  const { stopLsn } = await stopBackup(session, start, signal);
  await receiver.waitUntilComplete(stopLsn, signal);
  await receiver.stop(signal);

  const files = await readdir(directory);
  expect(files.toSorted()[0]).toBe(segmentName(seed));
  expect(files).toEqual(
    expect.arrayContaining([
      ...segmentsBetween({ timeline, startLsn, endLsn: stopLsn, segmentBytes }),
    ]),
  );
  expect(parseLsn((await receiver.completeUpTo()) ?? '0/0')).toBeGreaterThanOrEqual(
    parseLsn(stopLsn),
  );
  await proveWal({
    binDirectory: server.binDirectory,
    directory,
    timeline,
    startLsn,
    stopLsn,
    segmentBytes,
    stallMs,
    signal,
  });
});

test('a segment that is missing, cut, or has a page of zeros or a flipped byte is found and named', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const { receiver, directory } = streaming;
  const start = await startBackup(session, { label: 'x', fast: true, signal });
  const { startLsn, timeline } = start;
  await writeSegments(4);
  const { stopLsn } = await stopBackup(session, start, signal);
  await receiver.waitUntilComplete(stopLsn, signal);
  await receiver.stop(signal);
  const proof = {
    binDirectory: server.binDirectory,
    directory,
    timeline,
    startLsn,
    stopLsn,
    segmentBytes,
    stallMs,
    signal,
  };
  await proveWal(proof);
  const victim = segmentsBetween({ timeline, startLsn, endLsn: stopLsn, segmentBytes })[1] ?? '';
  const path = join(directory, victim);
  const whole = join(directory, '..', 'whole');
  await copyFile(path, whole);

  const damages: readonly (() => Promise<void>)[] = [
    () => rm(path),
    () => truncate(path, segmentBytes / 2),
    async () => {
      await using file = await open(path, 'r+');
      await file.write(Buffer.alloc(8192), 0, 8192, 5 * 8192);
    },
    async () => {
      await using file = await open(path, 'r+');
      const { buffer } = await file.read({ buffer: Buffer.alloc(1), position: 9 * 8192 + 4000 });
      await file.write(Buffer.of((buffer[0] ?? 0) ^ 1), 0, 1, 9 * 8192 + 4000);
    },
  ];
  for (const damage of damages) {
    await copyFile(whole, path);
    await damage();
    await expect(proveWal(proof)).rejects.toMatchObject({
      code: 'WAL_INCOMPLETE',
      message: expect.stringContaining(`in ${victim}`),
      facts: { startLsn, stopLsn, segment: victim, reason: expect.stringMatching(/error|fatal/) },
    });
  }
  await copyFile(whole, path);
  await proveWal(proof);
});

test('a backup that ends on a boundary needs no segment behind it', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const { receiver, directory } = streaming;
  const start = await startBackup(session, { label: 'x', fast: true, signal });
  const { startLsn } = start;
  const { stopLsn } = await stopBackup(session, start, signal);
  await receiver.waitUntilComplete(stopLsn, signal);
  await receiver.stop(signal);

  const complete = await receiver.completeUpTo();
  expect(complete).not.toBeNull();
  const boundary = complete ?? '';
  expect(parseLsn(boundary) % BigInt(segmentBytes)).toBe(0n);
  expect(parseLsn(boundary)).toBeGreaterThanOrEqual(parseLsn(stopLsn));
  await proveWal({
    binDirectory: server.binDirectory,
    directory,
    timeline: 1,
    startLsn,
    stopLsn,
    segmentBytes,
    stallMs,
    signal,
  });
});

test('stopping ends the process in order, and its WAL sender with it', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const [child] = await receivers();
  const lsn = await writeSegments(1);
  await streaming.receiver.waitUntilComplete(lsn, signal);

  await streaming.receiver.stop(signal);

  expect(child?.pid).toBeGreaterThan(1);
  expect(await receivers()).toEqual([]);
  await expect.poll(async () => await server.query('SELECT FROM pg_stat_replication')).toEqual([]);
});

test('progress is what the source has sent, and only complete segments count as safe', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const { receiver } = streaming;
  const lsn = await writeSegments(2);
  await server.query(`SELECT pg_logical_emit_message(true, 'x', repeat('y', 300000))`);
  await receiver.waitUntilComplete(lsn, signal);

  await expect
    .poll(async () => parseLsn((await receiver.receivedLsn(signal)) ?? '0/0'))
    .toBeGreaterThan(parseLsn(lsn));
  const complete = parseLsn((await receiver.completeUpTo()) ?? '0/0');
  expect(complete % BigInt(segmentBytes)).toBe(0n);
});

test('no password stands in the arguments of the process', async () => {
  await using streaming = await stream(server, {
    settings: connectionTo(server, { password: 'hush-hush' }),
  });

  const [child] = await receivers();
  const commandLine = await readFile(`/proc/${String(child?.pid)}/cmdline`, 'utf8');

  expect(commandLine).toContain('pg_receivewal');
  expect(commandLine).not.toContain('hush-hush');
  await streaming.receiver.stop(signal);
});

test('a stream that breaks is taken up again without a hole', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const { receiver, directory, seed } = streaming;
  const start = await startBackup(session, { label: 'x', fast: true, signal });
  const { startLsn } = start;
  await writeSegments(2);

  await server.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = $1',
    [applicationName],
  );
  await writeSegments(3);
  const { stopLsn } = await stopBackup(session, start, signal);

  await receiver.waitUntilComplete(stopLsn, signal);
  await receiver.stop(signal);
  await proveWal({
    binDirectory: server.binDirectory,
    directory,
    timeline: seed.timeline,
    startLsn,
    stopLsn,
    segmentBytes,
    stallMs,
    signal,
  });
});

test('a stream that is killed while it makes a segment is taken up again', async () => {
  await using _ = await pin();
  await using streaming = await stream();
  const { receiver, directory } = streaming;
  const [child] = await receivers();
  process.kill(child?.pid ?? 0, 'SIGKILL');

  // It makes a segment by writing zeros, and itself opens none of another size.
  const partial = (await readdir(directory)).filter((name) => name.endsWith('.partial'));
  for (const name of partial) await truncate(join(directory, name), segmentBytes / 2);
  const end = await writeSegments(2);

  expect(partial).toHaveLength(1);
  await receiver.waitUntilComplete(end, signal);
  await receiver.stop(signal);
});

test('a stream that stands still although the source has more is taken up again', async () => {
  await using _ = await pin();
  await using streaming = await stream(server, { stallMs: 1_000 });
  const [sender] = await server.query<{ pid: number }>(
    'SELECT pid FROM pg_stat_replication WHERE application_name = $1',
    [applicationName],
  );
  process.kill(sender?.pid ?? 0, 'SIGSTOP');
  try {
    const lsn = await writeSegments(2);
    await expect
      .poll(async () => parseLsn((await streaming.receiver.completeUpTo()) ?? '0/0'), {
        timeout: 20_000,
      })
      .toBeGreaterThanOrEqual(parseLsn(lsn));
  } finally {
    process.kill(sender?.pid ?? 0, 'SIGCONT');
  }
  await streaming.receiver.stop(signal);
});

test('WAL that the source has removed meanwhile ends the stream for good, and by name', async () => {
  await using streaming = await stream();
  const { receiver } = streaming;
  const [child] = await receivers();
  process.kill(child?.pid ?? 0, 'SIGSTOP');
  try {
    await writeSegments(40);
    await server.query('CHECKPOINT');
    await server.query('CHECKPOINT');
  } finally {
    process.kill(child?.pid ?? 0, 'SIGCONT');
  }

  expect(await receiver.lost).toMatchObject({
    code: 'WAL_REMOVED',
    hint: expect.stringContaining('wal_keep_size'),
  });
  await expect(receiver.waitUntilComplete('FF/0', signal)).rejects.toMatchObject({
    code: 'WAL_REMOVED',
  });
});

test('a seed that the source no longer has is refused at once', async () => {
  await writeSegments(4);
  await server.query('CHECKPOINT');
  const seed = { timeline: 1, lsn: '0/100000', segmentBytes };

  await expect(stream(server, { seed })).rejects.toMatchObject({ code: 'WAL_REMOVED' });

  expect(await receivers()).toEqual([]);
});

test('the reasons why a stream cannot begin are told apart', async () => {
  await using closed = await startPrimary({
    hba: ['host all all 127.0.0.1/32 trust', 'host replication locked 127.0.0.1/32 scram-sha-256'],
    settings: { max_wal_senders: '1' },
  });
  await closed.query(`CREATE ROLE locked LOGIN REPLICATION PASSWORD 'right'`);
  await closed.query('CREATE ROLE outside LOGIN REPLICATION');
  await using observer = await openSession(connectionTo(closed), { applicationName: 'o', signal });
  const seed = { timeline: 1, lsn: '0/1000000', segmentBytes: 16 * segmentBytes };
  const begin = async (more: Parameters<typeof connectionTo>[1]) =>
    await stream(closed, { session: observer, seed, settings: connectionTo(closed, more) });

  await expect(begin({ user: 'outside' })).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    hint: expect.stringContaining('host replication outside 127.0.0.1/32 scram-sha-256'),
  });
  await expect(begin({ user: 'locked', password: 'wrong' })).rejects.toMatchObject({
    code: 'SOURCE_AUTHENTICATION_FAILED',
  });
  await expect(begin({ user: 'locked' })).rejects.toMatchObject({
    code: 'SOURCE_AUTHENTICATION_FAILED',
  });
  await using first = await begin({ user: 'locked', password: 'right' });
  await expect(begin({ user: 'locked', password: 'right' })).rejects.toMatchObject({
    code: 'SOURCE_NO_WAL_SENDER',
  });
  await first.receiver.stop(signal);
  expect(await receivers()).toEqual([]);
});

test('aborting while it starts leaves no process', async () => {
  const controller = new AbortController();
  const starting = stream(server, { signal: controller.signal });
  controller.abort(new Error('the user cancelled'));

  await expect(starting).rejects.toThrow('the user cancelled');

  expect(await receivers()).toEqual([]);
});

test.skipIf(!runsAsRoot)('a filesystem that fills up all the same is told as such', async () => {
  await using _ = await pin();
  await using small = await mountFilesystem({ type: 'tmpfs', bytes: 3 * segmentBytes });
  const directory = join(small.path, 'wal');
  await mkdir(directory);
  const [row] = await server.query<{ lsn: string }>(
    'SELECT pg_current_wal_flush_lsn()::text AS lsn',
  );
  const seed = { timeline: 1, lsn: row?.lsn ?? '', segmentBytes };
  await using streaming = await stream(server, { directory, seed });
  await writeSegments(4);

  expect(await streaming.receiver.lost).toMatchObject({
    code: 'TARGET_NO_SPACE',
    message: `there is no space left for WAL in ${directory}`,
  });
  expect(await receivers()).toEqual([]);
});

test('a directory that is not empty is a bug of the caller', async () => {
  await using streaming = await stream();
  const { directory, seed } = streaming;

  await expect(stream(server, { directory, seed })).rejects.toThrow('is not empty');
  await streaming.receiver.stop(signal);
});

test('nothing that arrives for too long is a stall', async () => {
  await using streaming = await stream(server, { stallMs: 50 });

  await expect(streaming.receiver.waitUntilComplete('FF/0', signal)).rejects.toMatchObject({
    code: 'STALLED',
    facts: { wantedLsn: 'FF/0' },
  });
  await streaming.receiver.stop(signal);
});

test('the stream does not take part in synchronous replication', async () => {
  await using streaming = await stream();

  expect(
    await server.query(
      'SELECT sync_priority, flush_lsn FROM pg_stat_replication WHERE application_name = $1',
      [applicationName],
    ),
  ).toEqual([{ sync_priority: 0, flush_lsn: null }]);
  await streaming.receiver.stop(signal);
});

async function receivers(): Promise<readonly ListedProcess[]> {
  const ours = descendantsOf(process.pid, await listProcesses());
  return ours.filter(({ args }) => args.includes('/pg_receivewal '));
}

/** What the worker promises around the engine, whatever the engine, Redis and the operating system do meanwhile. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CloneError } from '@pgcloned/contract';
import { type CloneStore, openCloneStore, openHostQueue } from '@pgcloned/queue';
import {
  type PrivateRedis,
  runAsPartsUser,
  type ScratchDirectory,
  scratchDirectory,
  startRedis,
} from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { startWorker } from '../src/index.ts';
import { eventually, playedEngine, publishNow, someClone, workerOptions } from './worker-parts.ts';

const resources = new AsyncDisposableStack();
let redis: PrivateRedis;
let store: CloneStore;
let scratch: ScratchDirectory;

beforeAll(async () => {
  redis = resources.use(await startRedis());
  store = resources.use(await openCloneStore({ redisUrl: redis.url, onError: () => {} }));
});
afterAll(async () => {
  await resources.disposeAsync();
});
beforeEach(async () => {
  await redis.flush();
  scratch = await scratchDirectory();
});
afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
});

const options = (concurrency = 2) =>
  workerOptions({ redisUrl: redis.url, directory: scratch.path, concurrency });
/** Undefined also while Redis is away. */
const stateOf = async (id: string) => (await store.get(id).catch(() => undefined))?.state;
const journalOf = async (id: string) =>
  JSON.parse(await readFile(join(scratch.path, 'state', 'runs', `${id}.json`), 'utf8')) as {
    clone: { state: string; phase: string };
    reported: boolean;
  };

test('a clone is made with what the host knows, and its record tells how it went', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;

  call?.observer.phaseStarted('copy-files');
  call?.observer.copyPlanned({ bytesTotal: 200, filesTotal: 2, workers: 1 });
  call?.observer.copied({ worker: 0, bytes: 100, files: 1 });
  call?.observer.warning('the disk is slow');
  call?.observer.log('info', 'half of it is there', { bytes: 100 });
  call?.observer.leftover({ what: 'a file', remedy: 'rm it' });
  await eventually(async () => (await store.get(clone.id))?.progress.bytesDone === 100);
  expect(await store.get(clone.id)).toMatchObject({ state: 'running', phase: 'copy-files' });
  expect(await store.host('replica-1')).toMatchObject({
    online: true,
    sources: ['orders', 'here'],
  });
  call?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(call?.plan).toMatchObject({
    id: clone.id,
    attempt: 1,
    sourceName: 'orders',
    source: { host: 'db1' },
    host: { dataRoots: [scratch.path], stallMs: 60_000, defaultSshKeyFiles: [] },
  });
  expect(call?.plan.host.protectedPaths).toEqual([
    join(scratch.path, 'state'),
    '/etc/pgcloned.yaml',
    '/etc/pass',
    '/etc/key',
  ]);
  expect(await store.get(clone.id)).toMatchObject({
    error: null,
    warnings: ['the disk is slow'],
    leftovers: [{ what: 'a file', remedy: 'rm it' }],
    result: { bytes: 100 },
  });
  const lines = (await store.logs(clone.id)).map(({ message }) => message);
  expect(lines).toContain('half of it is there');
  expect(lines.at(-1)).toBe('clone succeeded');
  await eventually(async () => (await journalOf(clone.id)).reported);
  expect((await journalOf(clone.id)).clone.state).toBe('succeeded');
});

test('nobody else may read the journal', async () => {
  await using _worker = await startWorker(options(), playedEngine());

  for (const name of ['state', 'state/runs']) {
    expect((await stat(join(scratch.path, name))).mode & 0o077).toBe(0);
  }
});

test.each([
  ['SOURCE_UNKNOWN', 'elsewhere'],
  ['SOURCE_UNKNOWN', 'constructor'],
  ['NOT_SUPPORTED', 'here'],
])('a clone fails with %s if its source is %s', async (code, name) => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone({ source: { name } });

  await store.create(clone);
  await eventually(async () => (await stateOf(clone.id)) === 'failed');

  expect((await store.get(clone.id))?.error).toMatchObject({ code, retryable: false });
  expect(engine.calls).toEqual([]);
});

test('the error of the engine becomes that of the record, and a bug does not tell its text', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const [one, two] = [someClone(), someClone()];
  await store.create(one);
  await store.create(two);
  await eventually(() => engine.calls.length === 2);
  const failure = new CloneError('TARGET_NO_SPACE', 'the disk is full', {
    facts: { bytes: 1 },
    hint: 'Make room.',
  });
  failure.phase = 'copy-files';

  engine.calls.find(({ plan }) => plan.id === one.id)?.fail(failure);
  engine.calls.find(({ plan }) => plan.id === two.id)?.fail(new Error('internals'));
  await eventually(async () => (await stateOf(one.id)) === 'failed');
  await eventually(async () => (await stateOf(two.id)) === 'failed');

  expect((await store.get(one.id))?.error).toEqual({
    code: 'TARGET_NO_SPACE',
    message: 'the disk is full',
    hint: 'Make room.',
    facts: { bytes: 1 },
    retryable: true,
    phase: 'copy-files',
  });
  expect((await store.get(two.id))?.error).toMatchObject({ code: 'INTERNAL' });
  expect(JSON.stringify(await store.get(two.id))).not.toContain('internals');
});

test('a cancelled clone is cancelled once the engine has tidied up', async () => {
  const engine = playedEngine();
  const tidied = Promise.withResolvers<void>();
  await using _worker = await startWorker(options(), {
    ...engine,
    runClone: async (plan, o) =>
      await engine.runClone(plan, o).finally(async () => await tidied.promise),
  });
  const clone = someClone();
  await store.create(clone);
  await eventually(async () => (await stateOf(clone.id)) === 'running');
  await eventually(() => engine.calls.length === 1);

  await store.cancel(clone.id);
  await eventually(() => engine.calls[0]?.signal.aborted === true);
  expect(engine.calls[0]?.signal.reason).toMatchObject({ code: 'CANCELLED' });
  expect(await stateOf(clone.id)).toBe('cancelling');
  tidied.resolve();
  await eventually(async () => (await stateOf(clone.id)) === 'cancelled');

  expect(await store.get(clone.id)).toMatchObject({ error: null, result: null });
});

test('a clone that was interrupted waits as queued with its next attempt, and goes on as running', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  if (call === undefined) throw new Error('not called');
  const error = new CloneError('SOURCE_LOST', 'the backup session was lost');

  call.observer.interrupted({ attempt: 2, error, pauseMs: 1000 });
  await eventually(async () => (await stateOf(clone.id)) === 'queued');
  expect(await store.get(clone.id)).toMatchObject({
    attempt: 2,
    waitingFor: expect.stringContaining('the backup session was lost'),
  });
  call.observer.phaseStarted('preflight');
  await eventually(async () => (await stateOf(clone.id)) === 'running');
  call.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls).toHaveLength(1);
  expect(await store.get(clone.id)).toMatchObject({ attempt: 2, waitingFor: null });
});

test('between two attempts a cancel waits for the worker to tidy up', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const error = new CloneError('SOURCE_LOST', 'the backup session was lost');
  engine.calls[0]?.observer.interrupted({ attempt: 2, error, pauseMs: 60_000 });
  await eventually(async () => (await stateOf(clone.id)) === 'queued');

  await store.cancel(clone.id);
  await eventually(async () => (await stateOf(clone.id)) === 'cancelled');

  expect(engine.calls[0]?.signal.reason).toMatchObject({ code: 'CANCELLED' });
  expect((await store.get(clone.id))?.waitingFor).toBeNull();
});

test('after the publication a cancel is refused', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  if (call === undefined) throw new Error('not called');

  publishNow(call.observer);
  await eventually(
    async () =>
      (await store.get(clone.id))?.progress.phases.some(({ state }) => state === 'done') === true,
  );
  await expect(store.cancel(clone.id)).rejects.toMatchObject({ code: 'TOO_LATE_TO_CANCEL' });
  call.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(call.signal.aborted).toBe(false);
});

test('a worker that stops ends its clones as failed and retryable, and leaves the queued ones queued', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(1), engine);
  const [first, second] = [someClone(), someClone()];
  await store.create(first);
  await eventually(() => engine.calls.length === 1);
  await store.create(second);

  await worker[Symbol.asyncDispose]();

  expect(await store.get(first.id)).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_STOPPED', retryable: true },
  });
  expect(await store.get(second.id)).toMatchObject({ state: 'queued' });
  expect(await store.host('replica-1')).toMatchObject({ online: false });

  await using _next = await startWorker(options(1), engine);
  await eventually(async () => (await stateOf(second.id)) === 'running');
  expect(engine.calls.map(({ plan }) => plan.id)).toEqual([first.id, second.id]);
  expect(engine.swept).toEqual([]);
});

test('a second worker on the same state directory is refused', async () => {
  await using _worker = await startWorker(options(), playedEngine());

  await expect(startWorker(options(), playedEngine())).rejects.toMatchObject({
    code: 'STATE_DIRECTORY_BUSY',
  });
});

test('a job that is given out twice is worked on once', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(2), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  // As BullMQ does it with a job whose lock ran out.
  const queue = 'pgcloned:host-replica-1';
  const cli = (...words: string[]) => runAsPartsUser(['redis-cli', '-s', redis.socket, ...words]);
  await cli('RPUSH', `${queue}:wait`, `${clone.id}-1`);
  await cli('ZADD', `${queue}:marker`, '0', '0');
  await eventually(async () => !(await exists(`${queue}:wait`)));
  engine.calls[0]?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls).toHaveLength(1);
});

/** @returns Once the clone runs, or waits for its second attempt, in a worker that is killed then. */
async function killWorkerDuring(id: string, interrupted: readonly string[] = []): Promise<void> {
  const program = fileURLToPath(new URL('./dying-worker.ts', import.meta.url));
  const child = spawn(process.execPath, [program, redis.url, scratch.path, ...interrupted], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  await eventually(async () => (await journalOf(id)).clone.phase === 'copy-files');
  if (interrupted.length > 0) await eventually(async () => (await stateOf(id)) === 'queued');
  child.kill('SIGKILL');
  await once(child, 'exit');
}

test('a clone whose worker was killed ends as failed when the next one starts, and is not begun again', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  expect(await stateOf(clone.id)).toBe('running');

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  const ended = await store.get(clone.id);
  expect(ended).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_LOST', retryable: true, phase: 'copy-files' },
  });
  expect(ended?.progress.phases).toContainEqual(
    expect.objectContaining({ name: 'copy-files', state: 'failed', endedAt: ended?.endedAt }),
  );
  expect(engine.swept).toEqual([clone.id]);
  const next = someClone();
  await store.create(next);
  await eventually(() => engine.calls.length > 0);
  expect(engine.calls.map(({ plan }) => plan.id)).toEqual([next.id]);
});

test('a clone whose worker was killed between two attempts ends as failed, and is not begun again', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id, ['interrupted']);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  expect(await store.get(clone.id)).toMatchObject({
    state: 'failed',
    attempt: 2,
    waitingFor: null,
    error: { code: 'WORKER_LOST', retryable: true },
  });
  const next = someClone();
  await store.create(next);
  await eventually(() => engine.calls.length > 0);
  expect(engine.calls.map(({ plan }) => plan.id)).toEqual([next.id]);
});

test('a clone that was to be cancelled when its worker was killed ends as cancelled', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  expect((await store.cancel(clone.id)).state).toBe('cancelling');

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  expect(await store.get(clone.id)).toMatchObject({ state: 'cancelled', error: null });
  expect(engine.swept).toEqual([clone.id]);
});

test('what a dead clone left and could not be put away is named with its remedy', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);

  await using _worker = await startWorker(options(), {
    ...playedEngine(),
    sweepClone: () => Promise.reject(new Error('the disk is broken')),
  });

  const { dataDirectory } = clone.spec.target;
  expect((await store.get(clone.id))?.leftovers).toEqual([
    {
      what: `temporary directories of the clone beside ${dataDirectory}`,
      remedy: `Clone into ${dataDirectory} again: that puts away what is left.`,
    },
  ]);
});

test('a running record that this host knows nothing of ends as failed', async () => {
  const clone = someClone();
  await store.create(clone);
  {
    await using queue = await openHostQueue({
      redisUrl: redis.url,
      host: 'replica-1',
      machineId: 'another',
      workerId: 'another',
      concurrency: 1,
      facts: () => Promise.resolve(factsOfAnother),
      run: () => Promise.resolve(),
      onCancelRequested: () => {},
      onFenceLost: () => {},
      onError: () => {},
      signal: new AbortController().signal,
    });
    await queue.confirm({ ...clone, state: 'running' }, { attempt: 1, workerId: 'another' });
  }

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  expect(await store.get(clone.id)).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_LOST' },
  });
  expect(engine.swept).toEqual([clone.id]);
});

test('a Redis that is stopped and started again costs a clone nothing', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  await redis.stop();
  engine.calls[0]?.observer.phaseStarted('copy-files');
  engine.calls[0]?.succeed();
  await eventually(async () => (await journalOf(clone.id)).clone.state === 'succeeded');
  await redis.start();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls).toHaveLength(1);
  expect((await store.get(clone.id))?.result).toMatchObject({ bytes: 100 });
  await store.create(someClone());
  await eventually(() => engine.calls.length === 2);
});

test('a Redis that was emptied gets the record of the running clone again, up to its end', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  await redis.flush();
  await eventually(async () => (await stateOf(clone.id)) === 'running');
  engine.calls[0]?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls).toHaveLength(1);
  expect((await store.list({ pageSize: 5 })).clones.map(({ id }) => id)).toEqual([clone.id]);
});

test('an end that Redis could not be told is told by the next worker', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  await redis.stop();
  await worker[Symbol.asyncDispose]();
  expect(await journalOf(clone.id)).toMatchObject({ clone: { state: 'failed' }, reported: false });
  await redis.start();
  await using _next = await startWorker(options(), engine);
  await eventually(async () => (await stateOf(clone.id)) === 'failed');

  expect((await store.get(clone.id))?.error).toMatchObject({ code: 'WORKER_STOPPED' });
  expect(engine.swept).toEqual([]);
});

test('the journal survives files that are none of its own', async () => {
  const engine = playedEngine();
  await (await startWorker(options(), engine))[Symbol.asyncDispose]();
  await writeFile(join(scratch.path, 'state', 'runs', 'notes.json'), 'not json');

  await using _worker = await startWorker(options(), engine);

  expect(await readdir(join(scratch.path, 'state', 'runs'))).toEqual(['notes.json']);
});

async function exists(key: string): Promise<boolean> {
  const { stdout } = await runAsPartsUser(['redis-cli', '-s', redis.socket, 'EXISTS', key]);
  return stdout.toString().trim() === '1';
}

const factsOfAnother = {
  name: 'replica-1',
  machineId: 'another',
  workerId: 'another',
  version: '0.1.0',
  contract: { min: 1, max: 1 },
  postgresMajors: [],
  dataRoots: [],
  sources: [],
  filesystems: [],
  concurrency: 1,
  runningClones: [],
};

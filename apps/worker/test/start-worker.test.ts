/** What the worker promises around the engine, whatever the engine, Redis and the operating system do meanwhile. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Clone, CloneError } from '@pgcloned/contract';
import { type CloneStore, type HostQueue, openCloneStore, openHostQueue } from '@pgcloned/queue';
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
    clone: { state: string; phase: string; spec: Clone['spec'] };
    workerId: string;
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
  call?.observer.copyPlanned({ bytesTotal: 200, filesTotal: 2, keptBytes: 40, workers: 1 });
  call?.observer.sent(90);
  call?.observer.copied({ worker: 0, bytes: 100, files: 1 });
  call?.observer.warning('the disk is slow');
  call?.observer.log('info', 'half of it is there', { bytes: 100 });
  call?.observer.leftover({ what: 'a file', remedy: 'rm it' });
  await eventually(async () => (await store.get(clone.id))?.progress.bytesDone === 100);
  expect(await store.get(clone.id)).toMatchObject({
    state: 'running',
    phase: 'copy-files',
    progress: { wireBytes: 90, keptBytes: 40 },
  });
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
    result: { bytes: 100, wireBytes: 90, warnings: ['the disk is slow'] },
    progress: { wireBytes: 90, keptBytes: 40 },
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

test('a change of the transfer reaches the engine, the record and the journal, in whatever state', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone({ transfer: { workers: 1, maxRate: 10_000 } });
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  const limits = () => call?.transferControl?.limits();
  call?.observer.phaseStarted('copy-files');
  call?.observer.copyPlanned({ bytesTotal: 200, filesTotal: 2, keptBytes: 0, workers: 1 });
  expect(limits()).toMatchObject({ workers: 1, maxRate: 10_000 });

  const changed = await store.changeTransfer(clone.id, { workers: 3 });
  await eventually(() => limits()?.workers === 3);
  call?.observer.workersChanged(3);
  const error = new CloneError('SOURCE_LOST', 'the backup session was lost');
  call?.observer.interrupted({ attempt: 2, error, pauseMs: 60_000 });
  await eventually(async () => (await stateOf(clone.id)) === 'queued');
  await store.changeTransfer(clone.id, { maxRate: null });
  await eventually(() => limits()?.maxRate === null);
  await eventually(async () => (await journalOf(clone.id)).clone.spec.transfer.maxRate === null);

  expect(changed.spec.transfer).toEqual({ ...clone.spec.transfer, workers: 3 });
  expect(limits()).toEqual({ workers: 3, maxRate: null });
  expect((await store.get(clone.id))?.progress.workers).toHaveLength(3);
  call?.observer.phaseStarted('publish');
  call?.observer.published();
  expect((await store.changeTransfer(clone.id, { workers: 2 })).spec.transfer.workers).toBe(2);
  call?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');
  const { spec } = (await store.get(clone.id)) ?? clone;
  expect(spec).toMatchObject({ transfer: { maxRate: null } });
  await expect(store.changeTransfer(clone.id, { workers: 4 })).rejects.toMatchObject({
    code: 'CLONE_ENDED',
  });
});

test('a clone that is changed while it waits for a slot of its worker begins as it was changed', async () => {
  const engine = playedEngine();
  await using _worker = await startWorker(options(1), engine);
  // The first takes the slot; what its worker took up before it died waits behind it.
  const [first, waiting] = [someClone(), someClone({ transfer: { maxRate: 10_000 } })];
  await store.create(first);
  await eventually(() => engine.calls.length === 1);
  await store.create(waiting);

  await store.changeTransfer(waiting.id, { workers: 5, maxRate: null });
  expect(await stateOf(waiting.id)).toBe('queued');
  engine.calls[0]?.succeed();
  await eventually(() => engine.calls.length === 2);

  const [, call] = engine.calls;
  expect(call?.plan.spec.transfer).toMatchObject({ workers: 5, maxRate: null });
  expect(call?.transferControl?.limits()).toMatchObject({ workers: 5, maxRate: null });
  call?.succeed();
});

test.each(['', ', also if Redis has lost everything meanwhile'])(
  'what was changed holds after a restart of the worker%s',
  async (andLost) => {
    const clone = someClone({ transfer: { workers: 1, maxRate: 10_000 } });
    {
      const engine = playedEngine();
      await using _worker = await startWorker(options(), engine);
      await store.create(clone);
      await eventually(() => engine.calls.length === 1);
      await store.changeTransfer(clone.id, { workers: 4 });
      await eventually(async () => (await journalOf(clone.id)).clone.spec.transfer.workers === 4);
    }
    // While nobody is there it is only a wish.
    if (andLost === '') await store.changeTransfer(clone.id, { maxRate: null });
    else await redis.flush();

    const engine = playedEngine();
    await using _worker = await startWorker(options(), engine);
    await eventually(() => engine.calls.length === 1);

    const transfer = { workers: 4, maxRate: andLost === '' ? null : 10_000 };
    expect(engine.calls[0]?.plan).toMatchObject({ attempt: 2, spec: { transfer } });
    expect(engine.calls[0]?.transferControl?.limits()).toMatchObject(transfer);
    expect((await store.get(clone.id))?.spec).toMatchObject({ transfer });
  },
);

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

test('a worker that stops leaves its clones queued, and the next one goes on with them before anything new', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(1), engine);
  const [first, second] = [someClone(), someClone()];
  await store.create(first);
  await eventually(() => engine.calls.length === 1);
  await store.create(second);
  engine.calls[0]?.observer.phaseStarted('copy-files');
  engine.calls[0]?.observer.sent(70);

  await worker[Symbol.asyncDispose]();

  expect(engine.calls[0]?.signal.reason).toMatchObject({ code: 'WORKER_STOPPED' });
  const waiting = await store.get(first.id);
  expect(waiting).toMatchObject({
    state: 'queued',
    attempt: 1,
    error: null,
    endedAt: null,
    waitingFor: 'the worker of host replica-1 to start again',
    progress: { wireBytes: 70 },
  });
  expect(await store.get(second.id)).toMatchObject({ state: 'queued' });
  expect(await store.host('replica-1')).toMatchObject({ online: false });

  await using _next = await startWorker(options(1), engine);
  await eventually(() => engine.calls.length === 2);
  engine.calls[1]?.observer.phaseStarted('preflight');
  engine.calls[1]?.observer.sent(30);
  await eventually(async () => (await stateOf(first.id)) === 'running');
  expect(await stateOf(second.id)).toBe('queued');
  engine.calls[1]?.succeed();
  await eventually(async () => (await stateOf(first.id)) === 'succeeded');
  await eventually(async () => (await stateOf(second.id)) === 'running');

  expect(engine.calls.map(({ plan: { id, attempt } }) => [id, attempt])).toEqual([
    [first.id, 1],
    [first.id, 2],
    [second.id, 1],
  ]);
  expect(await store.get(first.id)).toMatchObject({
    attempt: 2,
    startedAt: waiting?.startedAt,
    waitingFor: null,
    result: { wireBytes: 100 },
  });
});

test('a worker that stops ends a published clone, which is complete', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  if (call === undefined) throw new Error('not called');
  publishNow(call.observer);

  await worker[Symbol.asyncDispose]();

  expect(await store.get(clone.id)).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_STOPPED', retryable: true, facts: { published: true } },
  });
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

  await giveOutAgain(`${clone.id}-1`);
  await eventually(async () => !(await exists('pgcloned:host-replica-1:wait')));
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
  await eventually(async () => (await store.get(id))?.progress.wireBytes === 70);
  if (interrupted.length > 0) await eventually(async () => (await stateOf(id)) === 'queued');
  child.kill('SIGKILL');
  await once(child, 'exit');
}

test('a clone whose worker was killed goes on when the next one starts, and ends once', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  const died = await store.get(clone.id);
  expect(died).toMatchObject({ state: 'running', progress: { wireBytes: 70 } });

  const engine = playedEngine();
  await using _worker = await startWorker(options(1), engine);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  expect(await store.get(clone.id)).toMatchObject({
    state: 'queued',
    attempt: 2,
    waitingFor: expect.stringMatching(/started again/),
  });
  expect(engine.swept).toEqual([`${clone.id} queued`]);
  // The only slot is taken, and the job of the dead worker is given out once its lock has run out.
  const next = someClone();
  await store.create(next);
  await giveOutAgain(`${clone.id}-1`);
  call?.observer.phaseStarted('preflight');
  call?.observer.sent(30);
  await eventually(async () => (await stateOf(clone.id)) === 'running');
  expect(await stateOf(next.id)).toBe('queued');
  call?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');
  // It runs in Redis a little before it does here.
  await eventually(() => engine.calls.length === 2);

  expect(await store.get(clone.id)).toMatchObject({
    attempt: 2,
    startedAt: died?.startedAt,
    error: null,
    result: { wireBytes: 100 },
    progress: { wireBytes: 100 },
  });
  expect(engine.calls.map(({ plan: { id, attempt } }) => [id, attempt])).toEqual([
    [clone.id, 2],
    [next.id, 1],
  ]);
  // Then there is somebody to take the job again.
  engine.calls[1]?.succeed();
  await eventually(async () => !(await exists(`pgcloned:host-replica-1:${clone.id}-1`)));
});

test('what a dead worker says late is refused', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  const { workerId } = await journalOf(clone.id);
  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);

  await using late = await openOther({ workerId });
  const record = { ...clone, state: 'running' as const, startedAt: clone.createdAt };

  expect(await late.confirm(record, { attempt: 1, workerId })).toBe('refused');
  expect(await store.get(clone.id)).toMatchObject({ attempt: 2 });
});

test('a clone whose worker was killed between two attempts goes on with the one after', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id, ['interrupted']);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);
  engine.calls[0]?.observer.phaseStarted('preflight');
  engine.calls[0]?.succeed();
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls.map(({ plan: { attempt } }) => attempt)).toEqual([3]);
  expect((await store.get(clone.id))?.attempt).toBe(3);
});

test('a Redis that lost everything meanwhile gets the record again of a clone that goes on', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  await redis.flush();

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);

  expect(await store.get(clone.id)).toMatchObject({ state: 'queued', attempt: 2 });
});

test('a clone that was deleted while its worker was away does not come in the way of the one that was asked for instead', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  await store.forget(clone.id, { force: true });
  const instead = someClone({ target: clone.spec.target });
  await store.create(instead);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);

  expect(engine.calls[0]?.plan.id).toBe(instead.id);
  expect(await stateOf(clone.id)).toBe('failed');
  expect(engine.swept).toEqual([`${clone.id} queued`, `${clone.id} failed`]);
});

test.each(['killed', 'stopped'])(
  'a clone that was to be cancelled while its worker was %s ends as cancelled, and its files go',
  async (how) => {
    const engine = playedEngine();
    const clone = someClone();
    await store.create(clone);
    if (how === 'killed') await killWorkerDuring(clone.id);
    else {
      const worker = await startWorker(options(), engine);
      await eventually(() => engine.calls.length === 1);
      await worker[Symbol.asyncDispose]();
      engine.calls.length = 0;
    }
    expect((await store.cancel(clone.id)).state).toBe('cancelling');

    await using _worker = await startWorker(options(), engine);
    await eventually(async () => (await stateOf(clone.id)) === 'cancelled');

    expect(await store.get(clone.id)).toMatchObject({ error: null, instance: { state: 'absent' } });
    expect(engine.swept).toEqual([`${clone.id} queued`, `${clone.id} cancelled`]);
    expect(engine.calls).toEqual([]);
  },
);

test('a clone whose deadline passed while its worker was stopped has failed, and does not go on', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(), engine);
  const clone = someClone({ deadline: new Date(Date.now() + 4_000).toISOString() });
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  await worker[Symbol.asyncDispose]();
  await eventually(async () => (await stateOf(clone.id)) === 'failed');

  await using _worker = await startWorker(options(), engine);

  expect((await store.get(clone.id))?.error).toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  expect((await journalOf(clone.id)).clone.state).toBe('failed');
  expect(engine.swept).toEqual([`${clone.id} queued`, `${clone.id} failed`]);
  expect(engine.calls).toHaveLength(1);
});

test('a clone that was published when its worker was killed ends as failed, and is complete', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), {
    ...engine,
    sweepClone: () => Promise.resolve({ published: true, leftovers: [] }),
  });

  const ended = await store.get(clone.id);
  expect(ended).toMatchObject({
    state: 'failed',
    error: {
      code: 'WORKER_LOST',
      retryable: true,
      phase: 'copy-files',
      facts: { published: true },
    },
  });
  expect(ended?.progress.phases).toContainEqual(
    expect.objectContaining({ name: 'copy-files', state: 'failed', endedAt: ended?.endedAt }),
  );
  expect(engine.calls).toEqual([]);
});

/** Of the 200 bytes that the dying worker had planned 150 were missing when it began to copy. */
async function killWorkerOnceMore(clone: Clone, leastMissingBytes: number): Promise<void> {
  await store.create(clone);
  await killWorkerDuring(clone.id);
  const path = join(scratch.path, 'state', 'runs', `${clone.id}.json`);
  const run = JSON.parse(await readFile(path, 'utf8')) as object;
  await writeFile(path, JSON.stringify({ ...run, deaths: { count: 5, leastMissingBytes } }));
}

test('a clone whose worker died of it again and again is given up', async () => {
  const clone = someClone();
  await killWorkerOnceMore(clone, 150);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  expect(await store.get(clone.id)).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_LOST', retryable: true, facts: { published: false } },
  });
  expect(engine.swept).toEqual([`${clone.id} queued`, `${clone.id} failed`]);
  expect(engine.calls).toEqual([]);
});

test('a clone whose worker died again and again goes on as long as it gets further', async () => {
  const clone = someClone();
  await killWorkerOnceMore(clone, 151);

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);

  expect(engine.calls[0]?.plan.id).toBe(clone.id);
});

test('what a dead worker left and could not be put away is named with its remedy', async () => {
  const clone = someClone();
  await store.create(clone);
  await killWorkerDuring(clone.id);
  const engine = playedEngine();

  await using _worker = await startWorker(options(), {
    ...engine,
    sweepClone: () => Promise.reject(new Error('the disk is broken')),
  });
  await eventually(() => engine.calls.length === 1);
  engine.calls[0]?.fail(new CloneError('SOURCE_LOST', 'the source is gone'));
  await eventually(async () => (await stateOf(clone.id)) === 'failed');

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
    await using queue = await openOther({ workerId: 'another' });
    await queue.confirm({ ...clone, state: 'running' }, { attempt: 1, workerId: 'another' });
  }

  const engine = playedEngine();
  await using _worker = await startWorker(options(), engine);

  expect(await store.get(clone.id)).toMatchObject({
    state: 'failed',
    error: { code: 'WORKER_LOST' },
  });
  expect(engine.swept).toEqual([`${clone.id} failed`]);
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
  engine.calls[0]?.succeed();
  await eventually(async () => (await journalOf(clone.id)).clone.state === 'succeeded');
  await worker[Symbol.asyncDispose]();
  expect((await journalOf(clone.id)).reported).toBe(false);
  await redis.start();
  await using _next = await startWorker(options(), engine);
  await eventually(async () => (await stateOf(clone.id)) === 'succeeded');

  expect(engine.calls).toHaveLength(1);
  expect(engine.swept).toEqual([]);
});

test('the next worker knows from what the clone was begun', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  engine.calls[0]?.observer.begunFrom('primary');
  await worker[Symbol.asyncDispose]();

  await using _next = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 2);

  expect(engine.calls.map(({ plan }) => plan.begunFrom)).toEqual([null, 'primary']);
});

test('a clone that was suspended while Redis was away goes on all the same', async () => {
  const engine = playedEngine();
  const worker = await startWorker(options(), engine);
  const clone = someClone();
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  await redis.stop();
  await worker[Symbol.asyncDispose]();
  await redis.start();
  await using _next = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 2);

  expect(engine.calls.map(({ plan: { id, attempt } }) => [id, attempt])).toEqual([
    [clone.id, 1],
    [clone.id, 2],
  ]);
  await eventually(async () => (await stateOf(clone.id)) === 'queued');
  expect((await store.get(clone.id))?.attempt).toBe(2);
});

test('the journal survives files that are none of its own', async () => {
  const engine = playedEngine();
  await (await startWorker(options(), engine))[Symbol.asyncDispose]();
  await writeFile(join(scratch.path, 'state', 'runs', 'notes.json'), 'not json');

  await using _worker = await startWorker(options(), engine);

  expect(await readdir(join(scratch.path, 'state', 'runs'))).toEqual(['notes.json']);
});

/** As BullMQ does it with a job whose lock ran out. */
async function giveOutAgain(jobId: string): Promise<void> {
  const queue = 'pgcloned:host-replica-1';
  const cli = (...words: string[]) => runAsPartsUser(['redis-cli', '-s', redis.socket, ...words]);
  await cli('RPUSH', `${queue}:wait`, jobId);
  await cli('ZADD', `${queue}:marker`, '0', '0');
}

/** The side of the queue that another worker of this host would have, on another machine or before its death. */
async function openOther({ workerId }: { readonly workerId: string }): Promise<HostQueue> {
  return await openHostQueue({
    redisUrl: redis.url,
    host: 'replica-1',
    machineId: await machineIdNow(),
    workerId,
    concurrency: 1,
    facts: () => Promise.resolve({ ...factsOfAnother, workerId }),
    run: () => Promise.resolve(),
    preflight: () => Promise.reject(new Error('no test asks for it')),
    onCancelRequested: () => {},
    onTransferWished: () => {},
    onInstanceWished: () => {},
    onRedisEmpty: () => {},
    onFenceLost: () => {},
    onError: () => {},
    signal: new AbortController().signal,
  });
}

async function machineIdNow(): Promise<string> {
  const words = ['redis-cli', '-s', redis.socket, 'HGET', 'pgcloned:host:replica-1', 'machineId'];
  const { stdout } = await runAsPartsUser(words);
  return stdout.toString().trim() || 'another';
}

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

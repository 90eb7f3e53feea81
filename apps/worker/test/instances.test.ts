/** The life of a clone after its end, whatever becomes of its worker and of Redis; the engine does what the test says. */
import { once } from 'node:events';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, CloneError, type InstanceWish } from '@pgcloned/contract';
import { type CloneStore, openCloneStore } from '@pgcloned/queue';
import {
  mountFilesystem,
  type PrivateRedis,
  runAsPartsUser,
  runsAsRoot,
  type ScratchDirectory,
  scratchDirectory,
  startRedis,
} from '@pgcloned/testbed';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { type Engine, startWorker } from '../src/index.ts';
import { watchInstances } from '../src/instances.ts';
import { NO_DEATHS, openRunJournal } from '../src/run-journal.ts';
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

const options = () => workerOptions({ redisUrl: redis.url, directory: scratch.path });
const stateOf = async (id: string) => (await store.get(id))?.instance.state;

/** Its clones lie there until they are removed, and no server runs. */
function engineWithFiles(more: Partial<Engine> = {}) {
  const removed: string[] = [];
  const engine = {
    ...playedEngine(),
    lookAtInstance: ({ id }: { readonly id: string }) =>
      Promise.resolve({ state: removed.includes(id) ? 'absent' : 'stopped', port: null } as const),
    removeInstance: ({ id }: { readonly id: string }) => {
      removed.push(id);
      return Promise.resolve([]);
    },
    ...more,
  };
  return { ...engine, removed };
}

async function succeed(engine: ReturnType<typeof engineWithFiles>, clone: Clone): Promise<void> {
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);
  const [call] = engine.calls;
  if (call !== undefined) publishNow(call.observer);
  call?.observer.instance({ state: 'stopped' });
  call?.succeed();
  await eventually(async () => (await store.get(clone.id))?.state === 'succeeded');
}

test('a removal that was begun is brought to its end by the next worker', async () => {
  const begun: string[] = [];
  const stuck = engineWithFiles({
    removeInstance: async ({ id }, { signal }) => {
      begun.push(id);
      return await new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          reject(signal.reason as Error);
        });
      });
    },
  });
  const clone = someClone();
  {
    await using _worker = await startWorker(options(), stuck);
    await succeed(stuck, clone);
    await store.changeInstance(clone.id, { remove: true });
    await eventually(() => begun.length === 1);
  }
  // Redis has forgotten that anybody wished for it; the journal has not.
  await redis.flush();
  const engine = engineWithFiles();
  await using _worker = await startWorker(options(), engine);

  await eventually(async () => (await stateOf(clone.id)) === 'removed');
  expect(engine.removed).toEqual([clone.id]);
});

test('a clone begins when what was asked for before of the one in its place is done', async () => {
  const removal = Promise.withResolvers<readonly []>();
  const engine = engineWithFiles({ removeInstance: async () => await removal.promise });
  await using _worker = await startWorker(options(), engine);
  const old = someClone();
  await succeed(engine, old);
  const { dataDirectory } = old.spec.target;
  const clone = someClone({ target: { host: 'replica-1', dataDirectory } });

  await store.changeInstance(old.id, { remove: true });
  await store.create(clone);
  await eventually(async () => (await store.get(clone.id))?.state === 'running');
  await delay(300);
  const early = engine.calls.length;
  removal.resolve([]);

  await eventually(() => engine.calls.length === 2);
  expect(early).toBe(1);
});

test('a clone that is protected while it is made is so although Redis forgets it', async () => {
  const engine = engineWithFiles();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone({ ttl: 3600 });
  await store.create(clone);
  await eventually(() => engine.calls.length === 1);

  await store.changeInstance(clone.id, { protected: true });
  const journal = join(scratch.path, 'state', 'runs', `${clone.id}.json`);
  await eventually(
    async () => JSON.parse(await readFile(journal, 'utf8')).clone.instance.protected === true,
  );
  await redis.flush();
  const [call] = engine.calls;
  if (call !== undefined) publishNow(call.observer);
  call?.observer.instance({ state: 'stopped' });
  call?.succeed();

  await eventually(async () => (await store.get(clone.id))?.state === 'succeeded');
  expect((await store.get(clone.id))?.instance.protected).toBe(true);
});

test('a clone whose time is over when another one has taken its place is absent, and that is no error', async () => {
  let isReplaced = false;
  const engine = engineWithFiles({
    removeInstance: ({ id }) => {
      isReplaced = true;
      const facts = { clone: id, found: 'f'.repeat(32) };
      return Promise.reject(new CloneError('INSTANCE_CHANGED', 'it holds another', { facts }));
    },
    lookAtInstance: () =>
      Promise.resolve({ state: isReplaced ? 'absent' : 'stopped', port: null } as const),
  });
  await using _worker = await startWorker(options(), engine);
  const clone = someClone({ ttl: 1 });
  await succeed(engine, clone);

  await eventually(async () => (await stateOf(clone.id)) === 'absent');

  expect((await store.get(clone.id))?.instance.error).toBeNull();
});

test('a clone whose time is over goes although Redis takes nothing, as on a full disk, and its record follows', async () => {
  const engine = engineWithFiles();
  await using _worker = await startWorker(options(), engine);
  const clone = someClone({ ttl: 3 });
  await succeed(engine, clone);
  const setReplicasWanted = async (count: string) => {
    const config = ['CONFIG', 'SET', 'min-replicas-to-write', count];
    await runAsPartsUser(['redis-cli', '-s', redis.socket, ...config]);
  };

  // It answers whoever reads, and refuses whoever writes.
  await setReplicasWanted('1');
  try {
    await eventually(() => engine.removed.length === 1);
  } finally {
    await setReplicasWanted('0');
  }

  await eventually(async () => (await stateOf(clone.id)) === 'removed');
});

test('whoever protects a clone at the moment when its time is over keeps it', async () => {
  const made = someClone({ ttl: 1 });
  const instance = { ...made.instance, state: 'stopped', expiresAt: made.createdAt } as const;
  const clone: Clone = { ...made, state: 'succeeded', endedAt: made.createdAt, instance };
  const fence = { attempt: 1, workerId: 'w' };
  const journal = await openRunJournal({ directory: scratch.path, onUnreadable: () => {} });
  await journal.write({
    ...{ clone, workerId: 'w', reported: true, filled: [], deaths: NO_DEATHS },
    ...{ begunFrom: null, hasStopped: false },
  });
  let wishedInstance: InstanceWish | null = null;
  const engine = engineWithFiles();
  await using _instances = await watchInstances({
    host: options(),
    journal,
    queue: {
      read: () => {
        const seen = wishedInstance;
        // Just after the worker has looked.
        wishedInstance ??= { protected: true };
        const stored = { clone, fence, cancelRequested: false, wishedTransfer: null };
        return Promise.resolve({ ...stored, wishedInstance: seen });
      },
      wishedInstances: () => Promise.resolve([]),
      updateEnded: (_clone, _fence, { done, unlessWished }) =>
        Promise.resolve(unlessWished === true && done === null ? 'wished' : 'stored'),
      confirm: () => Promise.resolve('stored'),
    },
    engine,
    givingWay: [],
    isBeingMade: () => false,
    log: pino({ level: 'silent' }),
  });

  await eventually(async () => {
    const kept = (await journal.read(clone.id))?.clone.instance;
    return kept?.protected === true || kept?.state === 'removed';
  });

  expect(engine.removed).toEqual([]);
});

test('a clone whose removal the next worker brought to its end is removed, and not just absent', async () => {
  let isBegun = false;
  const clone = someClone();
  const dying = engineWithFiles({
    removeInstance: async (_plan, { signal }) => {
      isBegun = true;
      await once(signal, 'abort');
      throw signal.reason;
    },
  });
  {
    await using _worker = await startWorker(options(), dying);
    await succeed(dying, clone);
    await store.changeInstance(clone.id, { remove: true });
    await eventually(() => isBegun);
  }
  const engine = engineWithFiles();
  await using _worker = await startWorker(options(), engine);

  await eventually(async () => (await store.get(clone.id))?.waitingFor === null);

  expect(await stateOf(clone.id)).toBe('removed');
  expect(engine.removed).toEqual([clone.id]);
});

test('a reset that its worker died in goes on before the time of the old clone is over, and starts its server again if nothing comes of it', async () => {
  const old = someClone({ ttl: 3 });
  const reset = { ...someClone(), resetOf: old.id };
  const dying = engineWithFiles({
    giveWay: async (_plan, { beforeStop }) => {
      await beforeStop();
      return { port: 5500 };
    },
  });
  {
    await using _worker = await startWorker(options(), dying);
    await succeed(dying, old);
    await store.create(reset);
    await eventually(() => dying.calls.length === 2);
  }
  const { expiresAt } = (await store.get(old.id))?.instance ?? {};
  await eventually(() => Date.now() > Date.parse(expiresAt ?? ''));
  const looked = Promise.withResolvers<void>();
  const started: string[] = [];
  const engine = engineWithFiles({
    lookAtInstance: () => {
      looked.resolve();
      return Promise.resolve({ state: 'stopped', port: null });
    },
    // It does not run any more.
    giveWay: async () => {
      await looked.promise;
      return { port: 5500 };
    },
    startInstance: ({ id }) => {
      started.push(id);
      return Promise.resolve();
    },
  });
  await using _worker = await startWorker(options(), engine);
  await eventually(() => engine.calls.length === 1);
  expect(engine.removed).toEqual([]);
  engine.calls[0]?.fail(new CloneError('SOURCE_UNREACHABLE', 'no server runs there'));

  await eventually(async () => (await store.get(reset.id))?.state === 'failed');

  expect(started).toEqual([old.id]);
});

test.skipIf(!runsAsRoot)(
  'the files of a clone go although the disk of the journal is full, and a clone that is begun meanwhile says that it is',
  async () => {
    await using disk = await mountFilesystem({ type: 'tmpfs', bytes: 1024 ** 2 });
    const filler = join(disk.path, 'filler');
    const engine = engineWithFiles({
      removeInstance: async ({ id }) => {
        engine.removed.push(id);
        await rm(filler);
        return [];
      },
    });
    const [clone, other] = [someClone(), someClone()];
    const there = { ...options(), stateDirectory: join(disk.path, 'state') };
    await using _worker = await startWorker(there, engine);
    await succeed(engine, clone);
    const journal = join(disk.path, 'state', 'runs', `${clone.id}.json`);
    const written = async () => JSON.parse(await readFile(journal, 'utf8'));
    // Until that has replaced the one before, there are two of it, and then room for another one.
    await eventually(async () => (await written()).reported);
    await expect(writeFile(filler, Buffer.alloc(1024 ** 2))).rejects.toThrow('ENOSPC');

    await store.create(other);
    await eventually(async () => (await store.get(other.id))?.state === 'failed');
    expect((await store.get(other.id))?.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      message: 'the state directory of the worker has no space left',
      hint: expect.stringContaining('state directory'),
    });
    await store.changeInstance(clone.id, { remove: true });
    await eventually(async () => (await stateOf(clone.id)) === 'removed');

    expect(engine.removed).toEqual([clone.id]);
    expect((await written()).clone.instance.state).toBe('removed');
  },
);

test('more time that was asked for while no worker ran holds, although the old time is over', async () => {
  const clone = someClone({ ttl: 3 });
  const first = engineWithFiles();
  {
    await using _worker = await startWorker(options(), first);
    await succeed(first, clone);
  }
  await store.changeInstance(clone.id, { ttl: 3600, askedAt: new Date().toISOString() });
  const expiresAt = Date.parse((await store.get(clone.id))?.instance.expiresAt ?? '');
  expect(first.removed).toEqual([]);
  await delay(3_100);
  const engine = engineWithFiles();
  await using _worker = await startWorker(options(), engine);

  await eventually(async () => (await store.get(clone.id))?.waitingFor === null);

  expect(engine.removed).toEqual([]);
  const instance = (await store.get(clone.id))?.instance;
  expect(instance).toMatchObject({ state: 'stopped' });
  expect(Date.parse(instance?.expiresAt ?? '')).toBeGreaterThanOrEqual(expiresAt);
});

test('a clone that is protected by what its host has written down stays, although Redis let its removal pass', async () => {
  const engine = engineWithFiles();
  const clone = someClone();
  {
    await using _worker = await startWorker(options(), engine);
    await succeed(engine, clone);
  }
  const journal = join(scratch.path, 'state', 'runs', `${clone.id}.json`);
  const run = JSON.parse(await readFile(journal, 'utf8'));
  run.clone.instance.protected = true;
  await writeFile(journal, JSON.stringify(run));
  await store.changeInstance(clone.id, { remove: true });
  await using _worker = await startWorker(options(), engine);

  await eventually(async () => (await store.get(clone.id))?.waitingFor === null);

  expect(engine.removed).toEqual([]);
  expect((await store.get(clone.id))?.instance).toMatchObject({
    state: 'stopped',
    protected: true,
    error: { code: 'CLONE_PROTECTED' },
  });
});

test('a clone whose time is over while another one works in its directory is what it was, and goes later', async () => {
  let asked = 0;
  const engine = engineWithFiles({
    removeInstance: () => {
      asked += 1;
      return Promise.reject(new CloneError('TARGET_BUSY', 'another clone works on it'));
    },
  });
  const clone = someClone({ ttl: 1 });
  await using _worker = await startWorker(options(), engine);
  await succeed(engine, clone);
  await eventually(() => asked === 1);

  await eventually(async () => (await stateOf(clone.id)) === 'stopped');

  expect((await store.get(clone.id))?.instance.error).toBeNull();
  const journal = join(scratch.path, 'state', 'runs', `${clone.id}.json`);
  await eventually(
    async () => JSON.parse(await readFile(journal, 'utf8')).clone.instance.state === 'stopped',
  );
});

test('a Redis that has lost everything learns of the clones that have files, and a forgotten one stays away', async () => {
  const engine = engineWithFiles();
  const kept = someClone();
  const forgotten = someClone();
  {
    await using _worker = await startWorker(options(), engine);
    await succeed(engine, kept);
  }
  await redis.flush();
  await using _worker = await startWorker(options(), engine);
  await eventually(async () => (await stateOf(kept.id)) === 'stopped');

  await store.create(forgotten);
  await eventually(() => engine.calls.length === 2);
  engine.calls[1]?.observer.instance({ state: 'stopped' });
  engine.calls[1]?.succeed();
  await eventually(async () => (await store.get(forgotten.id))?.state === 'succeeded');
  await store.forget(forgotten.id, { force: false });
  // The worker sees that its files are gone, and says so to nobody.
  engine.removed.push(forgotten.id, kept.id);
  await eventually(async () => (await stateOf(kept.id)) === 'absent');
  expect(await store.get(forgotten.id)).toBeUndefined();
});

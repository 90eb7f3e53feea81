/** The worker's side, against a real Redis that is also stopped, started and emptied. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Clone } from '@pgcloned/contract';
import { type PrivateRedis, startRedis } from '@pgcloned/testbed';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type CloneStore, openCloneStore } from '../src/index.ts';
import { ended, eventually, openWorker, running, someClone } from './clones.ts';

const resources = new AsyncDisposableStack();
let redis: PrivateRedis;
let store: CloneStore;
const fence = { attempt: 1, workerId: 'worker-1' };

beforeAll(async () => {
  redis = resources.use(await startRedis());
  store = resources.use(await openCloneStore({ redisUrl: redis.url, onError: () => {} }));
});
afterAll(async () => {
  await resources.disposeAsync();
});
beforeEach(async () => {
  await redis.flush();
  // After a test in which it was away.
  await eventually(
    async () =>
      await store.ping().then(
        () => true,
        () => false,
      ),
  );
});

test('a clone is given to the worker of its host, and only to it', async () => {
  const taken: string[] = [];
  const take = (worker: string) => (clone: { id: string }) => {
    taken.push(`${worker} ${clone.id}`);
    return Promise.resolve();
  };
  await using one = await openWorker(redis.url, { run: take('one') });
  await using two = await openWorker(redis.url, { host: 'replica-2', run: take('two') });
  one.start();
  two.start();
  const clone = someClone({ host: 'replica-2' });

  await store.create(clone);
  await eventually(() => taken.length > 0);

  expect(taken).toEqual([`two ${clone.id}`]);
});

test('a host works on as many clones at a time as it has slots', async () => {
  let current = 0;
  let most = 0;
  let done = 0;
  await using worker = await openWorker(redis.url, {
    run: async (clone) => {
      current += 1;
      most = Math.max(most, current);
      await worker.confirm(running(clone), fence);
      await delay(50);
      await worker.confirm(ended(clone, 'succeeded'), fence);
      current -= 1;
      done += 1;
    },
  });
  worker.start();

  for (let count = 0; count < 5; count++) await store.create(someClone());
  await eventually(() => done === 5);

  expect(most).toBe(2);
});

test('a clone that was cancelled while it waited is not started', async () => {
  const taken: string[] = [];
  const [first, second] = [someClone(), someClone()];
  await store.create(first);
  await store.create(second);
  await store.cancel(first.id);
  await using worker = await openWorker(redis.url, {
    run: (clone) => {
      taken.push(clone.id);
      return Promise.resolve();
    },
  });

  worker.start();
  await eventually(() => taken.length > 0);

  expect(taken).not.toContain(first.id);
});

test('a queued clone whose job got lost is started all the same', async () => {
  const clone = someClone();
  await store.create(clone);
  const raw = new Redis(redis.socket);
  await raw.del(...(await raw.keys('pgcloned:host-*')));
  raw.disconnect();
  const taken = Promise.withResolvers<string>();
  await using worker = await openWorker(redis.url, {
    run: (record) => {
      taken.resolve(record.id);
      return Promise.resolve();
    },
  });

  worker.start();

  expect(await taken.promise).toBe(clone.id);
});

test.each<[string, (clone: Clone) => unknown]>([
  [
    'breaks a rule of the contract',
    ({ spec, ...clone }) => ({
      ...clone,
      spec: { ...spec, target: { ...spec.target, dataDirectory: '../etc' } },
    }),
  ],
  ['is of another host', (clone) => ({ ...clone, host: 'replica-2' })],
  ['is of another clone', (clone) => ({ ...clone, id: clone.id.replaceAll(/./g, '0') })],
  ['is no clone', () => []],
])('a record that %s is not run', async (_, tamper) => {
  const [bad, good] = [someClone(), someClone()];
  await store.create(bad);
  await store.create(good);
  const raw = new Redis(redis.socket);
  await raw.hset(`pgcloned:clone:${bad.id}`, 'record', JSON.stringify(tamper(bad)));
  raw.disconnect();
  const taken: string[] = [];
  const errors: Error[] = [];
  await using worker = await openWorker(redis.url, {
    run: (clone) => {
      taken.push(clone.id);
      return Promise.resolve();
    },
    onError: (error) => errors.push(error),
  });

  worker.start();
  await eventually(() => taken.length > 0 && errors.length > 0);

  // Perhaps twice: the look for queued records without a job is not in step with the queue.
  expect(new Set(taken)).toEqual(new Set([good.id]));
  expect(errors[0]?.message).toContain(`the record of clone ${bad.id}`);
});

test('the record belongs to the worker that took the clone first', async () => {
  const clone = someClone();
  await store.create(clone);
  const lost: string[] = [];
  await using one = await openWorker(redis.url);
  await using two = await openWorker(redis.url, { onFenceLost: (id) => lost.push(id) });

  expect(await one.confirm(running(clone), fence)).toBe('stored');
  expect(await two.confirm(running(clone), { attempt: 1, workerId: 'worker-2' })).toBe('refused');
  expect(lost).toEqual([clone.id]);
  expect(await two.confirm(ended(clone, 'failed'), fence)).toBe('stored');
  expect(await one.confirm(running(clone), fence)).toBe('refused');
  expect(await one.confirm(running(clone), { ...fence, attempt: 2 })).toBe('refused');
  expect(await store.get(clone.id)).toMatchObject({ state: 'failed' });
});

test('a newer attempt takes the record over, and the older one cannot write it any more', async () => {
  const clone = someClone();
  await store.create(clone);
  await using worker = await openWorker(redis.url);
  await worker.confirm(running(clone), fence);

  const second = { ...running(clone), attempt: 2 };
  expect(await worker.confirm(second, { attempt: 2, workerId: 'worker-2' })).toBe('stored');
  expect(await worker.confirm(running(clone), fence)).toBe('refused');
});

test('two machines with one name are refused, a restarted worker is not', async () => {
  await using _first = await openWorker(redis.url);

  await expect(openWorker(redis.url, { machineId: 'machine-2' })).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
    message: 'another machine is registered as host replica-1',
  });
  await using _again = await openWorker(redis.url, { workerId: 'worker-2' });
});

test('the name of a machine that was stopped can be taken over', async () => {
  await (await openWorker(redis.url))[Symbol.asyncDispose]();

  await using _second = await openWorker(redis.url, { machineId: 'machine-2' });
});

test('no more clones are taken once that was stopped', async () => {
  const taken: string[] = [];
  await using worker = await openWorker(redis.url, {
    run: (clone) => {
      taken.push(clone.id);
      return Promise.resolve();
    },
  });
  worker.start();
  await store.create(someClone());
  await eventually(() => taken.length === 1);

  await worker.stopTaking();
  await store.create(someClone());
  await delay(300);

  expect(taken).toHaveLength(1);
});

test('of many changes in a short time the last one arrives', async () => {
  const clone = someClone();
  await store.create(clone);
  await using worker = await openWorker(redis.url);

  for (let bytesDone = 0; bytesDone <= 100; bytesDone++) {
    worker.publish({ ...running(clone), progress: { ...clone.progress, bytesDone } }, fence);
  }

  await eventually(async () => (await store.get(clone.id))?.progress.bytesDone === 100);
});

test('what is published while Redis is away arrives when it is back, and the API says 503 meanwhile', async () => {
  const clone = someClone();
  await store.create(clone);
  const errors: Error[] = [];
  await using worker = await openWorker(redis.url, { onError: (error) => errors.push(error) });
  worker.start();
  await worker.confirm(running(clone), fence);

  await redis.stop();
  const end = worker.confirm(ended(clone, 'succeeded'), fence);
  await expect(store.get(clone.id)).rejects.toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
  await expect(store.create(someClone())).rejects.toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
  await expect(store.list({ pageSize: 1 })).rejects.toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
  await expect(store.ping()).rejects.toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
  const events = store.watch(clone.id, { lastEventId: null, signal: AbortSignal.timeout(60_000) });
  await expect(events[Symbol.asyncIterator]().next()).rejects.toMatchObject({
    code: 'QUEUE_UNAVAILABLE',
  });
  await eventually(() => errors.length > 0);
  await redis.start();

  expect(await end).toBe('stored');
  await eventually(async () => {
    const state = await store.get(clone.id).catch(() => undefined);
    return state?.state === 'succeeded';
  });
  expect(errors.filter(({ message }) => message === 'redis does not answer')).toHaveLength(1);
});

test('an event stream outlives an outage', async () => {
  const clone = someClone();
  await store.create(clone);
  await using worker = await openWorker(redis.url);
  await worker.confirm(running(clone), fence);
  const seen: string[] = [];

  for await (const { event } of store.watch(clone.id, {
    lastEventId: null,
    signal: AbortSignal.timeout(60_000),
  })) {
    seen.push(event);
    if (seen.length > 1) continue;
    await redis.stop();
    await redis.start();
    await worker.confirm(ended(clone, 'succeeded'), fence);
  }

  expect(seen).toEqual(['clone', 'end']);
});

test('an emptied Redis gets the records of running clones again, and jobs still arrive', async () => {
  const clone = someClone();
  await store.create(clone);
  const taken: string[] = [];
  const finish = Promise.withResolvers<void>();
  await using worker = await openWorker(redis.url, {
    run: async (record) => {
      taken.push(record.id);
      await worker.confirm(running(record), fence);
      await finish.promise;
      await worker.confirm(ended(record, 'succeeded'), fence);
    },
  });
  worker.start();
  await eventually(async () => (await store.get(clone.id))?.state === 'running');

  await redis.flush();
  await eventually(async () => (await store.get(clone.id)) !== undefined);
  const next = someClone();
  await store.create(next);
  await eventually(() => taken.length === 2);

  expect(taken).toEqual([clone.id, next.id]);
  expect(await store.get(clone.id)).toMatchObject({ state: 'running', contact: 'ok' });
  expect(await store.host('replica-1')).toMatchObject({ online: true });
  finish.resolve();
  await eventually(
    async () => (await store.list({ state: 'succeeded', pageSize: 9 })).clones.length === 2,
  );
});

test('closing does not wait for a Redis that is away', async () => {
  const clone = someClone();
  await store.create(clone);
  const worker = await openWorker(redis.url);
  worker.start();
  await worker.confirm(running(clone), fence);
  const other = await openCloneStore({ redisUrl: redis.url, onError: () => {} });
  await other.get(clone.id);

  await redis.stop();
  const end = worker.confirm(ended(clone, 'succeeded'), fence);
  await worker[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();

  expect(await end).toBe('unavailable');
  await redis.start();
});

test('a worker waits for a Redis that is not there yet, until it is told to stop', async () => {
  await redis.stop();
  const controller = new AbortController();
  const stopped = openWorker(redis.url, { signal: controller.signal });
  controller.abort(new Error('stopped'));
  await expect(stopped).rejects.toThrow('stopped');

  const opened = openWorker(redis.url);
  await redis.start();

  await using worker = await opened;
  expect(await worker.openClones()).toEqual([]);
});

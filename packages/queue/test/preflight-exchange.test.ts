/** A question to the worker of a host, through a real Redis, and what whoever waits is told when there is none. */
import type { PreflightReport } from '@pgcloned/contract';
import { type PrivateRedis, startRedis } from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type CloneStore, openCloneStore } from '../src/index.ts';
import { openWorker, someClone } from './clones.ts';

const { signal } = new AbortController();
const resources = new AsyncDisposableStack();
let redis: PrivateRedis;
let store: CloneStore;

beforeAll(async () => {
  redis = resources.use(await startRedis());
  store = resources.use(await openCloneStore({ redisUrl: redis.url, onError: () => {} }));
});
afterAll(async () => {
  await resources.disposeAsync();
});
beforeEach(async () => {
  await redis.flush();
});

const report: PreflightReport = {
  ready: true,
  findings: [],
  notChecked: [],
  facts: { source: null, host: { rsyncVersion: null, filesystems: [] }, estimate: null },
  durationMs: 1,
};
const { spec } = someClone();

test('a host that is away is named at once with what is to be started, and answers once it is there', async () => {
  {
    await using worker = await openWorker(redis.url);
    worker.start();
  }

  await expect(store.preflight(spec, { signal })).rejects.toMatchObject({
    code: 'HOST_UNAVAILABLE',
    message: 'the worker of host replica-1 is offline',
    hint: expect.stringContaining('Start `pgcloned worker` on that host'),
    retryable: true,
  });
  await using worker = await openWorker(redis.url, {
    preflight: () => Promise.resolve(report),
  });
  worker.start();
  expect(await store.preflight(spec, { signal })).toEqual(report);
});

test('a question that went down with its worker is answered by the next one', async () => {
  const asked = Promise.withResolvers<void>();
  const first = await openWorker(redis.url, {
    preflight: () => {
      asked.resolve();
      return new Promise<never>(() => {});
    },
  });
  first.start();
  const answer = store.preflight(spec, { signal });
  await asked.promise;

  await first[Symbol.asyncDispose]();
  await using second = await openWorker(redis.url, {
    workerId: 'worker-2',
    preflight: () => Promise.resolve(report),
  });
  second.start();

  expect(await answer).toEqual(report);
});

/** An API over a real store and Redis, and a registered host whose worker does what a test tells it to. */
import type { HostFacts } from '@pgcloned/contract';
import { type HostQueue, openCloneStore, openHostQueue } from '@pgcloned/queue';
import { startRedis } from '@pgcloned/testbed';
import type { LightMyRequestResponse } from 'fastify';
import { asOperator, openApi } from './harness.ts';

const FACTS: HostFacts = {
  name: 'replica-1',
  machineId: 'machine-1',
  workerId: 'worker-1',
  version: '0.1.0',
  contract: { min: 1, max: 1 },
  postgresMajors: [15],
  dataRoots: ['/var/lib/postgresql'],
  sources: ['orders', 'billing'],
  allowedSettings: ['archive_command'],
  filesystems: [],
  concurrency: 1,
  runningClones: [],
};

export const FENCE = { attempt: 1, workerId: FACTS.workerId };

/** A valid body; every clone of a test needs a directory of its own. */
export function specFor(directory: string, more: object = {}) {
  return {
    source: { name: 'orders' },
    target: { host: 'replica-1', dataDirectory: `/var/lib/postgresql/15/${directory}` },
    ...more,
  };
}

export async function openProduct() {
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await startRedis());
  const store = stack.use(await openCloneStore({ redisUrl: redis.url, onError: () => {} }));
  const { app, lines } = stack.use(await openApi(store));
  const everything = stack.move();
  return {
    app,
    lines,
    redis,
    store,
    /** A body as `POST /v1/clones` takes it. */
    post: async (body: object, url = '/v1/clones', headers: Record<string, string> = {}) =>
      await app.inject({ method: 'POST', url, headers: { ...asOperator, ...headers }, body }),
    /** Registers the host `replica-1`. It takes no clone by itself. */
    register: async (): Promise<HostQueue> =>
      everything.use(
        await openHostQueue({
          redisUrl: redis.url,
          host: FACTS.name,
          machineId: FACTS.machineId,
          workerId: FACTS.workerId,
          concurrency: 1,
          facts: async () => await Promise.resolve(FACTS),
          run: async () => {},
          preflight: () => Promise.reject(new Error('no test asks for it')),
          onCancelRequested: () => {},
          onTransferWished: () => {},
          onInstanceWished: () => {},
          onRedisEmpty: () => {},
          onFenceLost: () => {},
          onError: () => {},
          signal: new AbortController().signal,
        }),
      ),
    [Symbol.asyncDispose]: async () => {
      await everything.disposeAsync();
    },
  };
}

/** The code of a problem, after it was made sure that it is one. */
export function problemIn(response: LightMyRequestResponse) {
  const problem = response.json<{ status: number; code: string; title: string }>();
  if (
    response.headers['content-type']?.startsWith('application/problem+json') !== true ||
    problem.status !== response.statusCode ||
    problem.title === ''
  ) {
    throw new Error(`no problem but ${response.payload}`);
  }
  return problem;
}

/**
 * API and worker as processes of their own beside a Redis that is stopped or emptied, and an API that is killed, in the
 * middle of a copy: the clone goes on, is made once, and its record is whole in the end. A worker that is killed is missed.
 */
import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { type CloneEvent, connectApi } from '@pgcloned/client';
import { type Clone, PHASES } from '@pgcloned/contract';
import { listProcesses, type PrivateRedis, runAsPartsUser, startRedis } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Product, SLOW, startProduct } from './product.ts';

const OUTAGE_MS = 20_000;

/** Longer than the outage, with a beginning before it and an end after it. */
const LASTING = { ...SLOW, maxRate: 700_000 };

const owned = new AsyncDisposableStack();
let redis: PrivateRedis;
let product: Product;

beforeAll(async () => {
  redis = owned.use(await startRedis());
  product = owned.use(
    await startProduct({
      parts: ['api', 'worker'],
      configuration: { redis: redis.url },
      worker: { leaseSeconds: 3 },
      source: { settings: { log_statement: 'all' } },
    }),
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

const request: Product['pgcloned']['request'] = async (...call) =>
  await product.pgcloned.request(...call);

async function copying(name: string, transfer: object): Promise<Clone> {
  const { id } = await product.create(name, { transfer });
  return await product.until(id, ({ progress }) => progress.bytesDone > 500_000);
}

/** What the clone runs at the source: seen twice, it must be the same. */
async function daemonOf({ id }: Clone): Promise<number> {
  const daemons = (await listProcesses()).filter(({ args }) =>
    new RegExp(`^rsync --daemon .*pgcloned_${id}_`).test(args),
  );
  const pids = daemons.map(({ pid }) => pid);
  // Each connection has a process of its own, a child of the one that listens.
  const [listener] = daemons.filter(({ parentPid }) => !pids.includes(parentPid));
  return listener?.pid ?? 0;
}

async function bytesCopied({ spec }: Clone): Promise<number> {
  const { stdout } = await runAsPartsUser(['du', '-s', '-b', spec.target.dataDirectory], {
    accept: 'any',
  });
  return Number.parseInt(stdout.toString(), 10);
}

/** Settles once the API can serve again. */
async function recovered(): Promise<void> {
  const deadlineMs = Date.now() + 30_000;
  while ((await request('GET', '/readyz')).status !== 200) {
    expect(Date.now()).toBeLessThan(deadlineMs);
    await delay(50);
  }
}

/** Succeeded, with everything that a clone without any trouble has in its record, and begun once. */
async function expectMadeOnce({ id }: Clone): Promise<void> {
  const clone = await product.ended(id);
  expect(clone).toMatchObject({
    state: 'succeeded',
    contact: 'ok',
    attempt: 1,
    startedAt: expect.any(String),
    endedAt: expect.any(String),
    result: { verification: { transfer: 'passed', wal: 'passed' } },
    error: null,
    leftovers: [],
  });
  const { phases, bytesDone, bytesTotal, filesDone, filesTotal } = clone.progress;
  expect(phases.map(({ state }) => state)).toEqual(PHASES.map(() => 'done'));
  expect([bytesDone, filesDone]).toEqual([bytesTotal, filesTotal]);

  const begun = product.logged(id).filter((message) => /^phase .* begins$/.test(message));
  expect(begun).toEqual(PHASES.map((phase) => `phase ${phase} begins`));
  // The label of a backup, as the log of the source has it.
  const backups = readFileSync(product.source.primary.logFile, 'utf8').split(`'pgcloned ${id}'`);
  expect(backups).toHaveLength(2);
  await product.expectNothingLeft(clone);
}

/** Collects the events of a clone across whatever happens meanwhile. */
async function collectEvents(id: string): Promise<readonly CloneEvent[]> {
  const { url, token } = product.pgcloned;
  const events: CloneEvent[] = [];
  const signal = AbortSignal.timeout(100_000);
  for await (const event of connectApi({ url, token }).watch(id, { signal })) events.push(event);
  return events;
}

/** Every line once, in order, and the end. */
async function expectAllSaid(events: readonly CloneEvent[], { id }: Clone): Promise<void> {
  const { lines } = (await request('GET', `/v1/clones/${id}/logs`)).body;
  expect(events.filter(({ event }) => event === 'log').map(({ data }) => data)).toEqual(lines);
  for (const phase of PHASES) {
    expect(lines).toContainEqual(expect.objectContaining({ message: `phase ${phase} is done` }));
  }
  expect(events.at(-1)).toMatchObject({ event: 'end', data: { state: 'succeeded' } });
}

test('a Redis that is stopped for 20 s costs a clone nothing, and the API says so meanwhile', async () => {
  const clone = await copying('outage', LASTING);
  const daemon = await daemonOf(clone);
  const watching = collectEvents(clone.id);

  await redis.stop();
  const bytesBefore = await bytesCopied(clone);
  const outage = delay(OUTAGE_MS);
  const answers = await Promise.all([
    request('GET', `/v1/clones/${clone.id}`),
    request('GET', '/v1/clones'),
    request('GET', '/v1/hosts'),
    request('POST', '/v1/clones', product.specOf('not now')),
    request('POST', `/v1/clones/${clone.id}/cancel`),
    request('GET', '/readyz'),
  ]);
  const alive = await request('GET', '/healthz');
  await outage;
  const bytesAfter = await bytesCopied(clone);
  const daemonAfter = await daemonOf(clone);
  await redis.start();
  await recovered();

  for (const { status, headers, body } of answers) {
    expect(status).toBe(503);
    expect(Number(headers.get('retry-after'))).toBeGreaterThan(0);
    expect(body).toMatchObject({
      code: 'QUEUE_UNAVAILABLE',
      retryable: true,
      hint: expect.stringMatching(/Redis/),
    });
  }
  expect(alive.status).toBe(200);
  expect(bytesAfter).toBeGreaterThan(bytesBefore + 5_000_000);
  expect(daemonAfter).toBe(daemon);
  expect(daemon).toBeGreaterThan(0);
  const running = (await request('GET', `/v1/clones/${clone.id}`)).body;
  expect(running).toMatchObject({ state: 'running', phase: 'copy-files' });
  await expectMadeOnce(clone);
  await expectAllSaid(await watching, clone);
});

test('a Redis that is emptied gets the record again, and the host takes new clones', async () => {
  const clone = await copying('emptied', { ...SLOW, maxRate: 1_500_000 });
  const daemon = await daemonOf(clone);
  const watching = collectEvents(clone.id);

  await redis.flush();
  const gone = await request('GET', `/v1/clones/${clone.id}`);
  let back = gone;
  while (back.status === 404) {
    await delay(100);
    back = await request('GET', `/v1/clones/${clone.id}`);
  }

  expect(back.body).toMatchObject({ state: 'running', phase: 'copy-files', spec: clone.spec });
  expect(await daemonOf(clone)).toBe(daemon);
  await expectMadeOnce(clone);
  expect((await watching).at(-1)).toMatchObject({ event: 'end', data: { state: 'succeeded' } });
  const { clones } = (await request('GET', '/v1/clones')).body;
  const [latest, ...earlier] = clones as readonly Clone[];
  expect(latest?.id).toBe(clone.id);
  // Clones that ended before are told of again as long as their files are there.
  for (const { instance } of earlier) expect(instance.state).not.toBe('absent');
  const next = await product.ended((await product.create('after it')).id);
  expect(next.state).toBe('succeeded');
});

test('an API that is killed costs a clone nothing, nor those who watch it an event', async () => {
  // Longer than an API takes to start on a busy machine.
  const clone = await copying('no api', { ...SLOW, maxRate: 2_000_000 });
  const watching = collectEvents(clone.id);

  await product.pgcloned.stop('SIGKILL', 'api');
  await product.pgcloned.start();

  expect((await request('GET', `/v1/clones/${clone.id}`)).body.state).toBe('running');
  await expectMadeOnce(clone);
  await expectAllSaid(await watching, clone);
});

test('a worker that is killed is missed, and what is wished meanwhile comes true when it is back', async () => {
  const clone = await copying('missed', SLOW);

  await product.pgcloned.stop('SIGKILL', 'worker');
  const missed = await product.until(clone.id, ({ contact }) => contact === 'lost');
  const [host] = (await request('GET', '/v1/hosts')).body.hosts;
  const cancel = await request('POST', `/v1/clones/${clone.id}/cancel`);
  const next = await product.create('after the worker');
  await product.pgcloned.start();

  expect(missed).toMatchObject({ state: 'running', phase: 'copy-files' });
  expect(missed.lostSince).toBe(host.lastSeenAt);
  expect(host.online).toBe(false);
  expect(cancel).toMatchObject({ status: 202, body: { state: 'cancelling', contact: 'lost' } });
  expect(next).toMatchObject({
    state: 'queued',
    waitingFor: expect.stringMatching(/offline since/),
  });
  expect(await product.ended(clone.id)).toMatchObject({
    state: 'cancelled',
    contact: 'ok',
    error: null,
    instance: { state: 'absent' },
    leftovers: [],
  });
  expect(existsSync(clone.spec.target.dataDirectory)).toBe(false);
  expect((await product.ended(next.id)).state).toBe('succeeded');
  await product.expectNothingLeft(clone);
});

test('a clone waits for its worker that was stopped, can be cancelled meanwhile, and a deadline is kept', async () => {
  const clone = await copying('suspended', SLOW);

  await product.pgcloned.stop('SIGTERM', 'worker');
  const suspended = (await request('GET', `/v1/clones/${clone.id}`)).body;
  const deadline = new Date(Date.now() + 3_000).toISOString();
  const overdue = await product.ended((await product.create('overdue', { deadline })).id);
  const cancel = await request('POST', `/v1/clones/${clone.id}/cancel`);
  expect(existsSync(clone.spec.target.dataDirectory)).toBe(true);
  await product.pgcloned.start();

  expect(suspended).toMatchObject({
    state: 'queued',
    waitingFor: 'the worker of host testbed to start again',
    error: null,
  });
  expect(suspended.progress.wireBytes).toBeGreaterThan(0);
  expect(overdue).toMatchObject({
    state: 'failed',
    startedAt: null,
    error: { code: 'DEADLINE_EXCEEDED', facts: { deadline } },
  });
  expect(cancel).toMatchObject({ status: 202, body: { state: 'cancelling' } });
  expect(await product.ended(clone.id)).toMatchObject({ state: 'cancelled', leftovers: [] });
  expect(existsSync(clone.spec.target.dataDirectory)).toBe(false);
  await product.expectNothingLeft(clone);
});

/**
 * The life of a clone after its end, through the API: its server is stopped and started, its files go when somebody asks or
 * their time is over, and the record always says what is really there.
 */
import { existsSync } from 'node:fs';
import { readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, hasEnded } from '@pgcloned/contract';
import {
  adoptServer,
  freePort,
  makeDirectory,
  mountFilesystem,
  runAsPartsUser,
  runsAsRoot,
  startPrimary,
  stopServer,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Product, SLOW, startProduct } from './product.ts';

const WAIT_MS_MAX = 60_000;

const owned = new AsyncDisposableStack();
let product: Product;

beforeAll(async () => {
  product = owned.use(await startProduct({ worker: { concurrency: 4 } }));
});
afterAll(async () => {
  await owned.disposeAsync();
});

const request: Product['pgcloned']['request'] = async (...call) =>
  await product.pgcloned.request(...call);
const get = async (id: string): Promise<Clone> => (await request('GET', `/v1/clones/${id}`)).body;

/** Settles once it holds of the record, also of one that has ended. */
async function seen(id: string, holds: (clone: Clone) => boolean): Promise<Clone> {
  const deadlineMs = Date.now() + WAIT_MS_MAX;
  for (;;) {
    const clone = await get(id);
    if (holds(clone)) return clone;
    if (Date.now() > deadlineMs) throw new Error(`it never came true: ${JSON.stringify(clone)}`);
    await delay(50);
  }
}
const settled = async (id: string) =>
  await seen(
    id,
    ({ waitingFor, instance }) => waitingFor === null && instance.state !== 'removing',
  );

async function post(path: string, body?: unknown): Promise<Clone> {
  const answer = await request('POST', path, body);
  expect(answer.status, JSON.stringify(answer.body)).toBe(202);
  return answer.body;
}

async function makeClone(name: string, more: Record<string, unknown> = {}): Promise<Clone> {
  const clone = await product.ended((await product.create(name, more)).id);
  expect(clone, JSON.stringify(clone.error)).toMatchObject({ state: 'succeeded' });
  return clone;
}

test('a server is stopped and started, and the record says what is there whoever did it', async () => {
  const port = await freePort();
  const { id } = await makeClone('served', {
    replica: { start: true, waitFor: 'streaming', port },
  });
  const dataDirectory = product.at('served', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };
  expect((await get(id)).instance).toMatchObject({ state: 'running', port, error: null });

  const asked = await post(`/v1/clones/${id}/stop`);
  expect(asked.waitingFor).toContain('stop the server');
  expect((await settled(id)).instance).toMatchObject({ state: 'stopped', port: null, error: null });
  expect(existsSync(`${dataDirectory}/postmaster.pid`)).toBe(false);

  // It would be replayed into the very directory of the source (R1.11).
  await product.source.primary.createTablespace('late', product.at('late'));
  await post(`/v1/clones/${id}/start`);
  expect((await settled(id)).instance).toMatchObject({
    state: 'stopped',
    error: { code: 'SOURCE_CHANGED' },
  });
  await product.source.primary.query('DROP TABLESPACE late');

  await post(`/v1/clones/${id}/start`);
  expect((await settled(id)).instance).toMatchObject({ state: 'running', port, error: null });
  await using standby = await adoptServer(dataDirectory);
  expect(await standby.query('SELECT pg_is_in_recovery()')).toEqual([{ pg_is_in_recovery: true }]);

  await standby.stop();
  expect((await seen(id, ({ instance }) => instance.state === 'stopped')).instance.port).toBe(null);
  const started = await product.cli(['clone', 'start', id]);
  expect(started.stdout.toString(), started.stderr).toContain(`running on port ${String(port)}`);
});

test('a detached clone that is started for the first time takes writes by the time it is said to run', async () => {
  const { id, result } = await makeClone('detached', { replica: { role: 'detached' } });
  const dataDirectory = product.at('detached', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };

  await post(`/v1/clones/${id}/start`);
  const { instance } = await settled(id);

  expect(result?.connectionString).toBeNull();
  expect(instance).toMatchObject({ state: 'running', error: null });
  await using clone = await adoptServer(dataDirectory);
  await clone.query('CREATE TABLE mine (n int)');
  expect(await readFile(`${dataDirectory}/postgresql.auto.conf`, 'utf8')).not.toContain(
    "hot_standby = 'off'",
  );
});

test('what cannot be done is refused, or stands in the record', async () => {
  const { id } = await makeClone('refused');
  const dataDirectory = product.at('refused', 'main');
  await rename(dataDirectory, `${dataDirectory}2`);
  await makeDirectory(dataDirectory);
  await makeDirectory(`${dataDirectory}/theirs`);

  expect((await request('DELETE', `/v1/clones/${id}?data=true`)).status).toBe(202);
  const { instance } = await settled(id);

  expect(instance).toMatchObject({
    state: 'absent',
    error: { code: 'INSTANCE_CHANGED', message: expect.stringContaining(dataDirectory) },
  });
  expect(await readdir(dataDirectory)).toEqual(['theirs']);
  expect(existsSync(`${dataDirectory}2/global/pg_control`)).toBe(true);
  expect(await request('POST', `/v1/clones/${id}/start`)).toMatchObject({
    status: 409,
    body: { code: 'INSTANCE_MISSING' },
  });
  const slow = await product.create('slow', { transfer: { maxRate: 4_000_000, workers: 2 } });
  for (const [method, path, body] of [
    ['POST', 'stop'],
    ['POST', 'extend', { ttl: 60 }],
    ['DELETE', '?data=true'],
  ] as const) {
    const at = path.startsWith('?') ? path : `/${path}`;
    expect(await request(method, `/v1/clones/${slow.id}${at}`, body)).toMatchObject({
      status: 409,
      body: { code: 'CLONE_NOT_ENDED' },
    });
  }
  await request('POST', `/v1/clones/${slow.id}/cancel`);
  await seen(slow.id, ({ state }) => hasEnded(state));
});

test('with its data a clone goes as a whole: server, WAL, tablespaces, slot, and the parents made for it', async () => {
  const { primary } = product.source;
  const location = product.at('..', 'of the source');
  await makeDirectory(location);
  await primary.query(`CREATE TABLESPACE fast LOCATION '${location}'`);
  await primary.query('CREATE TABLE quick TABLESPACE fast AS SELECT 1 AS one');
  const clone = await makeClone('whole', {
    target: {
      walDirectory: product.at('wal of it', 'main'),
      tablespaces: { [location]: product.at('fast') },
    },
    replica: { start: true, waitFor: 'streaming', port: await freePort(), slot: 'whole' },
  });
  await using standby = await adoptServer(product.at('whole', 'main'));
  // A session that holds on must not keep it.
  const sleeping = standby.query('SELECT pg_sleep(600)').catch((error: unknown) => error);

  const deleted = await product.cli(['clone', 'delete', '--data', clone.id]);

  expect(deleted.stdout.toString(), deleted.stderr).toContain('are removed');
  expect(await sleeping).toBeInstanceOf(Error);
  expect(await get(clone.id)).toMatchObject({
    state: 'succeeded',
    instance: { state: 'removed', port: null, error: null },
    leftovers: [],
  });
  const left = await readdir(product.at());
  for (const name of ['whole', 'wal of it', 'fast']) expect(left).not.toContain(name);
  expect(await primary.query('SELECT slot_name FROM pg_replication_slots')).toEqual([]);
  expect(await primary.query('SELECT one FROM quick')).toEqual([{ one: 1 }]);
  expect((await request('DELETE', `/v1/clones/${clone.id}?data=true`)).status).toBe(202);
  expect((await request('DELETE', `/v1/clones/${clone.id}`)).status).toBe(204);
  await primary.query('DROP TABLE quick');
  await primary.query('DROP TABLESPACE fast');
});

test('a clone goes when its time is over, unless it is protected or was given more', async () => {
  const spec = { ttl: 1 };
  // In the middle of the copy, so that there is something to remove.
  const closed = join(product.source.primary.dataDirectory, 'base', 'closed');
  await runAsPartsUser(['install', '--mode', '000', '/dev/null', closed]);
  const failed = await product.ended((await product.create('failed', spec)).id);
  await rm(closed);
  const [kept, extended, gone] = await Promise.all([
    makeClone('kept', { ...spec, protected: true }),
    makeClone('extended', { ttl: 3600 }),
    makeClone('gone', spec),
  ]);
  const later = await post(`/v1/clones/${extended.id}/extend`, { ttl: 7200 });

  await seen(gone.id, ({ instance }) => instance.state === 'removed');
  expect(failed).toMatchObject({ state: 'failed', phase: 'copy-files' });
  await seen(failed.id, ({ instance }) => instance.state === 'removed');

  expect(existsSync(product.at('gone'))).toBe(false);
  expect(existsSync(product.at('failed'))).toBe(false);
  const leftMs = Date.parse(later.instance.expiresAt ?? '') - Date.now();
  expect(leftMs).toBeGreaterThan(7_000_000);
  expect((await settled(extended.id)).instance).toMatchObject({ state: 'stopped' });
  expect((await get(kept.id)).instance).toMatchObject({ state: 'stopped', protected: true });
  const change = { protected: false };
  expect((await request('PATCH', `/v1/clones/${kept.id}`, change)).status).toBe(200);
  await seen(kept.id, ({ instance }) => instance.state === 'removed');
  expect(existsSync(product.at('kept'))).toBe(false);
});

test('a reset makes the clone anew in its place, and one that comes to nothing leaves it running', async () => {
  const { primary } = product.source;
  await primary.query('CREATE TABLE before AS SELECT 1 AS one');
  const port = await freePort();
  const old = await makeClone('reset', {
    transfer: SLOW,
    replica: { start: true, waitFor: 'streaming', port },
    labels: { run: '7' },
    ttl: 3600,
    protected: true,
  });
  const dataDirectory = product.at('reset', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };

  const given = await post(`/v1/clones/${old.id}/reset`);
  await product.reached(given.id, 'copy-files');
  const busy = await request('POST', `/v1/clones/${old.id}/start`);
  await post(`/v1/clones/${given.id}/cancel`);
  await product.ended(given.id);

  expect(busy).toMatchObject({ status: 409, body: { code: 'TARGET_BUSY', holder: given.id } });
  expect(existsSync(`${dataDirectory}/postmaster.pid`)).toBe(true);
  const back = await seen(old.id, ({ instance }) => instance.state === 'running');
  expect(back.instance).toMatchObject({ port, error: null });
  await primary.query('CREATE TABLE afterwards AS SELECT 2 AS two');
  const again = await post(`/v1/clones/${old.id}/reset`);
  expect(again).toMatchObject({ resetOf: old.id, spec: { labels: { run: '7' } } });
  const clone = await product.ended(again.id);

  expect(clone, JSON.stringify(clone.error)).toMatchObject({
    state: 'succeeded',
    instance: { state: 'running', port, protected: true },
  });
  expect(Date.parse(clone.instance.expiresAt ?? '')).toBeGreaterThanOrEqual(
    Date.parse(old.instance.expiresAt ?? ''),
  );
  await using standby = await adoptServer(dataDirectory);
  expect(await standby.query('SELECT two FROM afterwards')).toEqual([{ two: 2 }]);
  await seen(old.id, ({ instance }) => instance.state === 'absent');
  expect(await readdir(product.at('reset'))).toEqual(['main']);
});

describe.skipIf(!runsAsRoot)('a writable copy by reflinks, which takes root to mount XFS,', () => {
  test('takes writes, is reset to what its source is now on the same port, and goes', async () => {
    await using filesystem = await mountFilesystem({ type: 'xfs', bytes: 1024 ** 3 });
    const at = (...names: readonly string[]) => join(filesystem.path, ...names);
    await using primary = await startPrimary({ dataDirectory: at('origin', 'data') });
    await primary.query('CREATE TABLE orders AS SELECT 1 AS id');
    await using local = await startProduct({
      worker: { dataRoots: [at('clones')] },
      configuration: {
        sources: { orders: { local: true, dataDirectory: at('origin', 'data'), user: 'postgres' } },
      },
    });
    await makeDirectory(at('clones'));
    const dataDirectory = at('clones', 'one');
    await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };
    const instanceOf = async (id: string): Promise<Clone['instance']> => {
      const { body } = await local.pgcloned.request('GET', `/v1/clones/${id}`, undefined, {
        prefer: 'wait=20',
      });
      return body.instance;
    };
    const first = await local.create('one', {
      method: 'reflink',
      target: { dataDirectory },
      replica: { start: true, waitFor: 'writable', profile: 'small' },
      ttl: 3600,
    });
    const { instance, error } = await local.ended(first.id);
    expect(instance, JSON.stringify(error)).toMatchObject({ state: 'running' });
    {
      await using clone = await adoptServer(dataDirectory);
      await clone.query('INSERT INTO orders VALUES (2)');
      await primary.query('INSERT INTO orders VALUES (3)');
      await clone.stop();
    }

    const { request: ask } = local.pgcloned;
    await ask('PATCH', `/v1/clones/${first.id}`, { protected: true });
    const replacing = await local.create('one', {
      method: 'reflink',
      target: { dataDirectory, ifExists: 'replace' },
    });
    expect(await local.ended(replacing.id)).toMatchObject({
      state: 'failed',
      error: { code: 'CLONE_PROTECTED', hint: expect.stringContaining(first.id) },
    });
    const { body: reset } = await ask('POST', `/v1/clones/${first.id}/reset`);
    const second = await local.ended(reset.id);

    expect(second, JSON.stringify(second.error)).toMatchObject({
      state: 'succeeded',
      instance: { state: 'running', port: instance.port, protected: true },
    });
    await ask('PATCH', `/v1/clones/${second.id}`, { protected: false });
    {
      await using clone = await adoptServer(dataDirectory);
      expect(await clone.query('SELECT id FROM orders ORDER BY id')).toEqual([
        { id: 1 },
        { id: 3 },
      ]);
      const deleted = await local.cli(['clone', 'delete', '--data', second.id]);
      expect(deleted.stdout.toString(), deleted.stderr).toContain('are removed');
    }
    expect(await readdir(at('clones'))).toEqual([]);
    expect(await instanceOf(second.id)).toMatchObject({ state: 'removed', error: null });
    expect(await primary.query('SELECT slot_name FROM pg_replication_slots')).toEqual([]);
  });
});

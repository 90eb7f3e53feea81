/**
 * A database per test run: a template is prepared once, and copied by reflinks for each test, through the API; and what many
 * of them leave behind.
 */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, hasEnded } from '@pgcloned/contract';
import {
  adoptServer,
  leftBehind,
  makeDirectory,
  mountFilesystem,
  type Pgcloned,
  type PostgresServer,
  runAsPartsUser,
  runsAsRoot,
  scratchDirectory,
  startPgcloned,
  startPrimary,
  stopServer,
  type TestFilesystem,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

/** Of one clone, while nine others are made and the machine does ten other things. */
const WAIT_MS_MAX = 180_000;
/** One of them makes twenty clones. */
const TEST_MS_MAX = 600_000;
const IN_A_ROW = 10;
const AT_ONCE = 10;

/** Leaves a row for each time it runs. */
const MASK = `
  CREATE TABLE IF NOT EXISTS masked (at timestamptz DEFAULT now());
  INSERT INTO masked DEFAULT VALUES;
  UPDATE people SET name = 'masked';
`;

describe.skipIf(!runsAsRoot)('on XFS, which takes root to mount,', { timeout: TEST_MS_MAX }, () => {
  const owned = new AsyncDisposableStack();
  let filesystem: TestFilesystem;
  let primary: PostgresServer;
  let pgcloned: Pgcloned;
  let template: Clone;
  const at = (...names: readonly string[]) => join(filesystem.path, ...names);

  beforeAll(async () => {
    filesystem = owned.use(await mountFilesystem({ type: 'xfs', bytes: 4 * 1024 ** 3 }));
    primary = owned.use(await startPrimary({ dataDirectory: at('origin', 'main') }));
    await primary.query(
      "CREATE TABLE people AS SELECT g, 'Ada' AS name FROM generate_series(1, 1000) g",
    );
    await makeDirectory(at('clones'));
    const { path } = owned.use(await scratchDirectory());
    await writePartsFile(join(path, 'mask.sql'), MASK);
    await writePartsFile(join(path, 'endless.sql'), 'SELECT pg_sleep(3600);');
    pgcloned = owned.use(
      await startPgcloned(path, {
        worker: { dataRoots: [at('clones')], concurrency: AT_ONCE },
        sources: {
          orders: {
            local: true,
            dataDirectory: primary.dataDirectory,
            onReady: [join(path, 'mask.sql')],
          },
          endless: {
            local: true,
            dataDirectory: primary.dataDirectory,
            onReady: [join(path, 'endless.sql')],
          },
        },
      }),
    );
    // Whatever a test that failed has left.
    owned.defer(async () => {
      for (const name of await readdir(at('clones'))) await stopServer(at('clones', name));
    });
    template = await ended(await create('template', { name: 'orders' }, { protected: true }));
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  async function create(name: string, source: object, more: object = {}): Promise<string> {
    const { status, body } = await pgcloned.request('POST', '/v1/clones', {
      source,
      target: { host: 'testbed', dataDirectory: at('clones', name) },
      method: 'reflink',
      replica: { start: true, waitFor: 'writable', profile: 'small' },
      ...more,
    });
    expect(status, JSON.stringify(body)).toBe(202);
    return body.id;
  }

  async function seen(id: string, holds: (clone: Clone) => boolean): Promise<Clone> {
    for (const deadlineMs = Date.now() + WAIT_MS_MAX; ; await delay(50)) {
      const { body } = await pgcloned.request('GET', `/v1/clones/${id}`);
      if (holds(body)) return body;
      if (Date.now() > deadlineMs) throw new Error(`it never came true: ${JSON.stringify(body)}`);
    }
  }

  async function ended(id: string): Promise<Clone> {
    const clone = await seen(id, ({ state }) => hasEnded(state));
    expect(clone, JSON.stringify(clone.error)).toMatchObject({ state: 'succeeded' });
    return clone;
  }

  async function remove({ id }: Clone): Promise<void> {
    const { status, body } = await pgcloned.request('DELETE', `/v1/clones/${id}?data=true`);
    expect(status, JSON.stringify(body)).toBe(202);
    await seen(id, ({ instance }) => instance.state === 'removed');
  }

  /** As a test would, by nothing but the connection string. */
  async function query({ result }: Clone, sql: string): Promise<string> {
    const { stdout } = await runAsPartsUser([
      'psql',
      result?.connectionString ?? '',
      '-XAtqc',
      sql,
    ]);
    return stdout.toString().trim();
  }

  test('a template is prepared once, and what a test does to its clone nobody else sees', async () => {
    const [one, other] = await Promise.all([
      create('one', { clone: template.id }).then(ended),
      create('other', { clone: template.id }).then(ended),
    ]);
    await query(one, "DELETE FROM people; CREATE TABLE mine AS SELECT 'of one'");

    expect(await query(other, 'SELECT DISTINCT name FROM people')).toBe('masked');
    expect(await query(other, 'SELECT count(*) FROM masked')).toBe('1');
    expect(await query(template, 'SELECT count(*) FROM people')).toBe('1000');
    expect(await query(other, "SELECT to_regclass('mine') IS NULL")).toBe('t');
    expect(await primary.query('SELECT DISTINCT name FROM people')).toEqual([{ name: 'Ada' }]);
    expect(one.result?.timeline).toBeGreaterThan(template.result?.timeline ?? 0);
    await Promise.all([remove(one), remove(other)]);
  });

  test('as long as its onReady files run nobody is told that a clone is there, and it can be cancelled', async () => {
    const id = await create('endless', { name: 'endless' });
    await expect
      .poll(() => existsSync(at('clones', 'endless', 'postmaster.pid')), { timeout: WAIT_MS_MAX })
      .toBe(true);

    const { body: during } = await pgcloned.request('GET', `/v1/clones/${id}`);
    const cancelled = await pgcloned.request('POST', `/v1/clones/${id}/cancel`);

    expect(during).toMatchObject({
      ...{ state: 'running', result: null },
      instance: { state: 'unfinished', port: null },
    });
    expect(cancelled.status, JSON.stringify(cancelled.body)).toBe(202);
    expect(await seen(id, ({ state }) => hasEnded(state))).toMatchObject({
      ...{ state: 'cancelled', leftovers: [] },
      instance: { state: 'absent' },
    });
    expect(await readdir(at('clones'))).not.toContain('endless');
  });

  test('a record tells what its clone takes of the disk, and the host what all of them take', async () => {
    const clone = await ended(await create('measured', { clone: template.id }));

    const { instance } = await seen(clone.id, ({ instance }) => instance.space !== null);

    const { ownBytes = 0, sharedBytes = 0 } = instance.space ?? {};
    expect(sharedBytes).toBeGreaterThan(15e6);
    // What its recovery and its promotion have written, and WAL.
    expect(ownBytes).toBeLessThan(60e6);
    await expect
      .poll(async () => (await pgcloned.request('GET', '/v1/hosts/testbed')).body.filesystems[0], {
        timeout: WAIT_MS_MAX,
      })
      .toMatchObject({ reflink: true, clones: { count: 2 } });
    await remove(clone);
  });

  test('what is no clone any more, and a clone by another method, are refused by name', async () => {
    const gone = await ended(await create('gone', { clone: template.id }));
    await remove(gone);

    const asked = (more: object) => ({
      source: { clone: gone.id },
      target: { host: 'testbed', dataDirectory: at('clones', 'of-gone') },
      method: 'reflink',
      ...more,
    });
    const removed = await pgcloned.request('POST', '/v1/clones', asked({}));
    const byRsync = await pgcloned.request('POST', '/v1/clones', asked({ method: 'rsync' }));
    const both = await pgcloned.request(
      'POST',
      '/v1/clones',
      asked({ source: { clone: gone.id, name: 'orders' } }),
    );

    expect(removed).toMatchObject({ status: 422, body: { code: 'SOURCE_UNKNOWN' } });
    expect(byRsync).toMatchObject({ status: 422, body: { code: 'NOT_SUPPORTED' } });
    expect(both).toMatchObject({ status: 422, body: { code: 'REQUEST_INVALID' } });
  });

  test(`${String(IN_A_ROW)} clones one after another and ${String(AT_ONCE)} at once leave nothing behind`, async () => {
    const before = await readdir(at('clones'));
    const ids: string[] = [];
    const cycle = async (name: string, source: object) => {
      const clone = await ended(await create(name, source, { ttl: 3600 }));
      ids.push(clone.id);
      expect(await query(clone, 'INSERT INTO people VALUES (0); SELECT count(*) FROM people')).toBe(
        '1001',
      );
      await remove(clone);
    };

    for (let round = 0; round < IN_A_ROW; round += 1) await cycle('again', { clone: template.id });
    await Promise.all(
      Array.from({ length: AT_ONCE }, async (_, index) => {
        await cycle(`at-once-${String(index)}`, { clone: template.id });
      }),
    );

    await using server = await adoptServer(at('clones', 'template'));
    const left = await leftBehind({
      names: [...ids, at('clones', 'again'), at('clones', 'at-once')],
      servers: [primary, server],
      directories: [filesystem.path, at('clones'), '/var/lock', pgcloned.stateDirectory],
    });
    expect(left).toEqual([]);
    expect(await readdir(at('clones'))).toEqual(before);
    // Nor do files of the machine that hold locks and ports name one of them.
    const named = await filesThatName(at('clones'), '/run/lock');
    expect(named.filter((text) => !text.includes(at('clones', 'template')))).toEqual([]);
  });
});

/** What stands in them. */
async function filesThatName(path: string, directory: string): Promise<readonly string[]> {
  const names = (await readdir(directory)).filter((name) => name.startsWith('pgcloned-'));
  // Another test may just have removed one.
  const texts = names.map((name) => readFile(join(directory, name), 'utf8').catch(() => ''));
  return (await Promise.all(texts)).filter((text) => text.includes(path));
}

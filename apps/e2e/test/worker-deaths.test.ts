/**
 * Writable clones on the host of their source, whose worker is killed by kill -9 in the middle of something, or whose host
 * lost its power: the next worker brings it to its end, the record says what is there, and nothing stays behind.
 */
import { existsSync, readdirSync } from 'node:fs';
import { readdir, readFile, rm } from 'node:fs/promises';
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
  type PrivateRedis,
  runsAsRoot,
  scratchDirectory,
  startCluster,
  startPgcloned,
  startPrimary,
  startRedis,
  stopServer,
  type TestFilesystem,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Gate, openGate } from '../kill-matrix/gate.ts';
import type { HoldName } from '../kill-matrix/holds.ts';

const WAIT_MS_MAX = 60_000;
const POLL_MS = 30;

describe.skipIf(!runsAsRoot)('on XFS, which takes root to mount,', () => {
  const owned = new AsyncDisposableStack();
  let filesystem: TestFilesystem;
  let primary: PostgresServer;
  let redis: PrivateRedis;
  let gate: Gate;
  let pgcloned: Pgcloned;
  const at = (...names: readonly string[]) => join(filesystem.path, ...names);
  const clonesAt = (...names: readonly string[]) => at('clones', ...names);

  beforeAll(async () => {
    filesystem = owned.use(await mountFilesystem({ type: 'xfs', bytes: 1024 ** 3 }));
    owned.defer(async () => {
      for (const name of await readdir(clonesAt())) await stopServer(clonesAt(name));
    });
    await makeDirectory(clonesAt());
    primary = owned.use(await startPrimary({ dataDirectory: at('origin', 'data') }));
    await primary.query('CREATE TABLE orders AS SELECT 1 AS id');
    redis = owned.use(await startRedis());
    const { path } = owned.use(await scratchDirectory());
    gate = owned.use(await openGate(join(path, 'gate')));
    const hold = new URL('../kill-matrix/hold-phases.ts', import.meta.url);
    hold.searchParams.set('socket', gate.socketPath);
    pgcloned = owned.use(
      await startPgcloned(
        path,
        {
          redis: redis.url,
          worker: { dataRoots: [clonesAt()] },
          sources: {
            orders: { local: true, dataDirectory: at('origin', 'data'), user: 'postgres' },
          },
        },
        { parts: ['worker', 'api'], env: { NODE_OPTIONS: `--import=${hold.href}` } },
      ),
    );
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  const ask = async (method: string, path: string, body?: unknown): Promise<Clone> => {
    const answer = await pgcloned.request(method, path, body);
    expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
    return answer.body;
  };
  const create = async (name: string, replica: object = {}): Promise<Clone> =>
    await ask('POST', '/v1/clones', {
      source: { name: 'orders' },
      method: 'reflink',
      target: { host: 'testbed', dataDirectory: clonesAt(name) },
      replica: { start: true, waitFor: 'writable', profile: 'small', ...replica },
    });
  const until = async ({ id }: Clone, holds: (clone: Clone) => boolean): Promise<Clone> => {
    const deadlineMs = Date.now() + WAIT_MS_MAX;
    for (;;) {
      const clone = await ask('GET', `/v1/clones/${id}`);
      if (holds(clone)) return clone;
      if (Date.now() > deadlineMs) throw new Error(`it never came true: ${JSON.stringify(clone)}`);
      await delay(POLL_MS);
    }
  };
  const ended = async (clone: Clone) => await until(clone, ({ state }) => hasEnded(state));
  const settled = async (clone: Clone) =>
    await until(clone, ({ waitingFor, instance }) => !waitingFor && instance.state !== 'removing');
  const running = async (name: string): Promise<Clone> => {
    const clone = await ended(await create(name));
    expect(clone, JSON.stringify(clone.error)).toMatchObject({
      state: 'succeeded',
      instance: { state: 'running' },
    });
    return clone;
  };
  const remove = async (clone: Clone) => {
    await ask('DELETE', `/v1/clones/${clone.id}?data=true`);
    return await settled(clone);
  };
  /** Kills the worker where it has come to when it is asked for something. */
  const killAt = async (place: HoldName, what: () => Promise<Clone>): Promise<Clone> => {
    using caught = gate.catchAt(place);
    const clone = await what();
    await caught.held;
    await pgcloned.stop('SIGKILL', 'worker');
    return clone;
  };
  const isStartable = (name: string) => existsSync(clonesAt(name, 'global', 'pg_control'));
  const expectNothing = async () => {
    expect(await readdir(clonesAt())).toEqual([]);
    expect(await leftBehind({ names: [clonesAt()], servers: [primary] })).toEqual([]);
  };

  test('while files are shared: nothing there can be started, and the clone is made all the same', async () => {
    const asked = await killAt('makeDirectories', async () => await create('shared'));
    expect(isStartable('shared')).toBe(false);
    await expect(startCluster(clonesAt('shared'))).rejects.toThrow();

    await pgcloned.start();

    const clone = await ended(asked);
    expect(clone, JSON.stringify(clone.error)).toMatchObject({
      ...{ state: 'succeeded', attempt: 2, leftovers: [] },
      instance: { state: 'running' },
    });
    await (await adoptServer(clonesAt('shared'))).query('INSERT INTO orders VALUES (2)');
    await remove(clone);
    await expectNothing();
  });

  test('in a removal: it comes to its end, the record says so, and the same can be asked for again', async () => {
    const clone = await running('removed');
    await killAt('takeControlFileAway', async () => {
      return await ask('DELETE', `/v1/clones/${clone.id}?data=true`);
    });
    expect(isStartable('removed')).toBe(false);
    expect(readdirSync(clonesAt('removed'))).toContain('base');

    await pgcloned.start();

    expect((await settled(clone)).instance).toMatchObject({ state: 'removed', error: null });
    await expectNothing();
    await remove(await running('removed'));
    await expectNothing();
  });

  test('in a reset that has stopped the old server: if that is cancelled, it runs again with what it had', async () => {
    const old = await running('reset');
    await (await adoptServer(clonesAt('reset'))).query('INSERT INTO orders VALUES (2)');
    const reset = await killAt('giveWay', async () => {
      return await ask('POST', `/v1/clones/${old.id}/reset`);
    });
    expect(existsSync(clonesAt('reset', 'postmaster.pid'))).toBe(false);
    await ask('POST', `/v1/clones/${reset.id}/cancel`);

    await pgcloned.start();

    expect((await ended(reset)).state).toBe('cancelled');
    const { instance } = await until(old, (clone) => clone.instance.state === 'running');
    expect(instance).toMatchObject({ port: old.instance.port, error: null });
    const server = await adoptServer(clonesAt('reset'));
    expect(await server.query('SELECT id FROM orders ORDER BY id')).toEqual([{ id: 1 }, { id: 2 }]);
    await remove(old);
    await expectNothing();
  });

  test('in the first start of a clone: it is a cluster of its own, and nothing of how it became one strikes its standbys', async () => {
    const clone = await ended(await create('started', { start: false, waitFor: 'files' }));
    await killAt('startReplicaServer', async () => {
      return await ask('POST', `/v1/clones/${clone.id}/start`);
    });

    await pgcloned.start();

    expect((await settled(clone)).instance).toMatchObject({ state: 'running', error: null });
    await (await adoptServer(clonesAt('started'))).query('INSERT INTO orders VALUES (2)');
    const settings = await readFile(clonesAt('started', 'postgresql.auto.conf'), 'utf8');
    expect(settings).not.toMatch(/^restore_command = 'false'$/m);
    await remove(clone);
    await expectNothing();
  });

  test('after a power cut a clone is stopped, its port is kept, and it starts although its pid is in use', async () => {
    const clone = await running('cut');
    const { port } = clone.instance;
    const server = await adoptServer(clonesAt('cut'));
    const pidFile = clonesAt('cut', 'postmaster.pid');
    const lockFile = clonesAt('cut', `.s.PGSQL.${String(port)}.lock`);
    const left = await Promise.all([pidFile, lockFile].map((path) => readFile(path, 'utf8')));
    await pgcloned.stop('SIGKILL', 'worker');
    await server.stop('immediate');
    for (const [index, path] of [pidFile, lockFile].entries())
      await writePartsFile(path, (left[index] ?? '').replace(/^\d+/, String(redis.pid)));
    await rm(`/run/lock/pgcloned-port-${String(port)}`);

    await pgcloned.start();

    expect((await until(clone, ({ instance }) => instance.state === 'stopped')).instance.port).toBe(
      null,
    );
    const other = await running('other');
    expect(other.instance.port).not.toBe(port);
    await ask('POST', `/v1/clones/${clone.id}/start`);
    expect((await settled(clone)).instance).toMatchObject({ state: 'running', port, error: null });
    await remove(clone);
    await remove(other);
    await expectNothing();
  });
});

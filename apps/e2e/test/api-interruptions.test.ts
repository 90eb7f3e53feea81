/**
 * Clones of `pgcloned up` that are cancelled, or whose worker is stopped or killed: the record tells the truth, the
 * source is as before, the target cannot be started, and whatever comes next (another clone into it, the next start of the
 * worker) works.
 *
 * Phases that last milliseconds are held where the real parts allow it: an sshd, a checkpointer or a WAL sender that is
 * suspended answers as late as one on a machine that swaps.
 */
import { existsSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, PHASES, type PhaseName } from '@pgcloned/contract';
import {
  adoptServer,
  compareTables,
  descendantsOf,
  freePort,
  leftBehind,
  listProcesses,
  startCluster,
  stopServer,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Product, SLOW, startProduct } from './product.ts';

const LEASE_SECONDS = 3;

const owned = new AsyncDisposableStack();
let product: Product;

beforeAll(async () => {
  product = owned.use(
    await startProduct({ worker: { concurrency: 1, leaseSeconds: LEASE_SECONDS } }),
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

const cancel = async (id: string) =>
  await product.pgcloned.request('POST', `/v1/clones/${id}/cancel`);

const read = async (id: string) =>
  (await product.pgcloned.request('GET', `/v1/clones/${id}`)).body as Clone;

const isBetweenAttempts = ({ state, attempt }: Clone) => state === 'queued' && attempt > 1;

const hasControlFile = ({ spec }: Clone) =>
  existsSync(`${spec.target.dataDirectory}/global/pg_control`);

/** Suspends processes; disposing resumes those that are still there. */
function suspend(pids: readonly number[]): Disposable {
  expect(pids).not.toEqual([]);
  for (const pid of pids) process.kill(pid, 'SIGSTOP');
  return {
    [Symbol.dispose]: () => {
      for (const pid of pids) if (existsSync(`/proc/${String(pid)}`)) process.kill(pid, 'SIGCONT');
    },
  };
}

async function backendsOf(type: string): Promise<readonly number[]> {
  const rows = await product.source.primary.query<{ pid: number }>(
    'SELECT pid FROM pg_stat_activity WHERE backend_type = $1',
    [type],
  );
  return rows.map(({ pid }) => pid);
}

describe('a cancel through the API', () => {
  /** All into one directory, so that each also shows that the one before was no obstacle. */
  const NAME = 'cancelled';

  async function expectCancelled(id: string): Promise<Clone> {
    const clone = await product.ended(id);
    expect(clone).toMatchObject({
      state: 'cancelled',
      error: null,
      result: null,
      instance: { state: 'absent' },
      leftovers: [],
    });
    expect(existsSync(clone.spec.target.dataDirectory)).toBe(false);
    await product.expectNothingLeft(clone);
    return clone;
  }

  test('ends a queued clone at once, and it is never begun', async () => {
    const running = await product.create(NAME, { transfer: SLOW });
    await product.reached(running.id, 'copy-files');
    const { id } = await product.create('queued');
    const waiting = await product.until(id, ({ waitingFor }) => waitingFor !== null);

    const answer = await cancel(id);
    const again = await cancel(id);
    await cancel(running.id);
    await expectCancelled(running.id);
    const next = await product.ended((await product.create('after it')).id);

    expect(waiting).toMatchObject({ state: 'queued', waitingFor: expect.stringMatching(/1 of 1/) });
    expect(answer).toMatchObject({ status: 202, body: { state: 'cancelled', startedAt: null } });
    expect(again).toMatchObject({ status: 202, body: answer.body });
    expect(next.state).toBe('succeeded');
    expect(await read(id)).toEqual(answer.body);
    expect(existsSync(product.at('queued'))).toBe(false);
  });

  test('while the sshd of the source does not answer', async () => {
    using _ = suspend([product.source.sshd.pid]);
    const { id } = await product.create(NAME);
    await product.reached(id, 'preflight');

    const answer = await cancel(id);

    expect(answer).toMatchObject({ status: 202, body: { state: 'cancelling' } });
    expect((await expectCancelled(id)).phase).toBe('preflight');
  });

  test('while the checkpoint of the backup takes its time', async () => {
    using _ = suspend(await backendsOf('checkpointer'));
    const { id } = await product.create(NAME);
    await product.reached(id, 'start-backup');

    expect((await cancel(id)).status).toBe(202);

    expect((await expectCancelled(id)).phase).toBe('start-backup');
  });

  test('while files are copied, and asking again changes nothing', async () => {
    const { id } = await product.create(NAME, { transfer: SLOW });
    const begun = await product.until(id, ({ progress }) => progress.bytesDone > 1_000_000);
    expect(existsSync(begun.spec.target.dataDirectory)).toBe(true);

    const first = await cancel(id);
    const second = await cancel(id);
    await expectCancelled(id);
    const third = await cancel(id);

    expect(first).toMatchObject({ status: 202, body: { state: 'cancelling' } });
    expect(second.status).toBe(202);
    expect(third).toMatchObject({ status: 202, body: { state: 'cancelled' } });
  });

  test('while WAL does not arrive', async () => {
    const { id } = await product.create(NAME, { transfer: SLOW });
    await product.reached(id, 'copy-files');
    {
      using _ = suspend(await backendsOf('walsender'));
      await product.reached(id, 'collect-wal');

      expect((await cancel(id)).status).toBe(202);

      await product.ended(id);
    }
    expect((await expectCancelled(id)).phase).toBe('collect-wal');
  });

  test('while it waits for the next attempt', async () => {
    const { id } = await product.create(NAME, { transfer: SLOW });
    await product.reached(id, 'copy-files');
    await product.source.sshd.kill();
    await using _ = { [Symbol.asyncDispose]: () => product.source.sshd.start() };
    const waiting = await product.until(id, isBetweenAttempts);

    expect((await cancel(id)).status).toBe(202);

    expect(waiting.waitingFor).toMatch(/^the next attempt, after: /);
    expect(await expectCancelled(id)).toMatchObject({ waitingFor: null });
  });

  // They cannot be held: the cancel may meet the next phase.
  const BRIEF: readonly PhaseName[] = ['stream-wal', 'stop-backup', 'publish'];

  test.each(BRIEF)('as soon as phase %s begins', async (phase) => {
    const name = `${NAME} ${phase}`;
    const { id } = await product.create(name);
    await product.reached(id, phase);

    const answer = await cancel(id);

    const clone = await product.ended(id);
    if (clone.state === 'cancelled') {
      expect(answer.status).toBe(202);
      await expectCancelled(id);
      expect((await product.ended((await product.create(name)).id)).state).toBe('succeeded');
    } else {
      expect(PHASES.indexOf(clone.phase ?? 'preflight')).toBeGreaterThanOrEqual(
        PHASES.indexOf('publish'),
      );
      expect(clone.state).toBe('succeeded');
      expect(hasControlFile(clone)).toBe(true);
      await product.expectNothingLeft(clone);
    }
  });

  test('comes too late once the clone is published, which then waits for whoever starts it', async () => {
    const { id } = await product.create('published', { replica: { waitFor: 'streaming' } });
    const published = await product.until(id, ({ phase }) => phase === 'start-replica');

    const answer = await cancel(id);

    expect(answer).toMatchObject({
      status: 409,
      body: { code: 'TOO_LATE_TO_CANCEL', hint: expect.stringMatching(/Wait until it has ended/) },
    });
    expect((await read(id)).state).toBe('running');
    await using standby = await startCluster(published.spec.target.dataDirectory);
    expect((await product.ended(id)).state).toBe('succeeded');
    expect(await cancel(id)).toMatchObject({ status: 409, body: { code: 'CLONE_ENDED' } });
    await standby.stop();
    await product.expectNothingLeft(published);
  });
});

describe('when `pgcloned up` ends while it copies, the next start goes on with the clone', () => {
  // Of few large files none may be complete at a given moment.
  beforeAll(async () => {
    for (let table = 1; table <= 20; table++)
      await product.source.primary.query(
        `CREATE TABLE cold_${String(table)} AS SELECT i, md5(i::text) FROM generate_series(1, 8000) i`,
      );
    await product.source.primary.query('CHECKPOINT');
  });

  /** A clone in the middle of its copy. */
  async function copying(name: string): Promise<Clone> {
    const { id } = await product.create(name, { transfer: SLOW });
    return await product.until(
      id,
      ({ progress: { bytesDone, bytesTotal } }) => bytesDone > bytesTotal / 2 && bytesTotal > 0,
    );
  }

  function expectUnfinished(clone: Clone): void {
    expect(hasControlFile(clone)).toBe(false);
    expect(existsSync(clone.spec.target.dataDirectory)).toBe(true);
  }

  /** It has gone on where it was, nothing of it is left, and it is a copy of the source. */
  async function expectGoneOn(before: Clone, attempt: unknown): Promise<void> {
    const clone = await product.ended(before.id);
    expect(clone).toMatchObject({
      state: 'succeeded',
      attempt,
      startedAt: before.startedAt,
      contact: 'ok',
      waitingFor: null,
      error: null,
      leftovers: [],
      instance: { state: 'stopped' },
    });
    const { bytes = 0, keptBytes = 0, wireBytes = 0 } = clone.result ?? {};
    expect(clone.progress).toMatchObject({ keptBytes, wireBytes });
    expect(keptBytes).toBeGreaterThan(bytes / 4);
    expect(wireBytes).toBeGreaterThan(bytes * 0.9);
    expect(wireBytes).toBeLessThan(bytes * 1.4);
    expect(product.logged(clone.id)).toContainEqual(
      expect.stringMatching(
        /^attempt \d goes on where the one before was: .*B kept, .*B compared$/,
      ),
    );
    await product.expectNothingLeft(clone);
    await using standby = await startCluster(clone.spec.target.dataDirectory);
    await waitForReplay(product.source.primary, standby);
    expect(await compareTables(product.source.primary, standby)).toEqual([]);
  }

  test('after SIGTERM, which leaves it queued and the source clean', async () => {
    const clone = await copying('stopped');

    await product.pgcloned.stop('SIGTERM');

    await product.expectNothingLeft(clone);
    expectUnfinished(clone);
    expect(product.logged(clone.id).at(-1)).toBe('clone is suspended: its worker stops');
    await product.pgcloned.start();
    await expectGoneOn(clone, 2);
  });

  test('after kill -9, and before those that wait', async () => {
    const { pgcloned } = product;
    const clone = await copying('killed');
    const waiting = await product.create('waiting');

    await pgcloned.stop('SIGKILL');

    // The source host only: what lies on ours is put away at the next start.
    const withinMs = (LEASE_SECONDS + 30) * 1000;
    await product.expectNothingLeft(clone, { withinMs, directories: [] });
    expectUnfinished(clone);
    await pgcloned.start();
    const next = await product.ended(waiting.id);
    await expectGoneOn(clone, 2);
    expect(next.state).toBe('succeeded');
    expect(Date.parse(next.startedAt ?? '')).toBeGreaterThanOrEqual(
      Date.parse((await read(clone.id)).endedAt ?? ''),
    );
    expect(
      product.logged(clone.id).filter((message) => message === 'clone succeeded'),
    ).toHaveLength(1);
  });

  test('after kill -9 between two attempts', async () => {
    const { pgcloned, source } = product;
    const clone = await copying('killed while it waits');
    await source.sshd.kill();
    await product.until(clone.id, isBetweenAttempts);

    await pgcloned.stop('SIGKILL');
    await source.sshd.start();
    await pgcloned.start();

    await expectGoneOn(clone, expect.any(Number));
  });

  test('unless it has all: then the clone that waited to stream has failed and is complete', async () => {
    const { pgcloned } = product;
    for (const [signal, code] of [
      ['SIGTERM', 'WORKER_STOPPED'],
      ['SIGKILL', 'WORKER_LOST'],
    ] as const) {
      const { id } = await product.create(`published ${signal}`, {
        replica: { waitFor: 'streaming' },
      });
      await product.reached(id, 'start-replica');

      await pgcloned.stop(signal);

      await pgcloned.start();
      const clone = await product.ended(id);
      expect(clone).toMatchObject({
        state: 'failed',
        error: { code, retryable: true, facts: { published: true } },
      });
      expect(hasControlFile(clone)).toBe(true);
      await product.expectNothingLeft(clone, { withinMs: (LEASE_SECONDS + 30) * 1000 });
    }
  });
});

test('an embedded Redis that is killed is started again, and a clone goes on', async () => {
  const { id } = await product.create('redis killed', { transfer: SLOW });
  await product.until(id, ({ progress }) => progress.bytesDone > 1_000_000);
  const redis = async () =>
    descendantsOf(product.pgcloned.pid, await listProcesses()).find(({ args }) =>
      args.startsWith('redis-server'),
    );
  const killed = await redis();

  process.kill(killed?.pid ?? 0, 'SIGKILL');
  // Meanwhile the API says that it cannot know.
  while ((await product.pgcloned.request('GET', '/readyz')).status !== 200) await delay(50);

  expect(await product.ended(id)).toMatchObject({ state: 'succeeded', attempt: 1, error: null });
  expect((await redis())?.pid).not.toBe(killed?.pid);
});

test('a worker that is frozen for longer than its lease goes on when it is thawed', async () => {
  const { id } = await product.create('frozen', { transfer: SLOW });
  const clone = await product.until(id, ({ progress }) => progress.bytesDone > 1_000_000);
  {
    using _ = suspend([product.pgcloned.pid]);
    const withinMs = (LEASE_SECONDS + 10) * 1000;
    // Daemon, guard and directory on the source host; the sessions are kept by what is frozen.
    expect(await leftBehind({ names: [`pgcloned_${id}`], withinMs })).toEqual([]);
  }

  expect(await product.ended(id)).toMatchObject({ state: 'succeeded', error: null });
  await product.expectNothingLeft(clone);
});

test('a replica that was started survives the end of `pgcloned up`, by SIGTERM and by kill -9', async () => {
  const { pgcloned, source } = product;
  const port = await freePort();
  const dataDirectory = product.at('survivor', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };
  const { id } = await product.create('survivor', {
    replica: { start: true, waitFor: 'streaming', port },
  });
  expect((await product.ended(id)).state).toBe('succeeded');
  await using standby = await adoptServer(dataDirectory);
  const { pid } = standby;

  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    await pgcloned.stop(signal);
    await source.primary.query(`CREATE TABLE after_${signal} ()`);
    await waitForReplay(source.primary, standby);
    await pgcloned.start();
  }

  expect(standby.pid).toBe(pid);
  expect(
    descendantsOf(pgcloned.pid, await listProcesses()).map((child) => child.pid),
  ).not.toContain(pid);
  expect((await read(id)).instance).toMatchObject({ state: 'running', port });
});

/**
 * A standby as the source: whatever becomes of it, of its upstream and of their timeline meanwhile, a clone is right or says
 * what happened. Busy and idle ones of every version are in versions.test.ts.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { PhaseName } from '@pgcloned/contract';
import {
  adoptServer,
  compareTables,
  freePort,
  leftBehind,
  type PostgresServer,
  type Source,
  type StandbySource,
  scratchDirectory,
  startCluster,
  startSource,
  startStandby,
  startStandbyOf,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Catch, type Gate, openGate } from '../kill-matrix/gate.ts';
import type { HoldName } from '../kill-matrix/holds.ts';
import { type Running, runClone, startClone } from './run-clone.ts';

const HOLD_PHASES = new URL('../kill-matrix/hold-phases.ts', import.meta.url);

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';
let gate: Gate;

beforeAll(async () => {
  source = owned.use(await startSource({ settings: { checkpoint_timeout: '1h' } }));
  directory = owned.use(await scratchDirectory()).path;
  gate = owned.use(await openGate(join(directory, 'gate')));
  await source.primary.query('CREATE TABLE rows AS SELECT i FROM generate_series(1, 100000) i');
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** A clone that is held where the gate catches it. */
async function startHeldClone(
  { configuration }: StandbySource,
  spec: Parameters<typeof startClone>[1],
) {
  const holdPhases = new URL(HOLD_PHASES);
  holdPhases.searchParams.set('socket', gate.socketPath);
  return await startClone({ configuration }, spec, {
    env: { NODE_OPTIONS: `--import=${holdPhases.href}` },
  });
}

/** @throws If the clone ends before, with what it said. */
async function untilHeld({ held }: Catch, { ended }: Running): Promise<void> {
  const before = ended.then(({ stderr }) => {
    throw new Error(`the clone ended before: ${stderr}`);
  });
  await Promise.race([held, before]);
}

async function suspendCheckpointer({
  query,
}: PostgresServer): Promise<Disposable & { readonly goOn: () => void }> {
  const [row] = await query<{ pid: number }>(
    `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`,
  );
  const pid = row?.pid ?? 0;
  process.kill(pid, 'SIGSTOP');
  const goOn = () => {
    process.kill(pid, 'SIGCONT');
  };
  return { goOn, [Symbol.dispose]: goOn };
}

async function promote({ query }: PostgresServer): Promise<void> {
  await query('SELECT pg_promote()');
}

test('of several servers the standby is copied, the primary once it is gone, and the replica knows both', async () => {
  await using from = await startStandbyOf(source);
  const [standby, primary] = [from.standby, source.primary].map(
    ({ port }) => `127.0.0.1:${String(port)}`,
  );
  const dataDirectory = join(directory, 'several', 'main');
  const clone = await startClone(from, {
    source: { host: null, hosts: [primary, standby], prefer: 'standby' },
    target: { dataDirectory },
    transfer: { maxRate: 10_000_000, workers: 2 },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });
  await clone.copied(0.3);
  const name = `${clone.name()}_1`;
  const pinned = 'SELECT FROM pg_replication_slots WHERE slot_name = $1';
  const pins = await from.standby.query(pinned, [name]);

  await from.standby.stop('immediate');
  const { stderr, result } = await clone.ended;

  expect(stderr).toBe('');
  expect(pins).toHaveLength(1);
  expect(result.result).toMatchObject({
    source: { address: primary, role: 'primary' },
    warnings: expect.arrayContaining([
      expect.stringMatching(
        new RegExp(`^no standby can be copied .*${String(standby)}: there is no answer`),
      ),
    ]),
  });
  expect(result.result.keptBytes).toBeGreaterThan(0);
  await using replica = await adoptServer(dataDirectory);
  const ports = [source.primary, from.standby].map(({ port }) => port).join(',');
  expect(await replica.query('SHOW primary_conninfo')).toEqual([
    { primary_conninfo: expect.stringMatching(`^host=127.0.0.1,127.0.0.1 port=${ports} `) },
  ]);
  expect(await compareTables(source.primary, replica)).toEqual([]);
});

describe('promoted', () => {
  test.each<[PhaseName, HoldName | null]>([
    ['preflight', 'checkSettings'],
    ['stream-wal', 'startWalReceiver'],
    ['start-backup', 'startBackup'],
    ['copy-files', null],
    ['stop-backup', 'stopBackup'],
  ])(
    'in %s: the clone ends with SOURCE_PROMOTED and leaves nothing, and the next one succeeds',
    async (phase, hold) => {
      await using from = await startStandbyOf(source);
      const target = { dataDirectory: join(directory, phase, 'main') };
      using caught = hold === null ? null : gate.catchAt(hold);
      const clone = await startHeldClone(from, {
        target,
        ...(hold === null && { transfer: { maxRate: 10_000_000, workers: 2 } }),
      });
      await (caught === null ? clone.copied(0.3) : untilHeld(caught, clone));

      await promote(from.standby);
      caught?.letGo();

      const { error, name } = await clone.ended;
      expect(error).toMatchObject({
        code: 'SOURCE_PROMOTED',
        hint: expect.stringContaining('Clone again into the same directory'),
      });
      expect(
        await leftBehind({
          names: [name],
          servers: [from.standby, source.primary],
          directories: [directory],
        }),
      ).toEqual([]);
      const files = await readdir(target.dataDirectory, { recursive: true }).catch(() => []);
      expect(files).not.toContain('global/pg_control');
      // A second time where there is most to build upon.
      if (phase !== 'copy-files') return;
      const next = await runClone(from, {
        target,
        replica: { start: true, waitFor: 'streaming', port: await freePort() },
      });
      expect(next.stderr).toBe('');
      expect(next.result.result.timeline).toBe(2);
      await using replica = await adoptServer(target.dataDirectory);
      expect(await compareTables(from.standby, replica)).toEqual([]);
    },
  );

  test.each<[PhaseName, HoldName]>([
    ['collect-wal', 'collectWal'],
    ['publish', 'configureReplica'],
    ['start-replica', 'standbyStatus'],
  ])('in %s: the clone succeeds and follows to the new timeline', async (phase, hold) => {
    await using from = await startStandbyOf(source);
    const dataDirectory = join(directory, phase, 'main');
    using caught = gate.catchAt(hold);
    const clone = await startHeldClone(from, {
      target: { dataDirectory },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });
    await untilHeld(caught, clone);

    await promote(from.standby);
    await from.standby.query('CREATE TABLE later AS SELECT 1 AS one');
    caught.letGo();

    const { stderr, result, name } = await clone.ended;
    expect(stderr).toBe('');
    expect(result.result.timeline).toBe(1);
    await using replica = await adoptServer(dataDirectory);
    await waitForReplay(from.standby, replica);
    expect(await compareTables(from.standby, replica)).toEqual([]);
    expect(
      await leftBehind({
        names: [name],
        servers: [from.standby, source.primary],
        directories: [directory],
        pidsKept: [replica.pid],
      }),
    ).toEqual([]);
  });
});

test('promoted between two attempts: the clone does not go on with what is a primary now', async () => {
  await using from = await startStandbyOf(source);
  const { standby } = from;
  const clone = await startClone(from, {
    target: { dataDirectory: join(directory, 'between', 'main') },
    transfer: { maxRate: 10_000_000, workers: 2 },
  });
  await clone.copied(0.3);

  await standby.stop('fast');
  {
    // Where the clone does not see it.
    await using elsewhere = await startCluster(standby.dataDirectory);
    await promote(elsewhere);
    await elsewhere.stop('fast');
  }
  await standby.start();

  const { error } = await clone.ended;
  expect(error).toMatchObject({ code: 'SOURCE_PROMOTED', phase: 'preflight' });
});

test('however long a clone takes to be published, a busy standby keeps the WAL that it asks for once more', async () => {
  await using from = await startStandbyOf(source);
  const { standby } = from;
  const dataDirectory = join(directory, 'kept', 'main');
  // Else the backup would end where a segment does.
  await source.primary.query('INSERT INTO rows VALUES (0)');
  await waitForReplay(source.primary, standby);
  using caught = gate.catchAt('proveWal');
  const clone = await startHeldClone(from, {
    target: { dataDirectory },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });
  await untilHeld(caught, clone);

  for (const _ of [1, 2])
    await source.primary.query(`SELECT pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()`);
  await waitForReplay(source.primary, standby);
  await untilPinIsMoved(standby);
  await source.primary.query('CHECKPOINT');
  await waitForReplay(source.primary, standby);
  await standby.query('CHECKPOINT');
  caught.letGo();

  expect((await clone.ended).stderr).toBe('');
  await using replica = await adoptServer(dataDirectory);
  await waitForReplay(source.primary, replica);
});

/** Or would be: its session has asked something. */
async function untilPinIsMoved({ query }: PostgresServer): Promise<void> {
  const last = async () =>
    await query(
      'SELECT query_start FROM pg_stat_activity JOIN pg_replication_slots ON active_pid = pid',
    );
  const before = await last();
  await expect.poll(last, { timeout: 20_000 }).not.toEqual(before);
}

test('a standby that neither replays nor has an upstream is cloned, and the clone has what the standby has received', async () => {
  await using from = await startStandbyOf(source);
  const { standby } = from;
  const { primary } = source;
  await standby.query('SELECT pg_wal_replay_pause()');
  await primary.query('CREATE TABLE unreplayed AS SELECT generate_series(1, 50000) AS i');
  const [end] = await primary.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn() AS lsn');
  await expect
    .poll(
      async () =>
        await standby.query('SELECT pg_last_wal_receive_lsn() >= $1 AS received', [end?.lsn]),
    )
    .toEqual([{ received: true }]);
  await primary.stop('fast');
  const dataDirectory = join(directory, 'paused', 'main');

  const { stderr, result, name } = await runClone(from, {
    target: { dataDirectory },
    replica: { start: true, waitFor: 'streaming', slot: 'cascaded', port: await freePort() },
  });

  expect(stderr).toBe('');
  expect(result.result.warnings).not.toContainEqual(expect.stringMatching(/slot/));
  await using replica = await adoptServer(dataDirectory);
  await primary.start();
  expect(
    await leftBehind({
      names: [name],
      servers: [standby, primary],
      slotsKept: ['cascaded'],
      pidsKept: [replica.pid],
    }),
  ).toEqual([]);
  expect(await standby.query(`SELECT active FROM pg_replication_slots`)).toEqual([
    { active: true },
  ]);
  await expect.poll(async () => await compareTables(primary, replica)).toEqual([]);
});

test('a standby that is restarted in the middle costs an attempt, also without a pin, and the copy is kept', async () => {
  await using from = await startStandbyOf(source);
  const dataDirectory = join(directory, 'restarted', 'main');
  using caught = gate.catchAt('stopBackup');
  const clone = await startHeldClone(from, {
    target: { dataDirectory },
    wal: { retention: 'none' },
    replica: { start: true, waitFor: 'consistent', slot: 'kept', port: await freePort() },
  });
  await untilHeld(caught, clone);

  await from.standby.stop('fast');
  caught.letGo();
  await clone.said(/^interrupted/);
  await from.standby.start();

  const { stderr, result } = await clone.ended;
  expect(stderr).toBe('');
  // What the first attempt could not undo the second has.
  expect(result.leftovers).toEqual([]);
  expect(await from.standby.query('SELECT slot_name FROM pg_replication_slots')).toEqual([
    { slot_name: 'kept' },
  ]);
  expect(result.result.keptBytes).toBeGreaterThan(result.result.bytes / 2);
  await using replica = await adoptServer(dataDirectory);
  await waitForReplay(source.primary, replica);
  expect(await compareTables(source.primary, replica)).toEqual([]);
});

test('a standby that follows its upstream to a new timeline costs attempts until it has seen a checkpoint of that', async () => {
  await using old = await startSource({ settings: { checkpoint_timeout: '1h' } });
  await using successor = await startStandby(old.primary);
  await using from = await startStandbyOf(old);
  const { standby } = from;
  const dataDirectory = join(directory, 'followed', 'main');
  using caught = gate.catchAt('stopBackup');
  const clone = await startHeldClone(from, {
    target: { dataDirectory },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });
  await untilHeld(caught, clone);

  await old.primary.stop('fast');
  // The checkpoint that follows a promotion may take its time.
  using checkpointer = await suspendCheckpointer(successor);
  await promote(successor);
  await standby.query(
    `ALTER SYSTEM SET primary_conninfo = 'host=${successor.socketDirectory} port=${String(successor.port)} user=postgres'`,
  );
  await standby.query('SELECT pg_reload_conf()');
  await successor.query('CREATE TABLE on_new_timeline AS SELECT generate_series(1, 1000) AS i');
  await waitForReplay(successor, standby);
  // Its files are of the new timeline now, and its last restartpoint is of the old one.
  await standby.query('CHECKPOINT');
  caught.letGo();
  await clone.said(/the source changed its timeline/);
  await clone.said(/the source follows timeline 2/);
  checkpointer.goOn();

  const { stderr, result } = await clone.ended;
  expect(stderr).toBe('');
  expect(result.result.timeline).toBe(2);
  expect(await readdir(join(dataDirectory, 'pg_wal'))).toContain('00000002.history');
  await using replica = await adoptServer(dataDirectory);
  await waitForReplay(successor, replica);
  expect(await compareTables(successor, replica)).toEqual([]);
});

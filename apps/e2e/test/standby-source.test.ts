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
  startSource,
  startStandbyOf,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Gate, openGate } from '../kill-matrix/gate.ts';
import type { HoldName } from '../kill-matrix/holds.ts';
import { runClone, startClone } from './run-clone.ts';

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

async function promote({ query }: PostgresServer): Promise<void> {
  await query('SELECT pg_promote()');
}

describe('promoted', () => {
  test.each<[PhaseName, HoldName | null]>([
    ['preflight', 'refuseUnfitSettings'],
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
      await (caught === null ? clone.copied(0.3) : caught.held);

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
      // A second time where there is most to build upon, and where the backup itself told.
      if (phase !== 'copy-files' && phase !== 'stop-backup') return;
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
    await caught.held;

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

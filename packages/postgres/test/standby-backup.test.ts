/**
 * The backup of a standby: it begins far back (R3.4), ends in the middle of a segment (R3.5), and is worth nothing once the
 * standby is promoted (R3.7).
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type PostgresServer,
  scratchDirectory,
  startPrimary,
  startStandby,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  checkSource,
  keepUnfinishedSegment,
  openSession,
  parseControlFile,
  parseLsn,
  pinWal,
  proveWal,
  readSourceFacts,
  type Session,
  segmentName,
  segmentsBetween,
  startBackup,
  startWalReceiver,
  stopBackup,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const applicationName = 'pgcloned_0123456789abcdef0123456789abcdef_1';
const segmentBytes = 1024 * 1024;
const start = { label: 'x', fast: true, signal };

const owned = new AsyncDisposableStack();
let primary: PostgresServer;
let standby: PostgresServer;
let session: Session;

beforeAll(async () => {
  primary = owned.use(
    await startPrimary({
      settings: { checkpoint_timeout: '1h', max_wal_size: '1GB' },
      initdbArgs: ['--wal-segsize=1'],
    }),
  );
  standby = owned.use(await startStandby(primary));
  session = owned.use(
    await openSession(connectionTo(standby), { applicationName: 'backup', signal }),
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** Nobody writes afterwards, and the last of these segments is not complete. */
async function writeSegments(count: number): Promise<void> {
  for (let segment = 0; segment < count; segment++)
    await primary.query(`SELECT pg_logical_emit_message(false, 'x', repeat('y', 900000))`);
  await waitForReplay(primary, standby);
}

test('all WAL from a restartpoint far back to an end within a segment is collected from an idle standby', async () => {
  await using scratch = await scratchDirectory();
  const directory = scratch.path;
  await writeSegments(9);
  const [flushed] = await primary.query<{ lsn: string }>(
    'SELECT pg_current_wal_flush_lsn()::text AS lsn',
  );
  await using pin = await pinWal(connectionTo(standby), {
    slotName: applicationName,
    applicationName: 'pin',
    signal,
  });
  const seed = { timeline: pin.restartTimeline, lsn: pin.restartLsn, segmentBytes };
  await using receiver = await startWalReceiver({
    ...{ settings: connectionTo(standby), binDirectory: standby.binDirectory, applicationName },
    ...{ directory, seed, session, inheritedFds: [], stallMs: 20_000, signal },
  });

  const started = await startBackup(session, start);
  const control = parseControlFile(
    await readFile(join(standby.dataDirectory, 'global', 'pg_control')),
  );
  const stopped = await stopBackup(session, started, signal);
  await receiver.waitUntilReceived(stopped.stopLsn, signal);
  await receiver.stop(signal);
  await keepUnfinishedSegment(directory, { timeline: 1, endLsn: stopped.stopLsn, segmentBytes });

  const { startLsn } = started;
  const { stopLsn } = stopped;
  expect(started).toMatchObject({ timeline: 1, replayedTimeline: 1 });
  expect(stopped).toMatchObject({ timeline: 1, replayedTimeline: 1 });
  expect(stopped.label.toString()).toContain('BACKUP FROM: standby');
  expect(parseLsn(startLsn)).toBeLessThan(parseLsn(flushed?.lsn ?? '') - 7n * BigInt(segmentBytes));
  expect(segmentName(seed) <= segmentName({ ...seed, lsn: startLsn })).toBe(true);
  expect(control?.minRecoveryLsn).toBe(stopLsn);
  expect(parseLsn(stopLsn) % BigInt(segmentBytes)).not.toBe(0n);
  const needed = segmentsBetween({ timeline: 1, startLsn, endLsn: stopLsn, segmentBytes });
  expect(await readdir(directory)).toEqual(expect.arrayContaining([...needed]));
  await proveWal({
    ...{ binDirectory: standby.binDirectory, directory, timeline: 1, startLsn, stopLsn },
    ...{ segmentBytes, stallMs: 20_000, signal },
  });
});

test('WAL without full page images is refused with the commands that bring them back, before a backup and at its end', async () => {
  const error = {
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    facts: { setting: 'full_page_writes' },
    hint: expect.stringContaining('SET full_page_writes = on; SELECT pg_reload_conf(); CHECKPOINT'),
  };
  const set = async (value: 'on' | 'off') => {
    await primary.query(`ALTER SYSTEM SET full_page_writes = ${value}`);
    await primary.query('SELECT pg_reload_conf()');
    await expect
      .poll(async () => await primary.query('SHOW full_page_writes'))
      .toEqual([{ full_page_writes: value }]);
  };
  const started = await startBackup(session, start);
  await set('off');
  // The checkpointer tells the standbys when it wakes up.
  await primary.query('CHECKPOINT');
  await waitForReplay(primary, standby);

  await expect(stopBackup(session, started, signal)).rejects.toMatchObject(error);

  await using next = await openSession(connectionTo(standby), { applicationName: 'next', signal });
  await expect(startBackup(next, start)).rejects.toMatchObject(error);
  await standby.query('CHECKPOINT');
  const facts = await readSourceFacts(next, signal);
  expect(facts).toMatchObject({ inRecovery: true, fullPageWrites: false });
  const wanted = { slot: true, replicaSlot: false, standbyName: 'replica-1' };
  const want = { ...wanted, walSenders: 2 } as const;
  expect(checkSource(facts, want).errors).toMatchObject([error]);
  await set('on');
  await primary.query('CHECKPOINT');
  await waitForReplay(primary, standby);
  await using last = await openSession(connectionTo(standby), { applicationName: 'last', signal });
  await stopBackup(last, await startBackup(last, start), signal);
  expect(checkSource(await readSourceFacts(last, signal), want).errors).toEqual([]);
});

describe('a query in the way of replay', () => {
  const own = new AsyncDisposableStack();
  let other: PostgresServer;
  let cancelled: Session;

  beforeAll(async () => {
    await primary.query('CREATE TABLE seen (i int)');
    other = own.use(
      await startStandby(primary, { settings: { max_standby_streaming_delay: '0' } }),
    );
    cancelled = own.use(
      await openSession(connectionTo(other), { applicationName: 'cancelled', signal }),
    );
  });

  beforeEach(async () => {
    await primary.query('INSERT INTO seen SELECT generate_series(1, 1000)');
    await waitForReplay(primary, other);
  });

  afterAll(async () => {
    await own.disposeAsync();
  });

  const COUNT = `
    SELECT count(*)::int AS rows, pg_sleep(CASE WHEN count(*) > 0 THEN 60 ELSE 0 END) IS NULL
      FROM public.seen`;

  async function untilItSleeps(): Promise<void> {
    await expect
      .poll(
        async () => await other.query(`SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'`),
      )
      .toHaveLength(1);
  }

  test('is told as such if it may not be repeated, and its session goes on', async () => {
    const failing = expect(
      cancelled.query(COUNT, [], signal, { isRepeatable: false }),
    ).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { sqlState: '40001' },
      hint: expect.stringContaining('hot_standby_feedback'),
    });
    await untilItSleeps();

    await primary.query('LOCK seen; INSERT INTO seen VALUES (0)');

    await failing;
    expect(await cancelled.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
  });

  test('is repeated', async () => {
    const counting = cancelled.query(COUNT, [], signal);
    await untilItSleeps();

    await primary.query('TRUNCATE seen');

    expect(await counting).toMatchObject([{ rows: 0 }]);
  });
});

test('the backup of a standby that is promoted ends with an error that says so', async () => {
  await using other = await startStandby(primary);
  await using own = await openSession(connectionTo(other), { applicationName: 'own', signal });
  const started = await startBackup(own, start);
  await other.query('SELECT pg_promote()');

  await expect(stopBackup(own, started, signal)).rejects.toMatchObject({
    code: 'SOURCE_PROMOTED',
    retryable: true,
    facts: { port: other.port },
  });
});

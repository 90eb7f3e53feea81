/** The pin holds WAL while it lives, and nothing of it is left when it does not. */
import {
  findPostgres,
  installedMajors,
  type PostgresServer,
  startPrimary,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openSession, parseLsn, pinWal } from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const slotName = 'pgcloned_0123456789abcdef0123456789abcdef_1';
const names = { slotName, applicationName: slotName, signal };

let server: PostgresServer;
beforeAll(async () => {
  server = await startPrimary({
    settings: { max_wal_size: '2MB', min_wal_size: '2MB', max_replication_slots: '1' },
    initdbArgs: ['--wal-segsize=1'],
  });
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

const slots = async () =>
  await server.query('SELECT slot_name, temporary, restart_lsn::text FROM pg_replication_slots');

async function oldestSegment(): Promise<string> {
  const [row] = await server.query<{ oldest: string }>(
    `SELECT min(name) AS oldest FROM pg_ls_waldir() WHERE length(name) = 24`,
  );
  return row?.oldest ?? '';
}

/** Writes ten segments, and has the server remove what it may. */
async function writeWal(): Promise<string> {
  for (let segment = 0; segment < 10; segment++) {
    await server.query(
      `SELECT pg_logical_emit_message(false, 'x', repeat('y', 900000)), pg_switch_wal()`,
    );
  }
  await server.query('CHECKPOINT');
  await server.query('CHECKPOINT');
  const [row] = await server.query<{ lsn: string }>(
    'SELECT pg_current_wal_flush_lsn()::text AS lsn',
  );
  return row?.lsn ?? '';
}

test('a pin keeps WAL, lets go of what it is told, and is gone when it is released', async () => {
  await using pin = await pinWal(connectionTo(server), names);
  expect(await slots()).toEqual([
    { slot_name: slotName, temporary: true, restart_lsn: pin.restartLsn },
  ]);
  expect(pin.restartTimeline).toBe(1);
  const before = await oldestSegment();
  const written = await writeWal();
  expect(await oldestSegment()).toBe(before);

  await pin.advance(written);
  await writeWal();

  expect((await oldestSegment()) > before).toBe(true);
  const [slot] = await slots();
  expect(parseLsn(String(slot?.restart_lsn))).toBe(parseLsn(written));
  await pin.release();
  await pin.release();
  expect(await slots()).toEqual([]);
  expect(
    await server.query('SELECT FROM pg_stat_activity WHERE application_name = $1', [slotName]),
  ).toEqual([]);
});

test('advancing backwards or beyond what is written does not cost the pin', async () => {
  await using pin = await pinWal(connectionTo(server), names);

  await pin.advance('0/1');
  await pin.advance(pin.restartLsn);
  await pin.advance('FFFFFFFF/0');

  expect(await slots()).toHaveLength(1);
});

test('a pin vanishes with its session, and that is noticed at once', async () => {
  await using pin = await pinWal(connectionTo(server), names);
  await server.query(
    'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1',
    [slotName],
  );

  expect(await pin.lost).toMatchObject({
    code: 'SOURCE_LOST',
    facts: { slotName, reason: expect.stringContaining('administrator command') },
  });
  await expect(pin.advance('0/1')).rejects.toMatchObject({ code: 'SOURCE_LOST' });
  expect(await slots()).toEqual([]);
});

test('a pin that the server takes away because it keeps too much is noticed', async () => {
  await using small = await startPrimary({
    settings: { max_wal_size: '2MB', min_wal_size: '2MB', max_slot_wal_keep_size: '2MB' },
    initdbArgs: ['--wal-segsize=1'],
  });
  await using pin = await pinWal(connectionTo(small), names);
  for (let segment = 0; segment < 12; segment++) {
    await small.query(
      `SELECT pg_logical_emit_message(false, 'x', repeat('y', 900000)), pg_switch_wal()`,
    );
  }
  await small.query('CHECKPOINT');

  expect(await pin.lost).toMatchObject({
    code: 'SOURCE_LOST',
    hint: expect.stringContaining('max_slot_wal_keep_size'),
  });
});

test('no free slot is told apart, so that the clone can do without', async () => {
  await server.query(`SELECT pg_create_physical_replication_slot('taken')`);
  try {
    await expect(pinWal(connectionTo(server), names)).rejects.toMatchObject({
      code: 'SOURCE_SETTINGS_UNSUITABLE',
      message: 'the source gives no replication slot',
      hint: expect.stringContaining('max_replication_slots'),
    });
  } finally {
    await server.query(`SELECT pg_drop_replication_slot('taken')`);
  }
  expect(
    await server.query('SELECT FROM pg_stat_activity WHERE application_name = $1', [slotName]),
  ).toEqual([]);
});

test('a role that may not replicate gets no pin', async () => {
  await server.query('CREATE ROLE plain LOGIN');

  await expect(pinWal(connectionTo(server, { user: 'plain' }), names)).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
  });
});

test.skipIf(!installedMajors().includes(18))(
  'a pin outlives the limit that PostgreSQL 18 sets for idle slots, where another slot does not',
  async () => {
    await using server18 = await startPrimary({
      binDirectory: findPostgres(18),
      settings: { idle_replication_slot_timeout: '2s' },
    });
    await using pin = await pinWal(connectionTo(server18), names);
    await using idle = await openSession(connectionTo(server18), {
      applicationName: 'idle',
      signal,
    });
    await idle.query("SELECT pg_create_physical_replication_slot('idle', true, true)", [], signal);
    const slotNames = async () =>
      (await server18.query('SELECT slot_name FROM pg_replication_slots')).map(
        (row) => row.slot_name,
      );

    // Each checkpoint looks for slots that are idle for too long.
    while ((await slotNames()).includes('idle')) await server18.query('CHECKPOINT');

    expect(await slotNames()).toEqual([pin.slotName]);
  },
);

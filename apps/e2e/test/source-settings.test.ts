/**
 * A source whose settings would disturb a clone, or whose users a clone could disturb: synchronous replication, an
 * archive that does not work, and timeouts of the role (R3.2, R3.3, R4.8).
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  compareTables,
  freePort,
  leftBehind,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runClone, startClone } from './run-clone.ts';

/** 22 MB take four seconds: longer than every timeout here. */
const SLOW = { maxRate: 6_000_000, workers: 2 };

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(
    await startSource({ settings: { archive_mode: 'on', archive_command: 'false' } }),
  );
  directory = owned.use(await scratchDirectory()).path;
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

test('an archive that takes nothing does not hold a clone up', async () => {
  const { error, name } = await runClone(source, {
    target: { dataDirectory: at('archive', 'main') },
  });

  expect(error).toBeUndefined();
  expect(await source.primary.query('SELECT archived_count FROM pg_stat_archiver')).toEqual([
    { archived_count: '0' },
  ]);
  expect(await leftBehind({ names: [name], servers: [source.primary] })).toEqual([]);
  // Whoever lets the clone archive one day has none of the WAL in it twice (R4.15).
  const wal = at('archive', 'main', 'pg_wal');
  const segments = (await readdir(wal)).filter((file) => /^[0-9A-F]{24}$/.test(file));
  expect(segments).not.toEqual([]);
  expect((await readdir(join(wal, 'archive_status'))).toSorted()).toEqual(
    segments.map((file) => `${file}.done`).toSorted(),
  );
  await using standby = await startCluster(at('archive', 'main'));
  expect(await standby.query('SHOW archive_mode')).toEqual([{ archive_mode: 'off' }]);
});

test('a data directory that is configured with a slash at its end is the one of the source', async () => {
  const { error } = await runClone(source, {
    source: { dataDirectory: `${source.primary.dataDirectory}/` },
    target: { dataDirectory: at('slash', 'main') },
  });

  expect(error).toBeUndefined();
});

test('timeouts of the role end neither the backup, nor the pin, nor the stream', async () => {
  await using undo = new AsyncDisposableStack();
  for (const name of [
    'statement_timeout',
    'lock_timeout',
    'idle_session_timeout',
    'idle_in_transaction_session_timeout',
    'wal_sender_timeout',
  ]) {
    await source.primary.query(`ALTER ROLE cloner SET ${name} = '1s'`);
    undo.defer(async () => {
      await source.primary.query(`ALTER ROLE cloner RESET ${name}`);
    });
  }

  const { error, result, name } = await runClone(source, {
    target: { dataDirectory: at('timeouts', 'main') },
    transfer: SLOW,
  });

  expect(error).toBeUndefined();
  expect(result.result.durationMs).toBeGreaterThan(2_000);
  expect(result.result.warnings.filter((text: string) => /slot|WAL is/.test(text))).toEqual([]);
  expect(await leftBehind({ names: [name], servers: [source.primary] })).toEqual([]);
});

test('with synchronous_standby_names = * commits go on while a clone is made', async () => {
  const { primary } = source;
  const first = await runClone(source, {
    target: { dataDirectory: at('synchronous', 'main') },
    replica: { start: true, waitFor: 'streaming', port: await freePort(), clusterName: 'first' },
  });
  expect(first.error).toBeUndefined();
  await using standby = await adoptServer(at('synchronous', 'main'));
  await primary.query('CREATE TABLE committed (id serial)');
  await primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'");
  await primary.query('SELECT pg_reload_conf()');
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await primary.query('ALTER SYSTEM RESET synchronous_standby_names');
    await primary.query('SELECT pg_reload_conf()');
  });
  await expect
    .poll(async () => await primary.query('SELECT sync_state FROM pg_stat_replication'))
    .toEqual([{ sync_state: 'sync' }]);
  const running = await startClone(source, {
    target: { dataDirectory: at('beside', 'main') },
    transfer: SLOW,
  });
  await running.reached('copy-files');

  const during = await primary.query(
    'SELECT application_name, sync_priority, flush_lsn FROM pg_stat_replication ORDER BY sync_priority',
  );
  for (let commit = 0; commit < 20; commit += 1)
    await primary.query('INSERT INTO committed DEFAULT VALUES');
  const { error, result, name } = await running.ended;

  expect(during).toEqual([
    { application_name: `${name}_1`, sync_priority: 0, flush_lsn: null },
    { application_name: 'first', sync_priority: 1, flush_lsn: expect.any(String) },
  ]);
  expect(error).toBeUndefined();
  expect(result.result.warnings).toContainEqual(
    expect.stringContaining('synchronous_standby_names of the source admits any standby (*)'),
  );
  await waitForReplay(primary, standby);
  expect(await compareTables(primary, standby)).toEqual([]);
  expect(await leftBehind({ names: [name], servers: [primary], pidsKept: [standby.pid] })).toEqual(
    [],
  );
});

/** The two calls of a backup, on a server whose settings would hold up or spoil a careless one. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory, scratchDirectory, startPrimary } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import {
  openSession,
  parseLsn,
  parseTablespaceMap,
  startBackup,
  stopBackup,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const start = { label: 'pgcloned 0123', fast: true, signal };

test('a backup begins and ends, though the archiver fails and the role is in a hurry', async () => {
  await using server = await startPrimary({
    settings: { archive_mode: 'on', archive_command: 'false' },
  });
  await server.query('CREATE ROLE hasty LOGIN SUPERUSER');
  await server.query(`ALTER ROLE hasty SET idle_session_timeout = '1s'`);
  await server.query(`ALTER ROLE hasty SET statement_timeout = '1s'`);
  await using session = await openSession(connectionTo(server, { user: 'hasty' }), {
    applicationName: 'b',
    signal,
  });

  const started = await startBackup(session, start);
  await server.query('SELECT pg_sleep(1.2)');
  const stopped = await stopBackup(session, started, signal);

  expect(started).toEqual({
    startLsn: expect.stringMatching(/^0\/[0-9A-F]+$/),
    timeline: 1,
    replayedTimeline: null,
  });
  expect(stopped).toMatchObject({ timeline: 1, replayedTimeline: null });
  expect(parseLsn(stopped.stopLsn)).toBeGreaterThan(parseLsn(started.startLsn));
  const label = stopped.label.toString('latin1');
  expect(label).toContain(`START WAL LOCATION: ${started.startLsn} (file 0000000100000000`);
  expect(label).toContain('\nLABEL: pgcloned 0123\n');
  expect(stopped.tablespaceMap).toHaveLength(0);
});

test('the map of tablespaces arrives byte by byte, whatever the encoding of the database', async () => {
  await using server = await startPrimary();
  await using scratch = await scratchDirectory();
  const names = [
    'back\\slash',
    'line\nfeed',
    'return\rx',
    ' blank ',
    'caf\u00e9 \u20ac',
    '\\0\\x41',
  ];
  const locations = names.map((name) => join(scratch.path, name));
  for (const [index, location] of locations.entries()) {
    await makeDirectory(location);
    await server.createTablespace(`t${String(index)}`, location);
  }
  await server.query(`CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'`);

  for (const database of ['postgres', 'latin']) {
    await using session = await openSession(connectionTo(server, { database }), {
      applicationName: 'b',
      signal,
    });
    const started = await startBackup(session, start);
    const { tablespaceMap } = await stopBackup(session, started, signal);

    const found = parseTablespaceMap(tablespaceMap).map(({ location }) =>
      Buffer.from(location, 'latin1').toString(),
    );
    expect(found.toSorted()).toEqual(locations.toSorted());
  }
}, 60_000);

test('a backup ends with its session', async () => {
  await using server = await startPrimary();
  await using session = await openSession(connectionTo(server), { applicationName: 'b', signal });
  const started = await startBackup(session, start);

  await server.query('SELECT pg_terminate_backend($1)', [session.backendPid]);

  expect((await session.lost).code).toBe('SOURCE_LOST');
  await expect(stopBackup(session, started, signal)).rejects.toMatchObject({ code: 'SOURCE_LOST' });
  await expect
    .poll(async () => await readFile(server.logFile, 'utf8'))
    .toContain('aborting backup due to backend exiting');
});

test('an aborted start calls the backup off and leaves the session', async () => {
  await using server = await startPrimary({ settings: { checkpoint_timeout: '1h' } });
  await server.query('CREATE TABLE t AS SELECT generate_series(1, 300000)');
  await using session = await openSession(connectionTo(server), { applicationName: 'b', signal });
  const controller = new AbortController();
  // Spread over half an hour.
  const starting = startBackup(session, { ...start, fast: false, signal: controller.signal });
  const failing = expect(starting).rejects.toThrow('the user cancelled');
  await expect
    .poll(
      async () =>
        await server.query(`SELECT FROM pg_stat_activity WHERE wait_event = 'CheckpointDone'`),
    )
    .toHaveLength(1);

  controller.abort(new Error('the user cancelled'));

  await failing;
  await stopBackup(session, await startBackup(session, start), signal);
});

test('a denied function is a missing right and not a bug', async () => {
  await using server = await startPrimary();
  await server.query('CREATE ROLE cloner LOGIN REPLICATION');
  await using session = await openSession(connectionTo(server, { user: 'cloner' }), {
    applicationName: 'b',
    signal,
  });

  await expect(startBackup(session, start)).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    facts: { reason: expect.stringContaining('pg_backup_start') },
  });
});

test('a label of two lines, of none, too long or not ASCII is refused before anything happens', async () => {
  await using server = await startPrimary();
  await using session = await openSession(connectionTo(server), { applicationName: 'b', signal });

  for (const label of ['two\nlines', '', 'x'.repeat(1001), 'caf\u00e9']) {
    await expect(startBackup(session, { ...start, label })).rejects.toThrow(RangeError);
  }
});
